//! Waiting for a worker when a model has none: for a time, and not too many at once.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;
use tokio::time::Instant;

/// How long the requests of one model wait, and how many of them do.
#[derive(Debug)]
pub(super) struct WaitLimiter {
    wait: Duration,
    most: u32,
    waiting: AtomicU32,
    gauge: Gauge,
}

/// A request that waits, as long as this lives.
pub(super) struct Place<'a>(&'a WaitLimiter);

impl WaitLimiter {
    /// Makes it; the gauge tells how many requests wait, of all models that share it.
    pub(super) fn new(wait: Duration, most: u32, gauge: Gauge) -> Self {
        Self { wait, most, waiting: AtomicU32::new(0), gauge }
    }

    /// Returns whether nobody may wait.
    pub(super) fn is_none(&self) -> bool {
        self.wait.is_zero() || self.most == 0
    }

    /// Returns when the waiting of a request ends that begins now.
    pub(super) fn end(&self) -> Instant {
        Instant::now() + self.wait
    }

    /// Lets a request wait; none: it may not, or too many do.
    pub(super) fn enter(&self) -> Option<Place<'_>> {
        if self.is_none() {
            return None;
        }
        if self.waiting.fetch_add(1, Relaxed) >= self.most {
            self.waiting.fetch_sub(1, Relaxed);
            return None;
        }
        self.gauge.inc();
        Some(Place(self))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Relaxed);
        self.0.gauge.dec();
    }
}
