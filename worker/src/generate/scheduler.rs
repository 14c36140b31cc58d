//! The loop of the scheduler's thread: admit, compute one step, hand out tokens.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::{Error, ErrorKind, KvEvents, TokenId, WorkerTotals};

use super::SchedulerConfig;
use super::counters::Counters;
use super::drawing::Scratch;
use super::prefill_budget::PrefillBudget;
use super::sequence::{Rows, Sequence, Tools, Urgency};
use super::waiting::{Job, Key, Waiting};
use crate::kv::BlockPool;
use crate::kv::tier::Tiers;
use crate::runner::{Entry, Limits, Runner};
use crate::turns::{Client, Demand};

/// The least time between two rounds of waking readers. A model's step takes longer, so its
/// tokens are handed out at once; without a model a step takes microseconds, and waking readers
/// for each token would cost more than the tokens.
const WAKE_INTERVAL: Duration = Duration::from_micros(500);

/// How long a step waits at most for a block from disk when there is nothing else to do.
const FETCH_WAIT: Duration = Duration::from_millis(5);

/// Every so many admissions the oldest request is let in whatever its priority, and stays as
/// urgent as any: so whoever has `n` older requests in front waits for at most `n + 1` times as
/// many admissions.
pub(crate) const OLDEST_EVERY: u64 = 16;

/// What the scheduler shares with the engine that feeds it.
#[derive(Debug)]
pub(super) struct Shared {
    pub waiting: Arc<Waiting>,
    pub counters: Arc<Counters>,
    pub events: KvEvents,
    pub tiers: Tiers,
}

/// What is owned by the scheduler's thread.
pub(super) struct Scheduler {
    pub(super) runner: Box<dyn Runner>,
    pub(super) limits: Limits,
    pub(super) config: SchedulerConfig,
    pub(super) pool: BlockPool,
    pub(super) running: Vec<Sequence>,
    pub(super) totals: WorkerTotals,
    pub(super) tiers: Tiers,
    /// Some sequence waits for a block from below the device.
    pub(super) is_fetching: bool,
    /// Some sequence found no place in the last forward pass.
    pub(super) is_crowded: bool,
    eos_tokens: Vec<TokenId>,
    pub(super) waiting: Arc<Waiting>,
    /// Bytes of a block as it is copied.
    pub(super) block_bytes: usize,
    counters: Arc<Counters>,
    /// Sequences that lost their blocks, the most urgent first. Nothing new is let in while
    /// there are as many as the batch has places.
    parked: BTreeMap<Urgency, Sequence>,
    forks: Vec<Sequence>,
    scratch: Scratch,
    admissions: u64,
    last_wake: Option<Instant>,
    pub(super) prefill_budget: PrefillBudget,
    /// The model's place among those on the same threads.
    pub(super) seat: Client,
}

impl Scheduler {
    pub(super) fn new(
        runner: Box<dyn Runner>,
        eos_tokens: Vec<TokenId>,
        config: SchedulerConfig,
        shared: Shared,
    ) -> Self {
        let limits = runner.limits();
        let mut pool = BlockPool::new(limits.blocks, limits.block_size, shared.events);
        if !shared.tiers.is_empty() {
            pool.keep_evicted();
        }
        let block_bytes = runner.block_kind().map_or(0, |kind| kind.bytes);
        let (prefill_budget, seat) =
            (PrefillBudget::new(config.mixed_pass_stretch), runner.turns().join());
        Self {
            pool,
            runner,
            limits,
            config,
            prefill_budget,
            seat,
            running: Vec::new(),
            totals: WorkerTotals::default(),
            tiers: shared.tiers,
            is_fetching: false,
            is_crowded: false,
            eos_tokens,
            waiting: shared.waiting,
            block_bytes,
            counters: shared.counters,
            parked: BTreeMap::new(),
            forks: Vec::new(),
            scratch: Scratch::default(),
            admissions: 0,
            last_wake: None,
        }
    }

    /// Runs until the queue is closed.
    pub(super) fn run(&mut self) {
        while let Some(expired) = self.waiting.expired() {
            expired.iter().for_each(late);
            self.hand_out();
            self.leave();
            self.admit();
            if self.running.is_empty() {
                // Nobody waits for passes of others here.
                self.seat.tell(Demand::default());
            }
            self.publish();
            if self.running.is_empty() {
                if !self.waiting.wait() {
                    return;
                }
                continue;
            }
            self.step();
            self.publish();
            self.wake_readers();
        }
    }

