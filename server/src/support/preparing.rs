//! What is done with large requests before an engine sees them: reading their JSON, rendering
//! their template, finding their tokens. It is done off the async runtime, a few at a time, and
//! what nobody waits for is not begun, or ends early.

use std::num::NonZeroU32;
use std::sync::{Arc, OnceLock};

use engine::{Error, Result, Waiter, check_waiting};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Work on this many bytes takes longer than other requests should wait for it.
pub(crate) const LARGE_BYTES: usize = 64 << 10;

/// The default is at least two, so that one slow request does not block all others.
const LEAST_PLACES: usize = 2;

/// The places of the process, whose cores they are.
static PLACES: OnceLock<Arc<Semaphore>> = OnceLock::new();

fn places() -> &'static Arc<Semaphore> {
    PLACES.get_or_init(|| Arc::new(Semaphore::new(default_places())))
}

/// Returns how many large requests are prepared at once if nothing is configured.
pub(crate) fn default_places() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    (cores / 2).max(LEAST_PLACES)
}

/// Says how many large requests are prepared at once, before the first one.
pub(crate) fn configure(places: Option<NonZeroU32>) {
    if let Some(places) = places {
        let _ = PLACES.set(Arc::new(Semaphore::new(places.get() as usize)));
    }
}

/// Waits for a place to work on so many bytes; work on few takes none.
pub(crate) async fn place(bytes: usize) -> Option<OwnedSemaphorePermit> {
    match bytes > LARGE_BYTES {
        true => places().clone().acquire_owned().await.ok(),
        false => None,
    }
}

/// Does work on so many bytes: off the runtime, when there is a place, if these are many. The work
/// can ask [`engine::check_waiting`] whether it is still waited for.
///
/// Errors: the work's; internal, if it panics.
pub(crate) async fn run<T: Send + 'static>(
    bytes: usize,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match place(bytes).await {
        None => work(),
        Some(place) => apart(place, work).await,
    }
}

/// Does work on a thread of its own, in a place that the work gives back itself: it may go on for
/// a moment when nobody waits any more.
pub(crate) async fn apart<T: Send + 'static>(
    place: OwnedSemaphorePermit,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let waiter = Waiter::default();
    let work = waiter.follow(move || {
        let _place = place;
        check_waiting()?;
        work()
    });
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Error::internal("the request could not be prepared").with_source(error))?
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use engine::ErrorKind;

    use super::*;

    /// Longer than anything here takes.
    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn work_that_nobody_waits_for_ends_early_and_gives_its_place_back() {
        let places = Arc::new(Semaphore::new(1));
        let place = places.clone().acquire_owned().await.unwrap();
        let (begun, has_begun) = mpsc::sync_channel(1);
        let (ended, has_ended) = mpsc::sync_channel(1);
        let endless = move || -> Result<()> {
            begun.send(()).unwrap();
            loop {
                if let Err(error) = check_waiting() {
                    ended.send(error.kind()).unwrap();
                    return Err(error);
                }
            }
        };
        let mut waiting = Box::pin(apart(place, endless));
        assert!(futures_util::poll!(&mut waiting).is_pending());
        has_begun.recv_timeout(LONG).unwrap();
        assert_eq!(places.available_permits(), 0);
        drop(waiting);
        assert_eq!(has_ended.recv_timeout(LONG), Ok(ErrorKind::Cancelled));
        let _place = tokio::time::timeout(LONG, places.acquire()).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn only_large_work_leaves_the_runtime() {
        let here = std::thread::current().id();
        let at = |bytes| run(bytes, || Ok(std::thread::current().id()));
        assert_eq!(at(LARGE_BYTES).await.unwrap(), here);
        assert_ne!(at(LARGE_BYTES + 1).await.unwrap(), here);
    }
}
