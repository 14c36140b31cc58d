//! The bounded queue of texts that wait for a pass: most urgent first, then oldest, and now and then
//! the oldest of all, so that nobody waits for ever.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use engine::{Embedding, Error, ErrorKind, Result, TokenId};
use tokio::sync::oneshot;

use crate::generate::OLDEST_EVERY;

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
    /// The ranks of the same jobs by their places in the order of arrival.
    ages: BTreeMap<u64, u64>,
    accepted: u64,
    /// How many were taken; every so many texts it is the oldest whatever its priority.
    taken: u64,
    /// Set when nothing is accepted any more, with the reason.
    closed: Option<Error>,
}

impl State {
    /// Returns the job that is next.
    fn first(&self) -> Option<Key> {
        match self.taken % OLDEST_EVERY == OLDEST_EVERY - 1 {
            true => self.ages.first_key_value().map(|(&number, &rank)| (rank, number)),
            false => self.jobs.first_key_value().map(|(&key, _)| key),
        }
    }

    fn remove(&mut self, key: Key) -> Option<Job> {
        let job = self.jobs.remove(&key)?;
        self.ages.remove(&key.1);
        Some(job)
    }
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
        state.ages.insert(key.1, key.0);
        self.arrival.notify_one();
        Ok(Ticket { queue: self.clone(), key })
    }

    /// Waits until there is a text or the queue is closed; returns whether it is open.
    pub(super) fn wait(&self) -> bool {
        let mut state = self.lock();
        while state.jobs.is_empty() && state.closed.is_none() {
            state = self.arrival.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.closed.is_none()
    }

    /// Takes the first texts, together at most `most` tokens, but one if there are any. Those whose
    /// deadline passed are told so, and may be all.
    pub(super) fn take(&self, most: usize) -> Vec<Job> {
        let mut state = self.lock();
        let (now, mut taken, mut tokens) = (Instant::now(), Vec::new(), 0);
        while let Some(key) = state.first() {
            let Some(first) = state.jobs.get(&key) else { break };
            let is_late = first.deadline.is_some_and(|deadline| deadline <= now);
            let size = first.tokens.len();
            if !is_late && !taken.is_empty() && tokens + size > most {
                break;
            }
            let Some(job) = state.remove(key) else { break };
            if is_late {
                let text = "Deadline Exceeded: the request's own time is over";
                let error = Error::new(ErrorKind::DeadlineExceeded, text);
                // Whoever asked may have gone just now.
                let _ = job.reply.send(Err(error));
                continue;
            }
            (state.taken, tokens) = (state.taken + 1, tokens + size);
            taken.push(job);
        }
        taken
    }

    /// Accepts nothing any more and fails what waits.
    pub(super) fn close(&self, reason: &Error) {
        let mut state = self.lock();
        state.closed.get_or_insert(reason.clone());
        self.arrival.notify_all();
        state.ages.clear();
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
        let job = self.queue.lock().remove(self.key);
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

    fn lengths(jobs: Vec<Job>) -> Vec<usize> {
        jobs.iter().map(|job| job.tokens.len()).collect()
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
        assert!(!queue.wait() && queue.is_closed() && queue.take(1).is_empty());
    }
    #[test]
    fn urgent_texts_cannot_hold_back_others_for_ever() {
        // Texts of two tokens and of three by turns, one or more of them in a pass.
        for most in [1, 4, 9] {
            let queue = Queue::new(100);
            let _patient = queue.push(job(1, None).0, 0).unwrap();
            let (mut order, mut tickets) = (Vec::new(), Vec::new());
            for index in 0..60 {
                tickets.push(queue.push(job(2 + index % 2, None).0, 1).unwrap());
            }
            while queue.len() > 0 {
                order.extend(lengths(queue.take(most)));
                // There is always more that is urgent.
                if order.len() < 60 {
                    tickets.push(queue.push(job(2, None).0, 1).unwrap());
                }
            }
            let place = order.iter().position(|&tokens| tokens == 1).unwrap();
            assert!(place > 5 && place <= 16, "it came in {place}: {order:?}");
        }
    }
}
