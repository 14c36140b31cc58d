//! The places of a listener's connections. When all are taken and somebody waits, the connection
//! that has been silent for longest gives its place.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use engine::Flood;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long a connection is silent before it gives its place.
const QUIET: Duration = Duration::from_secs(5);

/// How often somebody who waits looks for such a connection.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// The places of a listener.
pub(super) struct Seats {
    /// What the log calls the listener.
    name: &'static str,
    count: usize,
    free: Arc<Semaphore>,
    taken: Arc<Mutex<HashMap<u64, Arc<Shared>>>>,
    next: u64,
    /// Those of which the log is to tell.
    floods: Flood,
    /// Counts the connections that had to wait.
    waited: Counter,
}

/// The place of a connection, free again with the end of this.
pub(crate) struct Seat {
    id: u64,
    shared: Arc<Shared>,
    taken: Arc<Mutex<HashMap<u64, Arc<Shared>>>>,
    _permit: OwnedSemaphorePermit,
}

/// What a connection tells of itself, and what it is told.
struct Shared {
    opened: Instant,
    /// When bytes came or went last, in milliseconds after `opened`.
    heard_ms: AtomicU64,
    gives_way: CancellationToken,
}

/// Hears that bytes come or go on a connection.
#[derive(Clone)]
pub(super) struct Ear(Arc<Shared>);

impl Seats {
    /// Makes so many places.
    pub(super) fn new(name: &'static str, count: usize, waited: Counter) -> Self {
        let free = Arc::new(Semaphore::new(count));
        Self { name, count, free, taken: Arc::default(), next: 0, floods: Flood::default(), waited }
    }

    /// Takes a place; none when the server ends.
    pub(super) async fn take(&mut self) -> Option<Seat> {
        let permit = match self.free.clone().try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => self.wait().await?,
        };
        let (id, opened) = (self.next, Instant::now());
        self.next += 1;
        let gives_way = CancellationToken::new();
        let shared = Arc::new(Shared { opened, heard_ms: AtomicU64::new(0), gives_way });
        lock(&self.taken).insert(id, shared.clone());
        Some(Seat { id, shared, taken: self.taken.clone(), _permit: permit })
    }

    async fn wait(&mut self) -> Option<OwnedSemaphorePermit> {
        self.waited.inc();
        if let Some(untold) = self.floods.admit() {
            let (listener, connections) = (self.name, self.count);
            tracing::warn!(listener, connections, untold, "all connections are taken; others wait");
        }
        loop {
            if let Some(quiet) = self.quietest() {
                quiet.gives_way.cancel();
            }
            tokio::select! {
                permit = self.free.clone().acquire_owned() => return permit.ok(),
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
            }
        }
    }

    /// Returns the connection that has been silent for longest, and long enough.
    fn quietest(&self) -> Option<Arc<Shared>> {
        let taken = lock(&self.taken);
        let asked = taken.values().filter(|one| !one.gives_way.is_cancelled());
        let (heard, quietest) = asked.map(|one| (one.heard(), one)).min_by_key(|(at, _)| *at)?;
        (heard.elapsed() >= QUIET).then(|| quietest.clone())
    }
}

impl Seat {
    /// Waits until the connection should end because others wait.
    pub(crate) async fn gives_way(&self) {
        self.shared.gives_way.cancelled().await;
    }

    /// Returns what hears of its bytes.
    pub(super) fn ear(&self) -> Ear {
        Ear(self.shared.clone())
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        lock(&self.taken).remove(&self.id);
    }
}

impl Shared {
    fn heard(&self) -> Instant {
        self.opened + Duration::from_millis(self.heard_ms.load(Ordering::Relaxed))
    }
}

impl Ear {
    /// Hears some.
    pub(super) fn hear(&self) {
        self.0.heard_ms.store(self.0.opened.elapsed().as_millis() as u64, Ordering::Relaxed);
    }
}

fn lock<T>(of: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_is_silent_for_longest_gives_way() {
        let waited = Counter::default();
        let mut seats = Seats::new("test", 3, waited.clone());
        let mut taken = Vec::new();
        for _ in 0..3 {
            taken.push(seats.take().await.unwrap());
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        assert_eq!(waited.get(), 0);
        taken[0].ear().hear();
        let next = tokio::time::timeout(Duration::from_secs(2), seats.take());
        assert!(next.await.is_err(), "nobody has been silent for long");
        let second = taken.remove(1);
        let opened = second.shared.opened;
        let ends = async {
            second.gives_way().await;
            drop(second);
            opened.elapsed()
        };
        let (silent, seat) = tokio::join!(ends, seats.take());
        assert!(silent >= QUIET && silent <= QUIET + LOOK_INTERVAL, "{silent:?}");
        assert!(seat.is_some());
        let (first, third) = (taken[0].gives_way(), taken[1].gives_way());
        assert!(futures_util::poll!(Box::pin(first)).is_pending());
        assert!(futures_util::poll!(Box::pin(third)).is_pending());
        assert_eq!(waited.get(), 2);
    }
}
