//! The bounded queue of texts that wait for a pass: most urgent first, then oldest.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use engine::{Embedding, Error, ErrorKind, Result, TokenId};
use tokio::sync::oneshot;

/// A text that waits.
#[derive(Debug)]
pub(super) struct Job {
    pub tokens: Arc<[TokenId]>,
    pub deadline: Option<Instant>,
    /// Where its vector goes; closed when nobody waits for it.
    pub reply: oneshot::Sender<Result<Embedding>>,
}

/// Explicit priorities first, the lower the sooner, then the default; then the order of arrival.
type Key = (u64, u64);

/// The queue.
#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<State>,
    arrival: Condvar,
    capacity: usize,
}

#[derive(Debug, Default)]
struct State {
    jobs: BTreeMap<Key, Job>,
    accepted: u64,
    /// Set when nothing is accepted any more, with the reason.
    closed: Option<Error>,
}

impl Queue {
    /// Makes an empty queue.
    pub(super) fn new(capacity: usize) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), arrival: Condvar::new(), capacity })
    }

    /// Adds a text; dropping the ticket takes it out again.
    ///
    /// Errors: overloaded if the queue is full; the reason of [`close`](Queue::close).
    pub(super) fn push(self: &Arc<Self>, job: Job, priority: u64) -> Result<Ticket> {
        let mut state = self.lock();
        if let Some(reason) = &state.closed {
            return Err(reason.clone());
        }
        if state.jobs.len() >= self.capacity {
            let text = format!("Exceeds maximum queue size of {} waiting requests", self.capacity);
            return Err(Error::new(ErrorKind::Overloaded, text));
        }
        state.accepted += 1;
        // 0 is the default level, which lies below every explicit one.
        let key = (priority.wrapping_sub(1), state.accepted);
        state.jobs.insert(key, job);
        self.arrival.notify_one();
        Ok(Ticket { queue: self.clone(), key })
    }

    /// Waits for texts and takes the first ones, together at most `most` tokens, but always one.
    /// None: the queue is closed. Those whose deadline passed are told so, and may be all.
    pub(super) fn take(&self, most: usize) -> Option<Vec<Job>> {
        let mut state = self.lock();
        while state.jobs.is_empty() && state.closed.is_none() {
            state = self.arrival.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.closed.is_some() {
            return None;
        }
        let (now, mut taken, mut tokens) = (Instant::now(), Vec::new(), 0);
        while let Some(first) = state.jobs.first_entry() {
            if first.get().deadline.is_some_and(|deadline| deadline <= now) {
                let text = "Deadline Exceeded: the request's own time is over";
                let error = Error::new(ErrorKind::DeadlineExceeded, text);
                // Whoever asked may have gone just now.
                let _ = first.remove().reply.send(Err(error));
                continue;
            }
            tokens += first.get().tokens.len();
            if tokens > most && !taken.is_empty() {
                break;
            }
            taken.push(first.remove());
        }
        Some(taken)
    }

    /// Accepts nothing any more and fails what waits.
    pub(super) fn close(&self, reason: &Error) {
        let mut state = self.lock();
        state.closed.get_or_insert(reason.clone());
        self.arrival.notify_all();
        let left = std::mem::take(&mut state.jobs);
        drop(state);
        for job in left.into_values() {
            let _ = job.reply.send(Err(reason.clone()));
        }
    }

    /// Returns whether nothing is accepted any more.
    pub(super) fn is_closed(&self) -> bool {
        self.lock().closed.is_some()
    }

    /// Returns how many texts wait.
    pub(super) fn len(&self) -> usize {
        self.lock().jobs.len()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in the queue, held by whoever waits for the vector.
#[derive(Debug)]
pub(super) struct Ticket {
    queue: Arc<Queue>,
    key: Key,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let job = self.queue.lock().jobs.remove(&self.key);
        drop(job);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    type Answer = oneshot::Receiver<Result<Embedding>>;

    fn job(tokens: usize, deadline: Option<Instant>) -> (Job, Answer) {
        let (reply, answer) = oneshot::channel();
        (Job { tokens: vec![0; tokens].into(), deadline, reply }, answer)
    }

    fn lengths(jobs: Option<Vec<Job>>) -> Vec<usize> {
        jobs.unwrap().iter().map(|job| job.tokens.len()).collect()
    }

    #[test]
    fn texts_share_a_pass_within_its_tokens_and_the_urgent_ones_first() {
        let queue = Queue::new(8);
        let push = |tokens, priority| queue.push(job(tokens, None).0, priority).unwrap();
        let tickets = [push(3, 0), push(4, 0), push(4, 0), push(99, 0), push(1, 7), push(2, 6)];
        assert_eq!(lengths(queue.take(10)), [2, 1, 3, 4]);
        assert_eq!(lengths(queue.take(10)), [4]);
        assert_eq!(lengths(queue.take(10)), [99], "one is always taken");
        assert_eq!(queue.len(), 0);
        drop(tickets);
    }

    #[test]
    fn a_text_that_nobody_waits_for_makes_room() {
        let queue = Queue::new(2);
        let first = queue.push(job(1, None).0, 0).unwrap();
        let _second = queue.push(job(2, None).0, 0).unwrap();
        let refused = queue.push(job(3, None).0, 0).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Overloaded);
        drop(first);
        let _third = queue.push(job(3, None).0, 0).unwrap();
        assert_eq!(lengths(queue.take(10)), [2, 3]);
    }

    #[test]
    fn a_late_text_is_told_so_and_computed_by_nobody() {
        let queue = Queue::new(2);
        let (late, mut answer) = job(1, Some(Instant::now()));
        let _late = queue.push(late, 0).unwrap();
        let far = Instant::now() + Duration::from_secs(3600);
        let _other = queue.push(job(2, Some(far)).0, 0).unwrap();
        assert_eq!(lengths(queue.take(10)), [2]);
        let error = answer.try_recv().unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    }

    #[test]
    fn a_closed_queue_fails_what_waits_and_what_comes() {
        let queue = Queue::new(2);
        let (waiting, mut answer) = job(1, None);
        let _ticket = queue.push(waiting, 0).unwrap();
        queue.close(&Error::new(ErrorKind::Unavailable, "over"));
        assert_eq!(answer.try_recv().unwrap().unwrap_err().message(), "over");
        assert_eq!(queue.push(job(1, None).0, 0).unwrap_err().message(), "over");
        assert!(queue.take(1).is_none() && queue.is_closed());
    }
}
