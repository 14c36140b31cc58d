//! How long to wait before the next attempt: doubling, bounded, and not all at the same time.

use std::time::Duration;

use tokio::time::sleep;

/// The waits between attempts on a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// The wait after the first failure; default 100 ms.
    pub first: Duration,
    /// The longest wait; default 5 s.
    pub longest: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { first: Duration::from_millis(100), longest: Duration::from_secs(5) }
    }
}

impl Backoff {
    /// Returns the wait after `failures` failures in a row, shortened by up to a quarter:
    /// `draw` is between 0 and 1.
    pub fn wait(&self, failures: u32, draw: f64) -> Duration {
        let doubled = self.first.saturating_mul(1 << failures.saturating_sub(1).min(20));
        doubled.min(self.longest).mul_f64(1.0 - draw.clamp(0.0, 1.0) / 4.0)
    }

    /// Waits after `failures` failures in a row.
    pub(super) async fn sleep(&self, failures: u32) {
        sleep(self.wait(failures, fastrand::f64())).await;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_wait_never_shrinks_with_failures_and_never_exceeds_the_longest(
            failures in 1_u32..100,
            draw in 0.0..1.0,
        ) {
            let backoff = Backoff::default();
            let wait = backoff.wait(failures, draw);
            prop_assert!(wait <= backoff.longest && wait >= backoff.first.mul_f64(0.75));
            prop_assert!(backoff.wait(failures + 1, draw) >= wait);
        }
    }
}
