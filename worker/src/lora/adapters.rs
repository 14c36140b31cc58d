//! The adapters of one base model: loaded, found by number, and forgotten with their last lease.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use engine::AdapterId;

use super::{Adapter, Settings, Shape};
use crate::Error;
use crate::weights::{Json, SafeTensors};

/// What may be loaded; each is at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Adapters at once.
    pub max_adapters: usize,
    /// The largest rank of one.
    pub max_rank: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_adapters: 8, max_rank: 64 }
    }
}

/// The adapters of one base.
#[derive(Debug)]
pub struct Adapters {
    shape: Shape,
    limits: Limits,
    loaded: RwLock<BTreeMap<AdapterId, Loaded>>,
}

#[derive(Debug)]
struct Loaded {
    adapter: Arc<Adapter>,
    leases: usize,
}

impl Adapters {
    /// Makes an empty table for a base of this shape.
    pub fn new(shape: Shape, limits: Limits) -> Arc<Self> {
        Arc::new(Self { shape, limits, loaded: RwLock::default() })
    }

    /// Loads an adapter from a directory in PEFT's layout: `adapter_config.json` and
    /// `adapter_model.safetensors`.
    ///
    /// Errors: a file that cannot be read or does not fit the base, by name; a rank above the
    /// limit; as many adapters as may be loaded.
    pub fn load(self: &Arc<Self>, directory: &Path) -> Result<engine::Adapter, Error> {
        let config = Json::read(&directory.join("adapter_config.json"))?;
        let settings = Settings::read(&config)?;
        let most = self.limits.max_rank;
        if settings.rank > most {
            let got = settings.rank;
            return Err(config.refusal("r", &format!("expected at most {most}, got {got}")));
        }
        // Before anything large is read; what is loaded meanwhile is seen again below.
        self.check_room()?;
        let weights = SafeTensors::open(&directory.join("adapter_model.safetensors"))?;
        self.insert(Adapter::read(&weights, &settings, self.shape)?)
    }

    /// Adds an adapter. The same content twice is held once.
    ///
    /// Errors: as many adapters as may be loaded.
    pub fn insert(self: &Arc<Self>, adapter: Adapter) -> Result<engine::Adapter, Error> {
        let id = AdapterId(adapter.fingerprint());
        let mut loaded = self.loaded.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = loaded.get_mut(&id) {
            known.leases += 1;
        } else {
            let (count, most) = (loaded.len(), self.limits.max_adapters);
            if count >= most {
                return Err(full(count, most));
            }
            loaded.insert(id, Loaded { adapter: Arc::new(adapter), leases: 1 });
        }
        let lease = Lease { adapters: self.clone(), id };
        Ok(engine::Adapter::new(id, Arc::new(lease)))
    }

    fn check_room(&self) -> Result<(), Error> {
        let (count, most) = (self.len(), self.limits.max_adapters);
        if count < most { Ok(()) } else { Err(full(count, most)) }
    }

    /// Returns a loaded adapter.
    pub fn get(&self, id: AdapterId) -> Option<Arc<Adapter>> {
        let loaded = self.loaded.read().unwrap_or_else(PoisonError::into_inner);
        loaded.get(&id).map(|known| known.adapter.clone())
    }

    /// Returns how many adapters are loaded.
    pub fn len(&self) -> usize {
        self.loaded.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Returns whether no adapter is loaded.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

fn full(count: usize, most: usize) -> Error {
    Error::Limit(format!("{count} adapters are loaded, expected at most {most}"))
}

/// A loaded adapter: it stays while this lives.
#[derive(Debug)]
struct Lease {
    adapters: Arc<Adapters>,
    id: AdapterId,
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut loaded = self.adapters.loaded.write().unwrap_or_else(PoisonError::into_inner);
        let mut left = None;
        if let Some(known) = loaded.get_mut(&self.id) {
            known.leases -= 1;
            if known.leases == 0 {
                left = loaded.remove(&self.id);
            }
        }
        drop(loaded);
        // Freed outside of the lock; it may be large.
        drop(left);
    }
}

#[cfg(test)]
mod tests;
