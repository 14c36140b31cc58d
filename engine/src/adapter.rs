//! Adapters: variants of a model that a request may ask for.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

/// The number of an adapter. It stands for the content: what was computed with an adapter of the
/// same number can be used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AdapterId(pub u64);

/// An adapter that an engine has loaded: it stays loaded while this, or a clone of it, lives.
///
/// ```
/// use std::sync::Arc;
/// use engine::{Adapter, AdapterId};
/// let lease = Arc::new("what the engine wants to be kept");
/// let adapter = Adapter::new(AdapterId(7), lease.clone());
/// assert_eq!((adapter.id(), Arc::strong_count(&lease)), (AdapterId(7), 2));
/// ```
#[derive(Clone)]
pub struct Adapter {
    id: AdapterId,
    /// Only held.
    _lease: Arc<dyn Any + Send + Sync>,
}

impl Adapter {
    /// Makes the handle of an adapter; `lease` is what keeps it loaded.
    pub fn new(id: AdapterId, lease: Arc<dyn Any + Send + Sync>) -> Self {
        Self { id, _lease: lease }
    }

    /// Returns the number.
    pub fn id(&self) -> AdapterId {
        self.id
    }
}

impl fmt::Debug for Adapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Adapter").field(&self.id).finish()
    }
}
