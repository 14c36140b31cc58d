//! The engine: checks requests, queues them, and owns the scheduler's thread.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use async_trait::async_trait;
use engine::{
    Context, Engine, Error, ErrorKind, GenerateRequest, OutputStream, Result, TokenId, WorkerLoad,
};

use super::SchedulerConfig;
use super::output::{Output, Reader};
use super::scheduler::{Counters, Scheduler};
use super::waiting::{Job, Waiting};
use crate::runner::{Limits, Runner};

/// Generation on one runner.
///
/// A request that asks for more tokens than the context holds ends there, with
/// [`Length`](engine::FinishReason::Length). The blocks of a request are reserved when it joins
/// the batch, so what runs is never put back.
#[derive(Debug)]
pub struct GenerateEngine {
    waiting: Arc<Waiting>,
    counters: Arc<Counters>,
    limits: Limits,
    config: SchedulerConfig,
    thread: Option<JoinHandle<()>>,
}

impl GenerateEngine {
    /// Starts the scheduler's thread. `eos_tokens` end a continuation unless it ignores them.
    ///
    /// Errors: the system gives no thread.
    pub fn start(
        runner: Box<dyn Runner>,
        eos_tokens: Vec<TokenId>,
        config: SchedulerConfig,
    ) -> std::result::Result<Self, crate::Error> {
        let limits = runner.limits();
        let waiting = Waiting::new(config.max_waiting_requests);
        let counters = Arc::new(Counters::new(&limits));
        let shared = (waiting.clone(), counters.clone());
        let thread = std::thread::Builder::new()
            .name("scheduler".into())
            .spawn(move || {
                let (waiting, counters) = shared;
                let mut scheduler =
                    Scheduler::new(runner, eos_tokens, config, waiting.clone(), counters);
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
        Ok(Self { waiting, counters, limits, config, thread: Some(thread) })
    }

    /// Returns how busy the engine is.
    pub fn load(&self) -> WorkerLoad {
        self.counters.load(self.waiting.len())
    }

    /// Returns whether requests are accepted: the scheduler runs.
    pub fn is_healthy(&self) -> bool {
        !self.waiting.is_closed()
    }

    /// Checks a request and returns the blocks that each of its continuations may need.
    fn blocks(&self, request: &GenerateRequest) -> Result<usize> {
        let Limits { vocabulary, context_length, block_size, blocks, .. } = self.limits;
        let (prompt, max_tokens) = (request.tokens.len(), request.stop.max_tokens as usize);
        if prompt == 0 {
            return Err(Error::invalid("the prompt has no tokens"));
        }
        if max_tokens == 0 {
            return Err(Error::invalid("`max_tokens`: expected at least 1, got 0"));
        }
        if prompt >= context_length {
            return Err(Error::invalid(format!(
                "the prompt has {prompt} tokens, the model's context of {context_length} has room \
                 for {} and an answer",
                context_length - 1
            )));
        }
        if let Some(token) = request.tokens.iter().find(|&&token| token as usize >= vocabulary) {
            return Err(Error::invalid(format!(
                "token {token} is not one of the vocabulary's {vocabulary}"
            )));
        }
        let choices = request.choices.get() as usize;
        if choices > self.config.max_running_sequences {
            return Err(Error::invalid(format!(
                "`n`: expected at most {} continuations, got {choices}",
                self.config.max_running_sequences
            )));
        }
        let needed = (prompt + max_tokens).min(context_length).div_ceil(block_size);
        if needed.saturating_mul(choices) > blocks {
            return Err(Error::invalid(format!(
                "{choices} continuations of {prompt} and up to {max_tokens} tokens need {} KV \
                 blocks, there are {blocks}",
                needed.saturating_mul(choices)
            )));
        }
        Ok(needed)
    }
}

#[async_trait]
impl Engine<GenerateRequest> for GenerateEngine {
    async fn call(
        &self,
        request: GenerateRequest,
        context: Context,
    ) -> Result<OutputStream<GenerateRequest>> {
        let blocks = self.blocks(&request)?;
        let output = Output::new(request.choices.get());
        let job =
            Job { request, context, output: output.clone(), blocks, accepted: Instant::now() };
        let ticket = self.waiting.push(job)?;
        Ok(Box::pin(Reader::new(output, ticket)))
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
