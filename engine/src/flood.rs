//! Events that come in floods, of which the log tells now and then.

use std::time::{Duration, Instant};

/// How long the log is silent about such events after it told of one.
const INTERVAL: Duration = Duration::from_secs(5);

/// Events of one kind.
#[derive(Debug)]
pub struct Flood {
    interval: Duration,
    told: Option<Instant>,
    untold: u64,
}

impl Default for Flood {
    fn default() -> Self {
        Self::every(INTERVAL)
    }
}

impl Flood {
    /// Makes one that is told of once in an interval; that of the default is 5 s.
    pub fn every(interval: Duration) -> Self {
        Self { interval, told: None, untold: 0 }
    }

    /// Counts an event. If it is to be told, returns how many before it were not.
    pub fn admit(&mut self) -> Option<u64> {
        self.at(Instant::now())
    }

    fn at(&mut self, now: Instant) -> Option<u64> {
        if self.told.is_some_and(|at| now.duration_since(at) < self.interval) {
            self.untold += 1;
            return None;
        }
        self.told = Some(now);
        Some(std::mem::take(&mut self.untold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_told_of_now_and_then() {
        let (mut flood, start) = (Flood::default(), Instant::now());
        let mut at = |ms| flood.at(start + Duration::from_millis(ms));
        assert_eq!(at(0), Some(0));
        assert!((1..500).all(|n| at(n * 10).is_none()));
        assert_eq!(at(5000), Some(499));
        assert_eq!(at(5010), None);
        assert_eq!(at(60_000), Some(1));
    }
}
