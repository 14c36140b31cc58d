//! The engine: checks requests, queues them, and owns the scheduler's thread.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use async_trait::async_trait;
use engine::{
    Adapter, AdapterId, Context, EmbedRequest, Embedding, Engine, Error, ErrorKind, GenerateOutput,
    GenerateRequest, KvEventReader, KvEvents, KvLayout, KvStore, OutputStream, Result, TokenId,
    Vocabulary, WorkerLoad, WorkerTotals, prefix_hashes,
};

use super::SchedulerConfig;
use super::counters::Counters;
use super::exchange::{Exchange, salt};
use super::guides::{Constraints, Guides, STACK_BYTES};
use super::intake::Intake;
use super::output::{News, Reader, Writer};
use super::scheduler::{Scheduler, Shared};
use super::spill::tiers;
use super::waiting::{Generation, Job, Waiting, Work};
use crate::runner::{BlockKind, Limits, Runner};

/// Generation and embeddings on one runner.
///
/// A constraint is compiled before its request is queued; an embedding is the mean of the hidden
/// states behind the final norm, scaled to length 1. Both kinds of requests share the queue, the
/// batch and the blocks.
///
/// A request that asks for more tokens than the context holds ends there, with
/// [`Length`](engine::FinishReason::Length), and so does one that fills all blocks alone. A
/// sequence takes blocks as it grows. When there are none left the least urgent one, of these
/// the youngest, waits again and is computed anew later; its answer is the same to the last bit.
#[derive(Debug)]
pub struct GenerateEngine {
    waiting: Arc<Waiting>,
    counters: Arc<Counters>,
    events: KvEvents,
    intake: Intake,
    guides: Guides,
    has_prefix_cache: bool,
    block_kind: Option<BlockKind>,
    thread: Option<JoinHandle<()>>,
}

impl GenerateEngine {
    /// Starts the scheduler's thread. `eos_tokens` end a continuation unless it ignores them.
    /// Constraints on the text need the vocabulary; an empty one serves none.
    ///
    /// Errors: the system gives no thread, or no folder for KV blocks.
    pub fn start(
        runner: Box<dyn Runner>,
        vocabulary: &Vocabulary,
        eos_tokens: Vec<TokenId>,
        config: SchedulerConfig,
    ) -> std::result::Result<Self, crate::Error> {
        let constraints = Constraints::new(vocabulary, &eos_tokens);
        Self::start_with(runner, constraints, eos_tokens, config)
    }

    /// Does the same with constraints that others may share.
    ///
    /// Errors: the same.
    pub fn start_with(
        runner: Box<dyn Runner>,
        constraints: Constraints,
        eos_tokens: Vec<TokenId>,
        config: SchedulerConfig,
    ) -> std::result::Result<Self, crate::Error> {
        let limits = runner.limits();
        let intake = Intake { limits, max_running_sequences: config.max_running_sequences };
        let guides = Guides::new(constraints, config.max_waiting_requests);
        let waiting = Waiting::new(config.max_waiting_requests);
        let counters = Arc::new(Counters::new(&limits));
        let events = KvEvents::new(config.kv_events);
        let shared = Shared {
            waiting: waiting.clone(),
            counters: counters.clone(),
            events: events.clone(),
            tiers: tiers(&config)?,
        };
        let (has_prefix_cache, block_kind) = (config.has_prefix_cache, runner.block_kind());
        let thread = std::thread::Builder::new()
            .name("scheduler".into())
            .stack_size(STACK_BYTES)
            .spawn(move || {
                let waiting = shared.waiting.clone();
                let mut scheduler = Scheduler::new(runner, eos_tokens, config, shared);
                let outcome = catch_unwind(AssertUnwindSafe(|| scheduler.run()));
                let reason = match outcome {
                    Ok(()) => Error::new(ErrorKind::Unavailable, "the engine has stopped"),
                    Err(_) => {
                        tracing::error!("the scheduler panicked; its requests fail");
                        Error::internal("the engine failed")
                    }
                };
                for job in waiting.close(reason.clone()) {
                    job.output.fail(reason.clone());
                }
                scheduler.fail_all(&reason);
            })
            .map_err(|error| crate::Error::Device(format!("cannot start a thread: {error}")))?;
        Ok(Self {
            waiting,
            counters,
            events,
            intake,
            guides,
            has_prefix_cache,
            block_kind,
            thread: Some(thread),
        })
    }

