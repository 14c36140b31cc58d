//! How long bytes that are due may take to come: a message or body may neither stop nor drip. Once
//! the server shuts down it waits for a moment only.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use engine::Tasks;
use futures_util::future::BoxFuture;
use tokio::time::{Instant, Sleep, sleep_until};

/// How long nothing may come.
const STALL: Duration = Duration::from_secs(30);

/// The same in a shutdown.
const STALL_AT_END: Duration = Duration::from_secs(1);

/// How many bytes are to come in how long, after as long again in which fewer may.
const RATE: (usize, Duration) = (4096, Duration::from_secs(30));

/// Why bytes that are due are no longer waited for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Slow {
    /// Nothing came for so long.
    Stalled(Duration),
    /// Too few bytes came.
    Dripping,
}

impl std::fmt::Display for Slow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Stalled(time) => {
                write!(f, "stopped coming: nothing for {} seconds", time.as_secs())
            }
            Self::Dripping => {
                let (bytes, time) = RATE;
                write!(
                    f,
                    "comes too slowly: fewer than {bytes} bytes in {} seconds",
                    time.as_secs()
                )
            }
        }
    }
}

/// Waits for bytes, but not for ever.
#[derive(Default)]
pub(crate) struct StallTimer {
    /// When bytes came last, as far as somebody has waited since.
    heard: Option<Instant>,
    /// The stretch of time in which bytes are counted, if some are due: since when, and whether
    /// fewer may come in it.
    stretch: Option<(Instant, bool)>,
    bytes: usize,
    timer: Option<Pin<Box<Sleep>>>,
    /// The beginning of the shutdown, once somebody waits, and when it was seen.
    ending: Option<BoxFuture<'static, ()>>,
    ended: Option<Instant>,
}

impl StallTimer {
    /// Counts bytes that came.
    pub(crate) fn came(&mut self, bytes: usize) {
        self.heard = None;
        self.bytes = self.bytes.saturating_add(bytes);
        // Nobody may have asked for more in between, which is not the client's fault.
        if let Some((start, _)) = self.stretch
            && start.elapsed() >= RATE.1
        {
            self.begin(Instant::now(), false);
        }
    }

    /// Says that nothing is due until more bytes come.
    pub(crate) fn rest(&mut self) {
        (self.stretch, self.timer) = (None, None);
    }

    fn begin(&mut self, now: Instant, is_first: bool) {
        (self.stretch, self.bytes) = (Some((now, is_first)), 0);
    }

    /// Is ready when bytes that are due have taken too long; `accepting` is cancelled when the
    /// server shuts down.
    pub(crate) fn poll_slow(&mut self, accepting: &Tasks, cx: &mut Context<'_>) -> Poll<Slow> {
        let mut now = Instant::now();
        if self.stretch.is_none() {
            self.begin(now, true);
        }
        loop {
            let stall = self.poll_stall(now, accepting, cx);
            let is_first = self.stretch.is_none_or(|(_, is_first)| is_first);
            let end = self.stretch.map_or(now, |(start, _)| start) + RATE.1;
            if now >= stall.0 {
                return Poll::Ready(Slow::Stalled(stall.1));
            }
            if now >= end {
                if self.bytes < RATE.0 && !is_first {
                    return Poll::Ready(Slow::Dripping);
                }
                self.begin(now, false);
                continue;
            }
            let due = stall.0.min(end);
            let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(due)));
            if timer.deadline() != due {
                timer.as_mut().reset(due);
            }
            ready!(timer.as_mut().poll(cx));
            now = Instant::now();
        }
    }

    /// Returns when nothing will have come for too long, and how long that is.
    fn poll_stall(
        &mut self,
        now: Instant,
        accepting: &Tasks,
        cx: &mut Context<'_>,
    ) -> (Instant, Duration) {
        if self.ended.is_none() {
            let ending = self.ending.get_or_insert_with(|| Box::pin(accepting.cancelled()));
            if ending.as_mut().poll(cx).is_ready() {
                self.ended = Some(now);
            }
        }
        let heard = *self.heard.get_or_insert(now);
        match self.ended {
            None => (heard + STALL, STALL),
            Some(ended) => (heard.max(ended) + STALL_AT_END, STALL_AT_END),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns how long somebody is waited for who sends so many bytes every so often, and why no
    /// longer.
    async fn waits(bytes: usize, pause: Duration, accepting: Tasks) -> (Slow, Duration) {
        let (began, mut patience) = (Instant::now(), StallTimer::default());
        loop {
            let slow = std::future::poll_fn(|cx| patience.poll_slow(&accepting, cx));
            match tokio::time::timeout(pause, slow).await {
                Ok(slow) => return (slow, began.elapsed()),
                Err(_) if began.elapsed() > 100 * STALL => panic!("it is waited for ever"),
                Err(_) => patience.came(bytes),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_stops_or_drips_is_given_up() {
        let seconds = Duration::from_secs;
        let (slow, time) = waits(1, seconds(60), Tasks::new()).await;
        assert_eq!((slow, time.as_secs()), (Slow::Stalled(STALL), 30));
        let (slow, time) = waits(1, seconds(29), Tasks::new()).await;
        assert_eq!((slow, time.as_secs()), (Slow::Dripping, 60));
        let (slow, time) = waits(100, seconds(1), Tasks::new()).await;
        assert_eq!((slow, time.as_secs()), (Slow::Dripping, 60));
        let steady = waits(2000, seconds(7), Tasks::new());
        assert!(tokio::time::timeout(seconds(3000), steady).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_shutdown_waits_for_a_moment() {
        let accepting = Tasks::new();
        let stop = async {
            tokio::time::sleep(Duration::from_secs(10)).await;
            accepting.cancel();
        };
        let waits = waits(1, Duration::from_secs(7), accepting.clone());
        let ((slow, time), ()) = tokio::join!(waits, stop);
        assert_eq!((slow, time.as_secs()), (Slow::Stalled(STALL_AT_END), 11));
    }
}
