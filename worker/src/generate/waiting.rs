//! The bounded queue of requests that are not in the batch yet: most urgent first, then oldest.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use engine::{Context, EmbedRequest, Error, ErrorKind, GenerateRequest};

use super::output::Output;
use crate::guided::Guide;

/// A request that waits.
#[derive(Debug)]
pub(super) struct Job {
    pub work: Work,
    pub context: Context,
    pub output: Arc<Output>,
    /// KV blocks of each continuation.
    pub blocks: usize,
    pub accepted: Instant,
}

/// What is asked for.
#[derive(Debug)]
pub(super) enum Work {
    /// Continuations.
    Generate(Box<Generation>),
    /// The vector of a text.
    Embed(EmbedRequest),
}

/// A request for continuations and the constraint on each.
#[derive(Debug)]
pub(super) struct Generation {
    pub request: GenerateRequest,
    pub guide: Option<Guide>,
}

impl Work {
    /// Returns how many sequences it takes.
    pub(super) fn sequences(&self) -> u32 {
        match self {
            Self::Generate(generation) => generation.request.choices.get(),
            Self::Embed(_) => 1,
        }
    }
}

/// Orders jobs: explicit priorities first, the lower the sooner, then the default; see [`rank`].
type Key = (u64, u64);

/// The queue.
#[derive(Debug)]
pub(super) struct Waiting {
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

impl Waiting {
    /// Makes an empty queue.
    pub(super) fn new(capacity: usize) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), arrival: Condvar::new(), capacity })
    }

    /// Adds a job.
    ///
    /// Errors: overloaded if the queue is full; the reason of [`close`](Waiting::close).
    pub(super) fn push(self: &Arc<Self>, job: Job) -> Result<Ticket, Error> {
        let mut state = self.lock();
        if let Some(reason) = &state.closed {
            return Err(reason.clone());
        }
        if state.jobs.len() >= self.capacity {
            return Err(Error::new(
                ErrorKind::Overloaded,
                format!("Exceeds maximum queue size of {} waiting requests", self.capacity),
            ));
        }
        state.accepted += 1;
        let key = (rank(job.context.priority()), state.accepted);
        state.jobs.insert(key, job);
        self.arrival.notify_one();
        Ok(Ticket { queue: self.clone(), key })
    }

    /// Takes the first job if `fits` says so.
    pub(super) fn pop_if(&self, fits: impl FnOnce(&Job) -> bool) -> Option<Job> {
        let mut state = self.lock();
        let first = state.jobs.first_entry()?;
        fits(first.get()).then(|| first.remove())
    }

    /// Waits until there is a job or the queue is closed; returns whether it is open.
    pub(super) fn wait(&self) -> bool {
        let mut state = self.lock();
        while state.jobs.is_empty() && state.closed.is_none() {
            state = self.arrival.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.closed.is_none()
    }

    /// Accepts nothing any more and returns what waited.
    pub(super) fn close(&self, reason: Error) -> Vec<Job> {
        let mut state = self.lock();
        state.closed.get_or_insert(reason);
        self.arrival.notify_all();
        std::mem::take(&mut state.jobs).into_values().collect()
    }

    /// Returns whether nothing is accepted any more.
    pub(super) fn is_closed(&self) -> bool {
        self.lock().closed.is_some()
    }

    /// Returns how many jobs wait.
    pub(super) fn len(&self) -> usize {
        self.lock().jobs.len()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the rank of a priority: 0 is the default level, which lies below every explicit one.
fn rank(priority: u64) -> u64 {
    priority.wrapping_sub(1)
}

/// A place in the queue, held by the reader of the answer.
#[derive(Debug)]
pub(super) struct Ticket {
    queue: Arc<Waiting>,
    key: Key,
}

impl Ticket {
    /// Leaves the queue, if the job is still there.
    pub(super) fn withdraw(&self) {
        let job = self.queue.lock().jobs.remove(&self.key);
        drop(job);
    }
}
