//! Looking for news for a moment longer before the runtime sleeps.
//!
//! Who sleeps has to be woken, which on a virtual machine may take longer than a small request does.
//! So while requests come quickly one after the other, a task keeps the runtime from sleeping; it
//! yields its core to whoever else wants it each time it has looked.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::Tasks;

/// What keeps the runtime from sleeping. Clones are the same; the default never does.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let tasks = engine::Tasks::new();
/// let poll = engine::BusyPoll::new(std::time::Duration::from_micros(200), &tasks);
/// poll.note();
/// # });
/// ```
#[derive(Clone, Debug, Default)]
pub struct BusyPoll {
    inner: Option<Arc<Inner>>,
}

#[derive(Debug)]
struct Inner {
    time_ns: u64,
    began: Instant,
    /// When the last request came.
    last_ns: AtomicU64,
    quick: Notify,
    /// How often was looked.
    looks: AtomicU64,
}

impl BusyPoll {
    /// Keeps the runtime awake for `time` after each request that came within twice that after the
    /// one before; zero: never. Its task is one of `tasks`.
    pub fn new(time: Duration, tasks: &Tasks) -> Self {
        if time.is_zero() {
            return Self::default();
        }
        let time_ns = time.as_nanos().try_into().unwrap_or(u64::MAX / 2);
        let (last_ns, quick, looks) = Default::default();
        let inner = Arc::new(Inner { time_ns, began: Instant::now(), last_ns, quick, looks });
        let looking = inner.clone();
        tasks.spawn("busy poll", async move { looking.run().await });
        Self { inner: Some(inner) }
    }

    /// Notes that a request came.
    pub fn note(&self) {
        let Some(inner) = &self.inner else { return };
        let now = inner.now();
        let before = inner.last_ns.swap(now, Relaxed);
        if now.saturating_sub(before) < 2 * inner.time_ns {
            inner.quick.notify_one();
        }
    }
}

impl Inner {
    fn now(&self) -> u64 {
        self.began.elapsed().as_nanos() as u64
    }

    async fn run(&self) {
        loop {
            self.quick.notified().await;
            while self.now().saturating_sub(self.last_ns.load(Relaxed)) < self.time_ns {
                self.looks.fetch_add(1, Relaxed);
                std::thread::yield_now();
                // Where nothing else is to be done, the runtime looks for news and comes back.
                tokio::task::yield_now().await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: Duration = Duration::from_millis(100);

    fn looks(poll: &BusyPoll) -> u64 {
        poll.inner.as_ref().unwrap().looks.load(Relaxed)
    }

    #[tokio::test]
    async fn the_runtime_stays_awake_only_while_requests_come_quickly() {
        let tasks = Tasks::new();
        let poll = BusyPoll::new(TIME, &tasks);
        tokio::time::sleep(3 * TIME).await;
        poll.note();
        tokio::time::sleep(3 * TIME).await;
        assert_eq!(looks(&poll), 0, "nobody came soon after it");
        poll.note();
        poll.note();
        tokio::time::sleep(TIME / 4).await;
        let seen = looks(&poll);
        assert!(seen > 1, "it looked {seen} times");
        tokio::time::sleep(3 * TIME).await;
        let seen = looks(&poll);
        tokio::time::sleep(TIME).await;
        assert_eq!(looks(&poll), seen, "it sleeps");
        tasks.cancel();
        assert!(tasks.wait(TIME).await);
    }

    #[tokio::test]
    async fn without_a_time_there_is_no_task() {
        let tasks = Tasks::new();
        BusyPoll::new(Duration::ZERO, &tasks).note();
        assert_eq!(tasks.count(), 0);
    }
}
