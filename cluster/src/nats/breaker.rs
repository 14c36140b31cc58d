//! Leaves NATS for a while when it was lost or does not answer.
//!
//! A server that hangs, or comes and goes, would cost each connection to a worker a wait and each
//! request another attempt. So workers are called another way until NATS has been left alone for a
//! while and has then carried an echo. A loss soon after that doubles the wait.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

/// How often the longest wait is longer than the first.
const LONGEST_FACTOR: u32 = 12;

/// The pause after an echo that did not come back.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Whether NATS is left.
#[derive(Debug)]
pub(super) struct Breaker {
    first: Duration,
    is_left: AtomicBool,
    /// That it was lost, or seems to be.
    news: Notify,
    /// A doubt was settled.
    settled: Notify,
}

impl Breaker {
    /// Makes one that leaves NATS for `first`, after losses in a row for up to twelve times that.
    pub(super) fn new(first: Duration) -> Self {
        let (is_left, news, settled) = Default::default();
        Self { first, is_left, news, settled }
    }

    /// Returns whether NATS is to be left.
    pub(super) fn is_left(&self) -> bool {
        self.is_left.load(SeqCst)
    }

    /// Leaves NATS, since its connection was lost.
    pub(super) fn lose(&self) {
        self.is_left.store(true, SeqCst);
        self.news.notify_one();
    }

    /// Has an echo show whether NATS answers, and leaves it if it does not.
    pub(super) fn doubt(&self) {
        if !self.is_left() {
            self.news.notify_one();
        }
    }

    /// Does that, and waits until it is known.
    pub(super) async fn settle(&self) {
        let settled = self.settled.notified();
        if !self.is_left() {
            self.news.notify_one();
            settled.await;
        }
    }

    /// Decides, for as long as this is polled. `echo` returns whether NATS carries messages; `leave`
    /// is told each time that it does not.
    pub(super) async fn run<F>(&self, echo: impl Fn() -> F, leave: impl Fn())
    where
        F: Future<Output = bool>,
    {
        let (mut wait, mut taken) = (self.first, None::<Instant>);
        let longest = self.first * LONGEST_FACTOR;
        loop {
            self.news.notified().await;
            if !self.is_left() {
                let is_there = echo().await;
                if is_there {
                    self.settled.notify_waiters();
                    continue;
                }
                self.is_left.store(true, SeqCst);
                tracing::warn!("nats does not answer");
                leave();
            }
            self.settled.notify_waiters();
            let is_again = taken.is_some_and(|at| at.elapsed() < longest);
            wait = if is_again { (wait * 2).min(longest) } else { self.first };
            tracing::info!(seconds = wait.as_secs_f64(), "nats is left for a while");
            sleep(wait).await;
            while !echo().await {
                sleep(LOOK_INTERVAL).await;
            }
            self.is_left.store(false, SeqCst);
            taken = Some(Instant::now());
            tracing::info!("nats answers: it is used again");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use engine::Tasks;

    use super::*;

    const FIRST: Duration = Duration::from_secs(5);

    /// Runs a breaker in front of a server that answers while `is_there`.
    fn start(tasks: &Tasks) -> (Arc<Breaker>, Arc<AtomicBool>) {
        let (breaker, is_there) = (Arc::new(Breaker::new(FIRST)), Arc::new(AtomicBool::new(true)));
        let (run, answers) = (breaker.clone(), is_there.clone());
        tasks.spawn("breaker", async move {
            let echo = || std::future::ready(answers.load(SeqCst));
            run.run(echo, || ()).await;
        });
        (breaker, is_there)
    }

    /// Returns how long it is left from now on, in whole seconds.
    async fn left(breaker: &Breaker) -> u64 {
        let begun = Instant::now();
        while breaker.is_left() {
            sleep(Duration::from_millis(10)).await;
        }
        begun.elapsed().as_secs()
    }

    #[tokio::test(start_paused = true)]
    async fn losses_in_a_row_double_the_wait_to_its_limit() {
        let tasks = Tasks::new();
        let (breaker, _) = start(&tasks);
        for seconds in [5, 10, 20, 40, 60, 60] {
            sleep(Duration::from_secs(1)).await;
            breaker.lose();
            assert_eq!(left(&breaker).await, seconds);
        }
        sleep(FIRST * LONGEST_FACTOR).await;
        breaker.lose();
        assert_eq!(left(&breaker).await, 5, "it was well for a while");
        tasks.cancel();
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_left_for_silence_and_taken_again_with_an_echo() {
        let tasks = Tasks::new();
        let (breaker, is_there) = start(&tasks);
        breaker.settle().await;
        assert!(!breaker.is_left(), "a worker that is silent does not end it for all");
        is_there.store(false, SeqCst);
        breaker.settle().await;
        assert!(breaker.is_left());
        sleep(20 * FIRST).await;
        assert!(breaker.is_left());
        is_there.store(true, SeqCst);
        assert!(left(&breaker).await <= 1);
        breaker.lose();
        breaker.settle().await;
        assert_eq!(left(&breaker).await, 10, "it was lost at once");
        tasks.cancel();
    }
}
