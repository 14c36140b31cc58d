//! The places of a listener's connections. When all are taken and somebody waits, the connection
//! whose calls have been silent for longest gives its place.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use engine::{Flood, Tasks};
use prometheus_client::metrics::counter::Counter;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

use super::calls::{Caller, Shared};

/// How often somebody who waits looks for a connection that gives its place, and how often one
/// that was told to end is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// How long connections may be silent. A call that comes, goes or carries bytes is no silence.
#[derive(Clone, Copy)]
pub(super) struct Silence {
    /// Before it gives its place.
    pub quiet: Duration,
    /// Without open calls, once it was told to end.
    pub farewell: Duration,
    /// With calls that all wait for their client, once it was told to give its place.
    pub idle: Duration,
}

/// How long connections may be silent outside of tests.
pub(super) const SILENCE: Silence = Silence {
    quiet: Duration::from_secs(5),
    farewell: Duration::from_secs(1),
    idle: Duration::from_secs(30),
};

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
    silence: Silence,
    /// Cancelled when open calls are answered by an error, since the server ends.
    ending: Tasks,
}

/// The place of a connection, free again with the end of this.
pub(crate) struct Seat {
    id: u64,
    shared: Arc<Shared>,
    taken: Arc<Mutex<HashMap<u64, Arc<Shared>>>>,
    silence: Silence,
    _permit: OwnedSemaphorePermit,
}

impl Seats {
    /// Makes the places of a listener; `ending` is cancelled when open calls are answered by an
    /// error.
    pub(super) fn new(
        (name, count): (&'static str, usize),
        waited: Counter,
        silence: Silence,
        ending: Tasks,
    ) -> Self {
        let (free, taken) = (Arc::new(Semaphore::new(count)), Arc::default());
        let floods = Flood::default();
        Self { name, count, free, taken, next: 0, floods, waited, silence, ending }
    }

    /// Takes a place; none when the server ends.
    pub(super) async fn take(&mut self) -> Option<Seat> {
        let permit = match self.free.clone().try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => self.wait().await?,
        };
        let (id, silence) = (self.next, self.silence);
        self.next += 1;
        let shared = Arc::new(Shared::new(self.ending.child()));
        lock(&self.taken).insert(id, shared.clone());
        Some(Seat { id, shared, taken: self.taken.clone(), silence, _permit: permit })
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

    /// Returns the connection that has been silent for longest, and long enough; one that the
    /// server works for only where there is no other.
    fn quietest(&self) -> Option<Arc<Shared>> {
        let taken = lock(&self.taken);
        let rest = taken.values().filter(|one| !one.gives_way.is_cancelled());
        let quiet = rest.filter(|one| one.heard().elapsed() >= self.silence.quiet);
        quiet.min_by_key(|one| (one.is_working(), one.heard())).cloned()
    }
}

impl Seat {
    /// Waits until the connection should end because others wait.
    pub(crate) async fn gives_way(&self) {
        self.shared.gives_way.cancelled().await;
    }

    /// Returns what begins the connection's calls.
    pub(crate) fn caller(&self) -> Caller {
        Caller(self.shared.clone())
    }

    /// Returns whether a call has ever come.
    pub(crate) fn has_called(&self) -> bool {
        self.shared.has_called()
    }

    /// Returns what is known of the connection.
    pub(super) fn shared(&self) -> Arc<Shared> {
        self.shared.clone()
    }

    /// Serves a connection that was told to end for as long as its calls take; none when it had no
    /// reason to go on.
    pub(crate) async fn see_out<F: Future>(&self, served: F) -> Option<F::Output> {
        let (mut served, told) = (pin!(served), Instant::now());
        loop {
            match timeout(LOOK_INTERVAL, served.as_mut()).await {
                Ok(result) => return Some(result),
                Err(_) if self.is_over(told) => return None,
                Err(_) => {}
            }
        }
    }

