//! The places of a worker's connections. When all are taken, one without calls gives way.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use engine::{Flood, Tasks};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// How often who waits looks for a connection that can give way.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// The places of a door, or of all doors.
pub(crate) struct Seats {
    /// What the log calls them.
    name: &'static str,
    count: usize,
    /// How long a connection has no calls before it gives way.
    idle: Duration,
    free: Arc<Semaphore>,
    taken: Mutex<HashMap<u64, Arc<State>>>,
    next: AtomicU64,
    /// How many had to wait, or were refused.
    waited: AtomicU64,
    floods: Mutex<Flood>,
}

/// The place of a connection, free again with the end of this.
pub(crate) struct Seat {
    id: u64,
    state: Arc<State>,
    seats: Arc<Seats>,
    _permit: OwnedSemaphorePermit,
}

/// What a connection tells of itself, and what it is told.
struct State {
    opened: Instant,
    calls: AtomicUsize,
    /// When its last call ended, in milliseconds after `opened`.
    ended_ms: AtomicU64,
    /// Cancelled when it is to end.
    gives_way: Tasks,
}

/// A call of a connection.
pub(super) struct Calling(Arc<State>);

impl Seats {
    pub(crate) fn new(name: &'static str, count: usize, idle: Duration) -> Arc<Self> {
        let free = Arc::new(Semaphore::new(count));
        let (taken, next, waited, floods) = Default::default();
        Arc::new(Self { name, count, idle, free, taken, next, waited, floods })
    }

    /// Takes a place, and waits for it if that has to be.
    pub(super) async fn take(self: &Arc<Self>) -> Seat {
        if let Some(seat) = self.try_take() {
            return seat;
        }
        loop {
            // Nobody closes the semaphore.
            let free = self.free.clone().acquire_owned();
            if let Ok(Ok(permit)) = tokio::time::timeout(LOOK_INTERVAL, free).await {
                return self.seat(permit);
            }
            self.make_room();
        }
    }

    /// Takes a place if one is free; else the log tells, and one may be free soon.
    pub(crate) fn try_take(self: &Arc<Self>) -> Option<Seat> {
        if let Ok(permit) = self.free.clone().try_acquire_owned() {
            return Some(self.seat(permit));
        }
        self.waited.fetch_add(1, Relaxed);
        let mut floods = self.floods.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(untold) = floods.admit() {
            let (listener, connections) = (self.name, self.count);
            tracing::warn!(listener, connections, untold, "all connections are taken");
        }
        self.make_room();
        None
    }

    /// Returns how many connections found all places taken.
    pub(super) fn waited(&self) -> u64 {
        self.waited.load(Relaxed)
    }

    fn seat(self: &Arc<Self>, permit: OwnedSemaphorePermit) -> Seat {
        let state = State {
            opened: Instant::now(),
            calls: AtomicUsize::new(0),
            ended_ms: AtomicU64::new(0),
            gives_way: Tasks::new(),
        };
        let (id, state) = (self.next.fetch_add(1, Relaxed), Arc::new(state));
        self.taken().insert(id, state.clone());
        Seat { id, state, seats: self.clone(), _permit: permit }
    }

    fn taken(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Arc<State>>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the connection give way that has been without calls for longest, and long enough.
    fn make_room(&self) {
        let taken = self.taken();
        let idle = taken.values().filter_map(|one| Some((one.idle_since()?, one)));
        if let Some((since, longest)) = idle.min_by_key(|(since, _)| *since)
            && since.elapsed() >= self.idle
        {
            longest.gives_way.cancel();
        }
    }
}

impl State {
    /// Returns since when it has no calls; none: it has some, or gives way already.
    fn idle_since(&self) -> Option<Instant> {
        let is_idle = self.calls.load(Relaxed) == 0 && !self.gives_way.is_cancelled();
        is_idle.then(|| self.opened + Duration::from_millis(self.ended_ms.load(Relaxed)))
    }
}

impl Seat {
    /// Notes that a call has begun, which ends with the value.
    pub(super) fn call(&self) -> Calling {
        self.state.calls.fetch_add(1, Relaxed);
        Calling(self.state.clone())
    }

    /// Waits until the connection should end because others wait.
    pub(super) async fn gives_way(&self) {
        self.state.gives_way.cancelled().await;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.seats.taken().remove(&self.id);
    }
}

impl Drop for Calling {
    fn drop(&mut self) {
        self.0.ended_ms.store(self.0.opened.elapsed().as_millis() as u64, Relaxed);
        self.0.calls.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn who_has_no_calls_for_longest_gives_way_and_nobody_else() {
        let seats = Seats::new("test", 3, IDLE);
        let (asked, idle, busy) = (seats.take().await, seats.take().await, seats.take().await);
        let _calling = busy.call();
        tokio::time::sleep(IDLE / 2).await;
        drop(asked.call());
        let gone = async {
            idle.gives_way().await;
            drop(idle);
        };
        let begun = Instant::now();
        let (new, ()) = tokio::join!(seats.take(), gone);
        assert!(begun.elapsed() >= IDLE / 2);
        assert_eq!(seats.waited(), 1);
        assert!(seats.try_take().is_none() && seats.waited() == 2);
        assert!(tokio::time::timeout(IDLE / 4, seats.take()).await.is_err());
        tokio::time::sleep(IDLE).await;
        assert!(seats.try_take().is_none());
        asked.gives_way().await;
        drop((asked, new));
        assert!(seats.try_take().is_some());
        assert!(!busy.state.gives_way.is_cancelled());
    }
}
