//! The loop of the scheduler's thread: admit, compute one step, hand out tokens.
//!
//! A step takes one token of every sequence that is decoding and then chunks of prompts, oldest
//! first, as far as the token budget goes; so a long prompt never stops the others.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use engine::{Error, ErrorKind, TokenId, WorkerLoad};

use super::SchedulerConfig;
use super::sampler::Scratch;
use super::sequence::{Rows, Sequence};
use super::waiting::{Job, Waiting};
use crate::kv::BlockPool;
use crate::runner::{Entry, Limits, Runner};

/// The least time between two rounds of waking readers. A model's step takes longer, so its
/// tokens are handed out at once; without a model a step takes microseconds, and waking readers
/// for each token would cost more than the tokens.
const WAKE_INTERVAL: Duration = Duration::from_micros(500);

/// Tokens of prompts that are scored in one step; each costs a row of logits.
const SCORED_TOKENS: usize = 64;

/// What others may know of the scheduler.
#[derive(Debug)]
pub(super) struct Counters {
    running: AtomicU32,
    used_blocks: AtomicU32,
    total_blocks: u32,
    block_tokens: u32,
}

impl Counters {
    pub(super) fn new(limits: &Limits) -> Self {
        let (total_blocks, block_tokens) = (limits.blocks as u32, limits.block_size as u32);
        let (running, used_blocks) = (AtomicU32::new(0), AtomicU32::new(0));
        Self { running, used_blocks, total_blocks, block_tokens }
    }

    /// Returns the load, given how many requests wait.
    pub(super) fn load(&self, waiting: usize) -> WorkerLoad {
        WorkerLoad {
            waiting_requests: waiting as u32,
            running_sequences: self.running.load(Ordering::Relaxed),
            used_blocks: self.used_blocks.load(Ordering::Relaxed),
            total_blocks: self.total_blocks,
            block_tokens: self.block_tokens,
        }
    }
}

/// What is owned by the scheduler's thread.
pub(super) struct Scheduler {
    runner: Box<dyn Runner>,
    limits: Limits,
    eos_tokens: Vec<TokenId>,
    config: SchedulerConfig,
    waiting: Arc<Waiting>,
    counters: Arc<Counters>,
    pool: BlockPool,
    running: Vec<Sequence>,
    scratch: Scratch,
    last_wake: Option<Instant>,
}

impl Scheduler {
    pub(super) fn new(
        runner: Box<dyn Runner>,
        eos_tokens: Vec<TokenId>,
        config: SchedulerConfig,
        waiting: Arc<Waiting>,
        counters: Arc<Counters>,
    ) -> Self {
        let limits = runner.limits();
        Self {
            pool: BlockPool::new(limits.blocks),
            runner,
            limits,
            eos_tokens,
            config,
            waiting,
            counters,
            running: Vec::new(),
            scratch: Scratch::default(),
            last_wake: None,
        }
    }

    /// Runs until the queue is closed.
    pub(super) fn run(&mut self) {
        while !self.waiting.is_closed() {
            self.leave();
            self.admit();
            self.publish();
            if self.running.is_empty() {
                if !self.waiting.wait() {
                    return;
                }
                continue;
            }
            self.step();
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
        for mut sequence in std::mem::take(&mut self.running) {
            sequence.output.fail(reason.clone());
            self.pool.give_back(std::mem::take(&mut sequence.blocks));
        }
        self.publish();
    }

    /// Takes out the sequences that ended, whose reader left or whose time is up.
    fn leave(&mut self) {
        let has_deadlines = self.running.iter().any(|sequence| sequence.deadline.is_some());
        let now = has_deadlines.then(Instant::now);
        for sequence in &mut self.running {
            if sequence.deadline.zip(now).is_some_and(|(deadline, now)| deadline <= now) {
                let text = "the deadline passed while generating";
                sequence.output.fail(Error::new(ErrorKind::DeadlineExceeded, text));
                sequence.is_over = true;
            }
        }
        let is_over = |sequence: &mut Sequence| sequence.is_over || sequence.output.is_dropped();
        for mut sequence in self.running.extract_if(.., is_over) {
            self.pool.give_back(std::mem::take(&mut sequence.blocks));
        }
    }

    /// Lets waiting requests into the batch, in their order, while they fit whole.
    fn admit(&mut self) {
        loop {
            let free_blocks = self.pool.free();
            let free_places = self.config.max_running_sequences - self.running.len();
            let fits = |job: &Job| {
                let sequences = job.work.sequences() as usize;
                job.output.is_dropped()
                    || sequences <= free_places && sequences * job.blocks <= free_blocks
            };
            let Some(job) = self.waiting.pop_if(fits) else {
                return;
            };
            if !job.output.is_dropped() {
                self.start(job);
            }
        }
    }

    fn start(&mut self, job: Job) {
        let now = Instant::now();
        if job.context.deadline().is_some_and(|deadline| deadline <= now) {
            let text = "the deadline passed while the request waited";
            return job.output.fail(Error::new(ErrorKind::DeadlineExceeded, text));
        }
        job.output.admitted(now - job.accepted);
        for index in 0..job.work.sequences() {
            match self.pool.take(job.blocks) {
                Some(blocks) => {
                    let sequence = Sequence::new(&job, index, blocks, &self.limits);
                    self.running.push(sequence);
                }
                // `admit` counted the blocks; without them the request could only fail.
                None => {
                    return job.output.fail(Error::internal("KV blocks were miscounted"));
                }
            }
        }
    }

    fn publish(&self) {
        let used = self.pool.total() - self.pool.free();
        self.counters.running.store(self.running.len() as u32, Ordering::Relaxed);
        self.counters.used_blocks.store(used as u32, Ordering::Relaxed);
    }

    /// Computes one forward pass and hands out what it gave.
    fn step(&mut self) {
        let mut budget = self.limits.batch_tokens.min(self.config.batch_tokens);
        for sequence in &mut self.running {
            sequence.planned = if sequence.is_decoding() { budget.min(1) } else { 0 };
            budget -= sequence.planned;
        }
        let mut scored = SCORED_TOKENS;
        for sequence in self.running.iter_mut().filter(|sequence| !sequence.is_decoding()) {
            sequence.planned = sequence.prompt_left().min(budget);
            if sequence.scores_prompt() {
                sequence.planned = sequence.planned.min(scored);
                scored -= sequence.planned;
            }
            budget -= sequence.planned;
        }
        let planned = self.running.iter().filter(|sequence| sequence.planned > 0);
        let batch: Vec<Entry<'_>> = planned.map(Sequence::entry).collect();
        match self.runner.forward(&batch) {
            Ok(outputs) => {
                let mut rows = Rows::new(&outputs);
                for sequence in self.running.iter_mut().filter(|sequence| sequence.planned > 0) {
                    sequence.receive(&mut rows, &self.eos_tokens, &mut self.scratch);
                }
            }
            Err(error) => {
                tracing::error!(%error, "a forward pass failed; the running requests fail");
                self.fail_all(&Error::from(error));
            }
        }
        self.rotate();
    }

    /// Moves the sequences that got no place in this step to the front of the next one.
    fn rotate(&mut self) {
        if self.running.iter().any(|sequence| sequence.planned == 0) {
            self.running.sort_by_key(|sequence| sequence.planned > 0 && sequence.is_decoding());
        }
    }
}
