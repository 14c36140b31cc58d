//! Looking for news for a moment longer before the runtime sleeps.
//!
//! Who sleeps has to be woken, which on a virtual machine may take longer than a small request does.
//! So while requests come quickly one after the other, a task keeps the runtime from sleeping; each
//! time it has looked it lets others have its core.
//!
//! Of a runtime of several threads one looks, and finds news unless another one sleeps at the
//! source of them. Each look wakes one of those that sleep, which finds nothing to do: so up to two
//! cores are busy with it.

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
    #[cfg(test)]
    looks: AtomicU64,
}

impl BusyPoll {
    /// Keeps the runtime awake for `time` after each request that came within twice that after the
    /// one before; zero: never. Its task is one of `tasks`.
    pub fn new(time: Duration, tasks: &Tasks) -> Self {
        if time.is_zero() {
            return Self::default();
        }
        let time_ns = time.as_nanos().min(u128::from(u64::MAX / 2)) as u64;
        let inner = Arc::new(Inner {
            time_ns,
            began: Instant::now(),
            last_ns: AtomicU64::default(),
            quick: Notify::new(),
            #[cfg(test)]
            looks: AtomicU64::default(),
        });
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
                #[cfg(test)]
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

    async fn check() {
        let tasks = Tasks::new();
        let poll = BusyPoll::new(TIME, &tasks);
        tokio::time::sleep(3 * TIME).await;
        poll.note();
        tokio::time::sleep(3 * TIME).await;
        assert_eq!(looks(&poll), 0, "nobody came soon after it");
        let begun = Instant::now();
        while looks(&poll) < 2 {
            assert!(begun.elapsed() < Duration::from_secs(60), "it sleeps");
            poll.note();
            tokio::time::sleep(TIME / 10).await;
        }
        let mut seen = u64::MAX;
        while looks(&poll) != seen {
            assert!(begun.elapsed() < Duration::from_secs(60), "it is awake");
            seen = looks(&poll);
            tokio::time::sleep(TIME).await;
        }
        tasks.cancel();
        assert!(tasks.wait(Duration::from_secs(60)).await);
    }

    #[tokio::test]
    async fn one_thread_stays_awake_only_while_requests_come_quickly() {
        check().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 3)]
    async fn one_of_several_threads_does_so() {
        check().await;
    }

    #[tokio::test]
    async fn without_a_time_there_is_no_task() {
        let tasks = Tasks::new();
        BusyPoll::new(Duration::ZERO, &tasks).note();
        assert_eq!(tasks.count(), 0);
    }
}