    /// Returns how busy the engine is.
    pub fn load(&self) -> WorkerLoad {
        self.counters.load(self.waiting.len())
    }

    /// Returns what the engine has done since its start.
    pub fn totals(&self) -> WorkerTotals {
        self.counters.totals()
    }

    /// Returns what tells of KV blocks, to whom it is handed on.
    pub fn events(&self) -> &KvEvents {
        &self.events
    }

    /// Returns a reader of what becomes of KV blocks from now on.
    pub fn kv_events(&self) -> KvEventReader {
        self.events.subscribe()
    }

    /// Returns whether requests are accepted: the scheduler runs.
    pub fn is_healthy(&self) -> bool {
        !self.waiting.is_closed()
    }

    /// Returns the KV cache of the model, or of an adapter, for those that exchange blocks with it;
    /// none: it keeps none, or they mean nothing elsewhere.
    pub fn store(self: &Arc<Self>, adapter: Option<AdapterId>) -> Option<Arc<dyn KvStore>> {
        let kind = self.block_kind.filter(|_| self.has_prefix_cache)?;
        let Limits { block_size, context_length, .. } = self.intake.limits;
        let layout = KvLayout {
            fingerprint: kind.fingerprint,
            salt: salt(adapter),
            block_tokens: block_size as u32,
            block_bytes: kind.bytes as u64,
        };
        Some(Arc::new(Exchange::new(self.waiting.clone(), layout, context_length, self.clone())))
    }

    /// Queues a request and returns the reader of its answer.
    fn queue<T: News>(&self, work: Work, context: Context) -> Result<Reader<T>> {
        let writer = Writer::new(work.sequences());
        let output = writer.output();
        let salt = self.has_prefix_cache.then(|| salt(work.adapter().map(Adapter::id)));
        let size = self.intake.limits.block_size;
        let names = salt.map(|salt| prefix_hashes(work.tokens(), size, salt).collect());
        let job = Job {
            work,
            context,
            output: writer,
            names: names.unwrap_or_default(),
            salt,
            accepted: Instant::now(),
        };
        let ticket = self.waiting.push(job)?;
        Ok(Reader::new(output, ticket))
    }
}

#[async_trait]
impl Engine<GenerateRequest> for GenerateEngine {
    async fn call(
        &self,
        request: GenerateRequest,
        context: Context,
    ) -> Result<OutputStream<GenerateRequest>> {
        self.intake.generation(&request)?;
        let guide = match &request.guided {
            Some(guided) => {
                let drawn = request.split().1.to_vec();
                Some(self.guides.guide(guided.clone(), drawn).await?)
            }
            None => None,
        };
        let work = Work::Generate(Box::new(Generation { request, guide }));
        Ok(Box::pin(self.queue::<GenerateOutput>(work, context)?))
    }
}

#[async_trait]
impl Engine<EmbedRequest> for GenerateEngine {
    async fn call(
        &self,
        request: EmbedRequest,
        context: Context,
    ) -> Result<OutputStream<EmbedRequest>> {
        self.intake.embedding(&request)?;
        Ok(Box::pin(self.queue::<Embedding>(Work::Embed(request), context)?))
    }
}

impl Drop for GenerateEngine {
    fn drop(&mut self) {
        let reason = Error::new(ErrorKind::Unavailable, "the engine has stopped");
        for job in self.waiting.close(reason.clone()) {
            job.output.fail(reason.clone());
        }
        // The thread looks at the queue after each step, and then ends with all it owns; nobody
        // waits for it, since this may be the end of a request on an async runtime.
        drop(self.thread.take());
    }
}

#[cfg(test)]
mod tests;