    fn is_over(&self, told: Instant) -> bool {
        let silent = self.shared.heard().max(told).elapsed();
        match self.shared.is_open() {
            false => silent >= self.silence.farewell,
            true => {
                let may_end = self.shared.gives_way.is_cancelled() && !self.shared.is_working();
                may_end && silent >= self.silence.idle
            }
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        lock(&self.taken).remove(&self.id);
    }
}

fn lock<T>(of: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::super::calls::Call;
    use super::*;

    fn seats(count: usize) -> Seats {
        Seats::new(("test", count), Counter::default(), SILENCE, Tasks::new())
    }

    #[tokio::test(start_paused = true)]
    async fn whose_calls_are_silent_for_longest_gives_way() {
        let mut seats = seats(3);
        let mut taken = Vec::new();
        for _ in 0..3 {
            taken.push(seats.take().await.unwrap());
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        assert_eq!(seats.waited.get(), 0);
        drop(taken[0].caller().begin());
        let next = timeout(Duration::from_secs(2), seats.take());
        assert!(next.await.is_err(), "nobody has been silent for long");
        let second = taken.remove(1);
        let opened = second.shared.heard();
        let ends = async {
            second.gives_way().await;
            drop(second);
            opened.elapsed()
        };
        let (silent, seat) = tokio::join!(ends, seats.take());
        assert!(silent >= SILENCE.quiet && silent <= SILENCE.quiet + LOOK_INTERVAL, "{silent:?}");
        assert!(seat.is_some());
        let (first, third) = (taken[0].gives_way(), taken[1].gives_way());
        assert!(futures_util::poll!(Box::pin(first)).is_pending());
        assert!(futures_util::poll!(Box::pin(third)).is_pending());
        assert_eq!(seats.waited.get(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn only_use_keeps_a_place() {
        let mut seats = seats(1);
        let seat = seats.take().await.unwrap();
        let (began, shared) = (Instant::now(), seat.shared());
        let pings = async {
            loop {
                shared.wrote(17);
                tokio::time::sleep(Duration::from_secs(4)).await;
            }
        };
        let reads = async {
            let call = seat.caller().begin();
            for _ in 0..10 {
                (0..4).for_each(|_| shared.wrote(4096));
                tokio::time::sleep(Duration::from_secs(4)).await;
            }
            call.set_idle(true);
            drop(seat.caller().begin());
            let quiet = Instant::now();
            tokio::select! {
                () = seat.gives_way() => {}
                () = pings => {}
            }
            quiet.elapsed()
        };
        let (quiet, next) = tokio::join!(reads, timeout(Duration::from_secs(60), seats.take()));
        assert!(quiet <= SILENCE.quiet + LOOK_INTERVAL, "{quiet:?}");
        assert!(began.elapsed() >= Duration::from_secs(60) && next.is_err(), "it does not leave");
    }

    /// Returns how long a connection goes on that gives its place, if `begin` is what it does.
    async fn goes_on(begin: impl FnOnce(&Seat) -> Option<Call>) -> Option<Duration> {
        let mut seats = seats(1);
        let seat = seats.take().await.unwrap();
        let call = begin(&seat);
        seat.shared.gives_way.cancel();
        let (told, served) = (Instant::now(), std::future::pending::<()>());
        let outcome = timeout(Duration::from_secs(3600), seat.see_out(served)).await;
        drop(call);
        outcome.is_ok().then(|| told.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn who_was_told_to_go_stays_for_open_calls_alone() {
        let soon = SILENCE.farewell..=SILENCE.farewell + 2 * LOOK_INTERVAL;
        let later = SILENCE.idle..=SILENCE.idle + 2 * LOOK_INTERVAL;
        assert!(soon.contains(&goes_on(|_| None).await.unwrap()));
        let idle = goes_on(|seat| {
            let call = seat.caller().begin();
            call.set_idle(true);
            Some(call)
        });
        assert!(later.contains(&idle.await.unwrap()));
        assert_eq!(
            goes_on(|seat| Some(seat.caller().begin())).await,
            None,
            "the server works on it"
        );
    }
}
