//! Simulated time. No two things that a world does fall on one moment, and hardly ever one of them
//! and one that the product waits for, so that one follows the other as the seed says.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// The time between two moments, in milliseconds: no time for which the product waits is a multiple.
const STEP_MS: u64 = 13;

/// The moments of a world, by their numbers.
pub(super) struct Moments {
    epoch: Instant,
    taken: Mutex<BTreeSet<u64>>,
}

impl Moments {
    pub(super) fn new() -> Self {
        Self { epoch: Instant::now(), taken: Mutex::default() }
    }

    /// Returns what time it is, in milliseconds.
    pub(super) fn now_ms(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_millis()).unwrap()
    }

    /// Returns a moment that is nobody else's, about so much later.
    pub(super) fn after(&self, wait_ms: u64) -> Instant {
        let mut at = (self.now_ms() + wait_ms) / STEP_MS + 1;
        let mut taken = self.taken.lock().unwrap();
        while !taken.insert(at) {
            at += 1;
        }
        self.epoch + Duration::from_millis(at * STEP_MS)
    }

    /// Waits for such a moment.
    pub(super) async fn sleep(&self, wait_ms: u64) {
        sleep_until(self.after(wait_ms)).await;
    }
}
