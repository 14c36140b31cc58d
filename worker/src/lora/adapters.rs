//! The adapters of one base model: loaded, found by number, and forgotten with their last lease.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockWriteGuard};

use engine::AdapterId;

use super::{Adapter, Settings, Shape};
use crate::Error;
use crate::weights::{Json, SafeTensors};

/// What may be loaded; each is at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Adapters at once; while one is replaced, the new one counts and the old one does not.
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
    /// Held while one is read: so no more than one lies in memory that may turn out to be too many.
    reading: Mutex<()>,
}

#[derive(Debug)]
struct Loaded {
    adapter: Arc<Adapter>,
    leases: usize,
    /// The files that it was read from, as they were before.
    files: Option<Files>,
}

/// Both files of an adapter: the same ones, unchanged, if equal.
type Files = [FileState; 2];

/// Device, number, size, and when content or owner changed last, which nobody can set.
type FileState = (u64, u64, u64, i64, i64);

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";

impl Adapters {
    /// Makes an empty table for a base of this shape.
    pub fn new(shape: Shape, limits: Limits) -> Arc<Self> {
        Arc::new(Self { shape, limits, loaded: RwLock::default(), reading: Mutex::default() })
    }

    /// Loads an adapter from a directory in PEFT's layout: `adapter_config.json` and
    /// `adapter_model.safetensors`. One that is loaded from the same files is not read again.
    /// `replaced` is an adapter that the caller is going to let go for it.
    ///
    /// Errors: a file that cannot be read or does not fit the base, by name; a rank above the
    /// limit; as many adapters as may be loaded.
    pub fn load(
        self: &Arc<Self>,
        directory: &Path,
        replaced: Option<AdapterId>,
    ) -> Result<engine::Adapter, Error> {
        let _turn = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        let files = files(directory);
        if let Some(known) = files.as_ref().and_then(|files| self.known(files)) {
            return Ok(known);
        }
        let config = Json::read(&directory.join(CONFIG))?;
        let settings = Settings::read(&config)?;
        let most = self.limits.max_rank;
        if settings.rank > most {
            let got = settings.rank;
            return Err(config.refusal("r", &format!("expected at most {most}, got {got}")));
        }
        // Before anything large is read.
        self.check_room(&self.write(), replaced)?;
        let weights = SafeTensors::open(&directory.join(WEIGHTS))?;
        self.insert((Adapter::read(&weights, &settings, self.shape)?, files), replaced)
    }

    /// Leases an adapter that is loaded from these very files.
    fn known(self: &Arc<Self>, files: &Files) -> Option<engine::Adapter> {
        let mut loaded = self.write();
        let mut all = loaded.iter_mut();
        let (&id, known) = all.find(|(_, known)| known.files.as_ref() == Some(files))?;
        known.leases += 1;
        Some(self.lease(id))
    }

    /// Adds an adapter. The same content twice is held once.
    ///
    /// Errors: as many adapters as may be loaded.
    fn insert(
        self: &Arc<Self>,
        (adapter, files): (Adapter, Option<Files>),
        replaced: Option<AdapterId>,
    ) -> Result<engine::Adapter, Error> {
        let id = AdapterId(adapter.fingerprint());
        let mut loaded = self.write();
        if let Some(known) = loaded.get_mut(&id) {
            known.leases += 1;
            known.files = files;
        } else {
            self.check_room(&loaded, replaced)?;
            loaded.insert(id, Loaded { adapter: Arc::new(adapter), leases: 1, files });
        }
        Ok(self.lease(id))
    }

    fn lease(self: &Arc<Self>, id: AdapterId) -> engine::Adapter {
        engine::Adapter::new(id, Arc::new(Lease { adapters: self.clone(), id }))
    }

    /// Checks that there is room for one more, when one that nobody else holds is let go.
    fn check_room(
        &self,
        loaded: &BTreeMap<AdapterId, Loaded>,
        replaced: Option<AdapterId>,
    ) -> Result<(), Error> {
        let leaves = replaced.and_then(|id| loaded.get(&id)).is_some_and(|old| old.leases == 1);
        let (count, most) = (loaded.len(), self.limits.max_adapters);
        match count - usize::from(leaves) < most {
            true => Ok(()),
            false => {
                let text = format!("{count} adapters are loaded, expected at most {most}");
                Err(Error::Limit(text))
            }
        }
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<AdapterId, Loaded>> {
        self.loaded.write().unwrap_or_else(PoisonError::into_inner)
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

/// Returns what the files of an adapter are; none if that cannot be told.
fn files(directory: &Path) -> Option<Files> {
    let state = |name: &str| file_state(&std::fs::metadata(directory.join(name)).ok()?);
    Some([state(CONFIG)?, state(WEIGHTS)?])
}

#[cfg(unix)]
fn file_state(file: &Metadata) -> Option<FileState> {
    use std::os::unix::fs::MetadataExt;
    Some((file.dev(), file.ino(), file.size(), file.ctime(), file.ctime_nsec()))
}

#[cfg(not(unix))]
fn file_state(_: &Metadata) -> Option<FileState> {
    None
}

/// A loaded adapter: it stays while this lives.
#[derive(Debug)]
struct Lease {
    adapters: Arc<Adapters>,
    id: AdapterId,
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut loaded = self.adapters.write();
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
