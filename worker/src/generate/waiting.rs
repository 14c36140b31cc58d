//! The bounded queue of requests that are not in the batch yet: most urgent first, then oldest. Orders
//! for copies of KV blocks have one of their own, in which the first comes first.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use engine::TokenId;
use engine::{
    Adapter, Context, EmbedRequest, Error, ErrorKind, GenerateRequest, Salt, SequenceHash,
};

use super::exchange::{MAX_ORDERS, Order};
use super::output::Writer;
use crate::guided::Guide;

/// A request that waits.
#[derive(Debug)]
pub(super) struct Job {
    pub work: Work,
    pub context: Context,
    pub output: Arc<Writer>,
    /// The names of the prompt's full blocks.
    pub names: Vec<SequenceHash>,
    /// Set if its blocks may be found by others, and others' by it.
    pub salt: Option<Salt>,
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

    /// Returns the adapter that it asks for.
    pub(super) fn adapter(&self) -> Option<&Adapter> {
        match self {
            Self::Generate(generation) => generation.request.adapter.as_ref(),
            Self::Embed(request) => request.adapter.as_ref(),
        }
    }

    /// Returns the tokens to begin with.
    pub(super) fn tokens(&self) -> &[TokenId] {
        match self {
            Self::Generate(generation) => &generation.request.tokens,
            Self::Embed(request) => &request.tokens,
        }
    }

    /// Returns whether the device has to compute each of its tokens, known or not.
    pub(super) fn needs_all_rows(&self) -> bool {
        match self {
            Self::Generate(generation) => generation.request.prompt_logprobs.is_some(),
            Self::Embed(_) => true,
        }
    }
}

/// Orders requests: explicit priorities first, the lower the sooner, then the default; within
/// one priority the older first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    /// The priority; see [`rank`].
    pub rank: u64,
    /// How many requests were accepted before.
    pub number: u64,
}

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
    /// The ranks of the same jobs by their numbers.
    ages: BTreeMap<u64, u64>,
    deadlines: BTreeSet<(Instant, Key)>,
    /// Those who want copies of blocks, in the order in which they came.
    orders: VecDeque<Order>,
    accepted: u64,
    /// Set when nothing is accepted any more, with the reason.
    closed: Option<Error>,
}

impl State {
    fn remove(&mut self, key: Key) -> Option<Job> {
        let job = self.jobs.remove(&key)?;
        self.ages.remove(&key.number);
        if let Some(deadline) = job.context.deadline() {
            self.deadlines.remove(&(deadline, key));
        }
        Some(job)
    }

    /// Returns the job that is next, or the oldest one.
    fn first(&self, by_age: bool) -> Option<Key> {
        match by_age {
            true => self.ages.first_key_value().map(|(&number, &rank)| Key { rank, number }),
            false => self.jobs.first_key_value().map(|(&key, _)| key),
        }
    }
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
        let key = Key { rank: rank(job.context.priority()), number: state.accepted };
        state.ages.insert(key.number, key.rank);
        if let Some(deadline) = job.context.deadline() {
            state.deadlines.insert((deadline, key));
        }
        state.jobs.insert(key, job);
        self.arrival.notify_one();
        Ok(Ticket { queue: self.clone(), key })
    }

    /// Takes the first job, or the oldest one, if `fits` says so.
    pub(super) fn pop_if(
        &self,
        by_age: bool,
        fits: impl FnOnce(Key, &Job) -> bool,
    ) -> Option<(Key, Job)> {
        let mut state = self.lock();
        let key = state.first(by_age)?;
        if !fits(key, state.jobs.get(&key)?) {
            return None;
        }
        state.remove(key).map(|job| (key, job))
    }

    /// Asks for copies of blocks. Where too many do, those go whose answer nobody waits for.
    ///
    /// Errors: overloaded if too many do; the reason of [`close`](Waiting::close).
    pub(super) fn order(&self, order: Order) -> Result<(), Error> {
        let mut state = self.lock();
        if let Some(reason) = &state.closed {
            return Err(reason.clone());
        }
        if state.orders.len() >= MAX_ORDERS {
            state.orders.retain(|order| !order.reply.is_closed());
        }
        if state.orders.len() >= MAX_ORDERS {
            let text = format!("{MAX_ORDERS} others wait for KV blocks, the most at once");
            return Err(Error::new(ErrorKind::Overloaded, text));
        }
        state.orders.push_back(order);
        self.arrival.notify_one();
        Ok(())
    }

    /// Takes the oldest order.
    pub(super) fn next_order(&self) -> Option<Order> {
        self.lock().orders.pop_front()
    }

    /// Waits until there is a job or an order or the queue is closed; returns whether it is open.
    pub(super) fn wait(&self) -> bool {
        let mut state = self.lock();
        while state.jobs.is_empty() && state.orders.is_empty() && state.closed.is_none() {
            state = self.arrival.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.closed.is_none()
    }

    /// Takes out the jobs whose deadline has passed; none if the queue is closed.
    pub(super) fn expired(&self) -> Option<Vec<Job>> {
        let mut state = self.lock();
        if state.closed.is_some() {
            return None;
        }
        let mut expired = Vec::new();
        if !state.deadlines.is_empty() {
            let now = Instant::now();
            while let Some(&(deadline, key)) = state.deadlines.first()
                && deadline <= now
            {
                state.deadlines.pop_first();
                expired.extend(state.remove(key));
            }
        }
        Some(expired)
    }

    /// Accepts nothing any more and returns what waited.
    pub(super) fn close(&self, reason: Error) -> Vec<Job> {
        let mut state = self.lock();
        state.closed.get_or_insert(reason);
        self.arrival.notify_all();
        state.ages.clear();
        state.deadlines.clear();
        state.orders.clear();
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
    /// Makes a ticket of an empty queue.
    #[cfg(test)]
    pub(super) fn unqueued() -> Self {
        Self { queue: Waiting::new(1), key: Key { rank: 0, number: 0 } }
    }

    /// Leaves the queue, if the job is still there.
    pub(super) fn withdraw(&self) {
        let job = self.queue.lock().remove(self.key);
        if let Some(job) = job {
            let request = job.context.id();
            tracing::debug!(request, "a request left the queue: nobody waits for it");
        }
    }
}