    fn wake_readers(&mut self) {
        let now = Instant::now();
        if self.last_wake.is_none_or(|last| now - last >= WAKE_INTERVAL) {
            self.running.iter().for_each(|sequence| sequence.output.wake());
            self.last_wake = Some(now);
        }
    }

    /// Ends all sequences with an error.
    pub(super) fn fail_all(&mut self, reason: &Error) {
        // Readers first: after a panic the blocks' books may be broken.
        let all = self.running.iter().chain(&self.forks).chain(self.parked.values());
        all.for_each(|sequence| sequence.output.fail(reason.clone()));
        self.parked.clear();
        self.fail_running(reason);
        self.publish();
    }

    /// Ends the sequences of the batch with an error.
    fn fail_running(&mut self, reason: &Error) {
        let forks = std::mem::take(&mut self.forks);
        for mut sequence in std::mem::take(&mut self.running).into_iter().chain(forks) {
            sequence.output.fail(reason.clone());
            sequence.table.release(&mut self.pool);
        }
    }

    /// Takes out the sequences that ended, whose reader left or whose time is up.
    fn leave(&mut self) {
        let sequences = || self.running.iter().chain(self.parked.values());
        let has_deadlines = sequences().any(|sequence| sequence.context.deadline().is_some());
        let now = has_deadlines.then(Instant::now);
        let is_over = |sequence: &mut Sequence| {
            let deadline = sequence.context.deadline();
            if deadline.zip(now).is_some_and(|(deadline, now)| deadline <= now) {
                let text = "the deadline passed while generating";
                sequence.output.fail(Error::new(ErrorKind::DeadlineExceeded, text));
                return true;
            }
            if !sequence.is_over && sequence.output.is_dropped() {
                let request = sequence.context.id();
                tracing::debug!(request, "a sequence left the batch: nobody reads it");
                return true;
            }
            sequence.is_over
        };
        for mut sequence in self.running.extract_if(.., is_over) {
            sequence.table.release(&mut self.pool);
        }
        if !self.parked.is_empty() {
            self.parked.retain(|_, sequence| !is_over(sequence));
        }
    }

    /// Lets waiting sequences into the batch in their order, those first that were in it before,
    /// until one does not fit.
    fn admit(&mut self) {
        loop {
            let by_age = self.admissions % OLDEST_EVERY == OLDEST_EVERY - 1;
            let parked = match by_age {
                true => self.parked.keys().min_by_key(|(key, _)| key.number).copied(),
                false => self.parked.keys().next().copied(),
            };
            let is_first = |key: Key| match parked {
                Some((parked, _)) if by_age => key.number < parked.number,
                Some((parked, _)) => key < parked,
                None => true,
            };
            let is_full = self.parked.len() >= self.config.max_running_sequences;
            let fits = |key: Key, job: &Job| {
                is_first(key) && !is_full && (job.output.is_dropped() || self.fits(job))
            };
            if let Some((key, job)) = self.waiting.pop_if(by_age, fits) {
                if !job.output.is_dropped() {
                    self.start(key, job, by_age);
                }
                continue;
            }
            match parked {
                Some(urgency) if self.fits_again(urgency) => self.resume(urgency, by_age),
                _ => return,
            }
        }
    }

    /// Returns whether the first chunk of a request has room.
    fn fits(&self, job: &Job) -> bool {
        let tokens = job.work.tokens();
        let found = match job.salt {
            Some(salt) if !job.work.needs_all_rows() => self.pool.prefix(&job.names, tokens, salt),
            _ => (0, 0),
        };
        let chunk = self.config.batch_tokens.min(self.limits.batch_tokens);
        let end = (found.0 * self.limits.block_size + chunk).min(tokens.len());
        self.has_room(job.work.sequences() as usize, end, found)
    }

    /// Returns whether all of a sequence that lost its blocks has room.
    fn fits_again(&self, urgency: Urgency) -> bool {
        let Some(sequence) = self.parked.get(&urgency) else {
            return false;
        };
        let found = match sequence.table.salt() {
            Some(salt) if sequence.may_skip() => {
                self.pool.prefix(sequence.table.names(), sequence.tokens(), salt)
            }
            _ => (0, 0),
        };
        self.has_room(sequence.places(), sequence.tokens().len(), found)
    }

