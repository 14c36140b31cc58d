//! Who counts the tokens of a request while they are made.

use std::fmt::Debug;

/// Counts tokens on someone's account, such as an API key's.
///
/// ```
/// use std::sync::Arc;
/// use std::sync::atomic::{AtomicU64, Ordering};
///
/// #[derive(Debug, Default)]
/// struct Total(AtomicU64);
///
/// impl engine::Meter for Total {
///     fn count(&self, tokens: u64) {
///         self.0.fetch_add(tokens, Ordering::Relaxed);
///     }
/// }
///
/// let total = Arc::new(Total::default());
/// let context = engine::Context::new("r").with_meter(Some(total.clone()));
/// context.meter().unwrap().count(3);
/// assert_eq!(total.0.load(Ordering::Relaxed), 3);
/// ```
pub trait Meter: Debug + Send + Sync {
    /// Counts tokens that were read as a prompt or generated. It is called for every step of a
    /// request, so it has to be quick.
    fn count(&self, tokens: u64);
}
