//! A rate over a minute: a bucket that fills steadily and may go into debt.
//!
//! Requests take one before they run and are refused when it is not there. Tokens are taken as
//! they are made, so a request may leave a debt, which the next requests wait for.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What is left of a minute's rate.
#[derive(Debug)]
pub(super) struct Bucket {
    per_minute: f64,
    level: Mutex<(f64, Instant)>,
}

impl Bucket {
    /// Makes a full bucket.
    pub(super) fn new(per_minute: u64, now: Instant) -> Self {
        let per_minute = per_minute as f64;
        Self { per_minute, level: Mutex::new((per_minute, now)) }
    }

    /// Takes `amount` if at least `least` is there.
    ///
    /// Errors: the time after which `least` will be there.
    pub(super) fn take(&self, amount: f64, least: f64, now: Instant) -> Result<(), Duration> {
        let mut level = self.level.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = now.saturating_duration_since(level.1).as_secs_f64();
        level.0 = (level.0 + passed * self.per_minute / 60.0).min(self.per_minute);
        level.1 = level.1.max(now);
        if level.0 >= least {
            level.0 -= amount;
            return Ok(());
        }
        let seconds = (least - level.0) * 60.0 / self.per_minute;
        Err(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
    }

    /// Takes what was used, into debt if need be.
    pub(super) fn charge(&self, amount: u64, now: Instant) {
        let _ = self.take(amount as f64, f64::NEG_INFINITY, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_bucket_gives_a_minutes_worth_and_then_the_rate() {
        let start = Instant::now();
        let bucket = Bucket::new(6, start);
        assert!((0..6).all(|_| bucket.take(1.0, 1.0, start).is_ok()));
        assert_eq!(bucket.take(1.0, 1.0, start), Err(Duration::from_secs(10)));
        let later = start + Duration::from_secs(10);
        assert_eq!(bucket.take(1.0, 1.0, later), Ok(()));
        assert!(bucket.take(1.0, 1.0, later).is_err());
        let hour = start + Duration::from_secs(3600);
        assert!((0..6).all(|_| bucket.take(1.0, 1.0, hour).is_ok()));
        assert!(bucket.take(1.0, 1.0, hour).is_err(), "no more than a minute's worth is saved");
    }

    #[test]
    fn a_debt_is_waited_for() {
        let start = Instant::now();
        let bucket = Bucket::new(60, start);
        bucket.charge(90, start);
        assert_eq!(bucket.take(0.0, 1.0, start), Err(Duration::from_secs(31)));
        assert_eq!(bucket.take(0.0, 1.0, start + Duration::from_secs(31)), Ok(()));
    }

    #[test]
    fn time_that_goes_back_changes_nothing() {
        let start = Instant::now() + Duration::from_secs(60);
        let bucket = Bucket::new(1, start);
        assert_eq!(bucket.take(1.0, 1.0, start), Ok(()));
        assert!(bucket.take(1.0, 1.0, start - Duration::from_secs(60)).is_err());
        assert!(bucket.take(1.0, 1.0, start).is_err());
    }
}