    /// Returns whether sequences have places and the tokens up to `end` have blocks, of which
    /// some are found and some of those are held by nobody.
    fn has_room(&self, places: usize, end: usize, (found, idle): (usize, usize)) -> bool {
        let taken: usize = self.running.iter().map(Sequence::places).sum();
        let needed = end.div_ceil(self.limits.block_size) - found + idle;
        let kept = (self.pool.total() as f64 * f64::from(self.config.watermark)) as usize;
        taken + places <= self.config.max_running_sequences
            && (self.running.is_empty() || needed + kept <= self.pool.available())
    }

    fn start(&mut self, key: Key, job: Job, by_age: bool) {
        let now = Instant::now();
        if job.context.deadline().is_some_and(|deadline| deadline <= now) {
            return late(&job);
        }
        self.admissions += 1;
        job.output.admitted(now - job.accepted);
        let sequence = Sequence::new(job, key, &self.limits);
        if sequence.may_skip() && sequence.table.salt().is_some() {
            self.totals.prefix_query_tokens += sequence.tokens().len() as u64;
        }
        self.join(sequence, by_age);
    }

    fn resume(&mut self, urgency: Urgency, by_age: bool) {
        if let Some(sequence) = self.parked.remove(&urgency) {
            self.admissions += 1;
            self.join(sequence, by_age);
        }
    }

    fn join(&mut self, mut sequence: Sequence, by_age: bool) {
        sequence.is_preempted = false;
        if by_age {
            sequence.urgency.0.rank = 0;
        }
        self.totals.prefix_hit_tokens += sequence.attach(&mut self.pool) as u64;
        self.running.push(sequence);
    }

    fn publish(&self) {
        self.counters.publish(self.running.len(), self.parked.len(), self.pool.counts());
        self.counters.add_up(self.totals);
    }

    /// Computes one forward pass and hands out what it gave.
    fn step(&mut self) {
        let outcome = self.plan().and_then(|()| {
            self.park();
            self.forward()
        });
        if let Err(error) = outcome {
            tracing::error!(%error, "a forward pass failed; the running requests fail");
            self.fail_running(&Error::from(error));
            // Nobody knows what is left in the device's memory.
            self.pool.clear();
        }
    }

    /// Takes the sequences that lost their blocks out of the batch.
    fn park(&mut self) {
        let is_parked = |sequence: &mut Sequence| sequence.is_preempted && !sequence.is_over;
        for sequence in self.running.extract_if(.., is_parked) {
            // What it has drawn may be read while it waits for its next place.
            sequence.output.wake();
            self.parked.insert(sequence.urgency, sequence);
        }
    }

    fn forward(&mut self) -> Result<(), crate::Error> {
        let planned = self.running.iter().filter(|sequence| sequence.planned > 0);
        let batch: Vec<Entry<'_>> = planned.map(Sequence::entry).collect();
        if batch.is_empty() {
            if std::mem::take(&mut self.is_fetching) {
                self.tiers.wait(FETCH_WAIT);
            }
            return Ok(());
        }
        self.is_fetching = false;
        self.totals.steps += 1;
        self.totals.batched_sequences += batch.len() as u64;
        // The wait for other models is no part of a pass's time, and what follows keeps none waiting.
        let turn = self.seat.begin();
        let started = Instant::now();
        let outputs = self.runner.forward(&batch)?;
        drop(turn);
        let mut rows = Rows::new(&outputs);
        let mut tools = Tools {
            pool: &mut self.pool,
            eos_tokens: &self.eos_tokens,
            scratch: &mut self.scratch,
            forks: &mut self.forks,
            accepted: &mut self.totals.accepted_tokens,
        };
        let (mut drawn, mut prompt) = (0, 0);
        for sequence in self.running.iter_mut().filter(|sequence| sequence.planned > 0) {
            match sequence.is_decoding() {
                true => drawn += sequence.planned,
                false => prompt += sequence.planned,
            }
            sequence.served = self.totals.steps;
            sequence.receive(&mut rows, &mut tools);
        }
        self.running.append(&mut self.forks);
        self.totals.decode_tokens += drawn as u64;
        self.totals.prefill_tokens += prompt as u64;
        let time = self.runner.pass_time().unwrap_or_else(|| started.elapsed());
        self.prefill_budget.observe(drawn, prompt, time);
        Ok(())
    }
}

/// Tells a waiting request that its time is up.
fn late(job: &Job) {
    let text = "the deadline passed while the request waited";
    job.output.fail(Error::new(ErrorKind::DeadlineExceeded, text));
}
