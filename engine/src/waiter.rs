//! Whether anybody waits for the work of a thread: long work asks now and then, and ends early.

use std::cell::RefCell;
use std::sync::{Arc, Weak};

use crate::{Error, ErrorKind, Result};

thread_local! {
    static CURRENT: RefCell<Option<Weak<()>>> = const { RefCell::new(None) };
}

/// Who waits for work; nobody does any more once it is dropped.
///
/// ```
/// let waiter = engine::Waiter::default();
/// let work = waiter.follow(|| engine::check_waiting().is_ok());
/// drop(waiter);
/// assert!(!work(), "it ends early");
/// assert!(engine::check_waiting().is_ok(), "other work is always waited for");
/// ```
#[derive(Debug, Default)]
pub struct Waiter(Arc<()>);

/// Takes a thread's waiter away, however its work ends.
struct Following(Option<Weak<()>>);

impl Waiter {
    /// Makes work know whether it is waited for, wherever it runs.
    pub fn follow<T, F: FnOnce() -> T>(&self, work: F) -> impl FnOnce() -> T + use<T, F> {
        let waiter = Arc::downgrade(&self.0);
        move || {
            let _following = Following(CURRENT.replace(Some(waiter)));
            work()
        }
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        CURRENT.set(self.0.take());
    }
}

/// Checks that somebody waits for this thread's work, or that nobody told who does.
///
/// Errors: cancelled.
pub fn check_waiting() -> Result<()> {
    let is_gone = CURRENT
        .with_borrow(|waiter| waiter.as_ref().is_some_and(|waiter| waiter.strong_count() == 0));
    match is_gone {
        false => Ok(()),
        true => Err(Error::new(ErrorKind::Cancelled, "nobody waits for the work any more")),
    }
}
