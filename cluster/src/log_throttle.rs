//! What was told of failures lately, so that one that goes on does not fill the log.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The time after which a failure that goes on is told again.
const AGAIN: Duration = Duration::from_secs(600);

/// The most failures that are remembered; while there are so many, no others are told.
const MAX_REMEMBERED: usize = 256;

/// Whose failures were told, with their reasons.
#[derive(Default)]
pub struct LogThrottle {
    told: Mutex<BTreeMap<(String, String), Instant>>,
}

impl fmt::Debug for LogThrottle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogThrottle").finish_non_exhaustive()
    }
}

impl LogThrottle {
    /// Returns whether a failure is to be told: it is new, or was told a while ago.
    pub fn is_due(&self, who: &str, why: &str) -> bool {
        self.is_due_at(who, why, Instant::now())
    }

    /// Forgets the failures of somebody who is well again, so that the next one is news.
    pub fn forget(&self, who: &str) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.retain(|(other, _), _| other != who);
    }

    fn is_due_at(&self, who: &str, why: &str, now: Instant) -> bool {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let is_fresh = |at: &Instant| now.saturating_duration_since(*at) < AGAIN;
        let key = (who.to_owned(), why.to_owned());
        if told.get(&key).is_some_and(is_fresh) {
            return false;
        }
        if told.len() >= MAX_REMEMBERED {
            told.retain(|_, at| is_fresh(at));
        }
        let has_room = told.len() < MAX_REMEMBERED;
        if has_room {
            told.insert(key, now);
        }
        has_room
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_that_goes_on_is_told_now_and_then() {
        let (throttle, start) = (LogThrottle::default(), Instant::now());
        let due = |who, why, secs| throttle.is_due_at(who, why, start + Duration::from_secs(secs));
        assert!(due("a", "refused", 0));
        assert!((1..600).all(|secs| !due("a", "refused", secs)));
        assert!(due("a", "silent", 1) && due("b", "refused", 1), "another one is news");
        assert!(due("a", "refused", 600) && !due("a", "refused", 601));
        throttle.forget("a");
        assert!(due("a", "refused", 602), "one that was well in between is news");
        assert!(!due("b", "refused", 599));
    }

    #[test]
    fn many_strangers_do_not_fill_the_log() {
        let (throttle, start) = (LogThrottle::default(), Instant::now());
        let due = |n: usize, at| throttle.is_due_at(&n.to_string(), "refused", at);
        assert_eq!((0..10_000).filter(|n| due(*n, start)).count(), MAX_REMEMBERED);
        assert!(due(10_000, start + AGAIN));
    }
}
