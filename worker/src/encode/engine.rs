//! The engine: checks texts, queues them, and owns the encoder's thread.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;

use async_trait::async_trait;
use engine::{
    Context, EmbedRequest, Engine, Error, ErrorKind, OutputStream, Result, TokenId, WorkerLoad,
};
use futures_util::stream;
use tokio::sync::oneshot;

use super::Encoder;
use super::queue::{Job, Queue};

/// The limits of the engine; each is at least 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EncodeConfig {
    /// Texts accepted and not yet in a pass; one more is refused as overloaded.
    pub max_waiting_requests: usize,
    /// Tokens of one forward pass; a longer text has one of its own.
    pub batch_tokens: usize,
    /// How many times as long as without texts the passes of other models may take together with a
    /// layer of a pass, while sequences draw from them.
    pub mixed_pass_stretch: f32,
}

/// Embeddings of an encoder.
///
/// Texts that wait together share a pass, up to its tokens, which are fewer while sequences draw from
/// other models on the same threads. Dropping an answer takes its text out of the queue; one whose
/// deadline passed is not computed.
#[derive(Debug)]
pub struct EncodeEngine {
    queue: Arc<Queue>,
    running: Arc<AtomicU32>,
    vocabulary: usize,
    context_length: usize,
    thread: Option<JoinHandle<()>>,
}

impl EncodeEngine {
    /// Starts the encoder's thread.
    ///
    /// Errors: the system gives no thread.
    pub fn start(
        encoder: Encoder,
        config: EncodeConfig,
    ) -> std::result::Result<Self, crate::Error> {
        let (vocabulary, context_length) = (encoder.vocabulary(), encoder.context_length());
        let queue = Queue::new(config.max_waiting_requests);
        let running = Arc::new(AtomicU32::new(0));
        let shared = (queue.clone(), running.clone());
        let thread = std::thread::Builder::new()
            .name("encoder".into())
            .spawn(move || {
                let (queue, running) = shared;
                let mut encoder = encoder;
                let work = || run(&mut encoder, &queue, &running, config);
                let reason = match catch_unwind(AssertUnwindSafe(work)) {
                    Ok(()) => stopped(),
                    Err(_) => {
                        tracing::error!("the encoder panicked; its requests fail");
                        Error::internal("the engine failed")
                    }
                };
                queue.close(&reason);
            })
            .map_err(|error| crate::Error::Device(format!("cannot start a thread: {error}")))?;
        Ok(Self { queue, running, vocabulary, context_length, thread: Some(thread) })
    }

    /// Returns how busy the engine is; it has no KV blocks.
    pub fn load(&self) -> WorkerLoad {
        WorkerLoad {
            waiting_requests: self.queue.len() as u32,
            running_sequences: self.running.load(Ordering::Relaxed),
            ..WorkerLoad::default()
        }
    }

    /// Returns whether requests are accepted: the encoder runs.
    pub fn is_healthy(&self) -> bool {
        !self.queue.is_closed()
    }

    fn check(&self, tokens: &[TokenId]) -> Result<()> {
        if tokens.is_empty() {
            return Err(Error::invalid("the text has no tokens"));
        }
        if tokens.len() > self.context_length {
            let (got, most) = (tokens.len(), self.context_length);
            let text = format!("the text has {got} tokens, the model takes at most {most}");
            return Err(Error::invalid(text).with_code("context_length_exceeded"));
        }
        match tokens.iter().find(|&&token| token as usize >= self.vocabulary) {
            None => Ok(()),
            Some(token) => Err(Error::invalid(format!(
                "token {token} is not one of the vocabulary's {}",
                self.vocabulary
            ))),
        }
    }
}

/// Computes passes until the queue is closed.
fn run(encoder: &mut Encoder, queue: &Queue, running: &AtomicU32, config: EncodeConfig) {
    while queue.wait() {
        let most = encoder.pass_tokens(config.batch_tokens, config.mixed_pass_stretch);
        let mut jobs = queue.take(most);
        jobs.retain(|job| !job.reply.is_closed());
        if jobs.is_empty() {
            continue;
        }
        running.store(jobs.len() as u32, Ordering::Relaxed);
        let texts: Vec<&[TokenId]> = jobs.iter().map(|job| &job.tokens[..]).collect();
        let vectors = encoder.embed(&texts);
        running.store(0, Ordering::Relaxed);
        for (Job { reply, .. }, vector) in jobs.into_iter().zip(vectors) {
            let vector = match vector.values.iter().all(|value| value.is_finite()) {
                true => Ok(vector),
                false => Err(Error::internal("the model gave a vector of what are not numbers")),
            };
            // Whoever asked may have gone in the meantime.
            let _ = reply.send(vector);
        }
    }
}

fn stopped() -> Error {
    Error::new(ErrorKind::Unavailable, "the engine has stopped")
}

#[async_trait]
impl Engine<EmbedRequest> for EncodeEngine {
    async fn call(
        &self,
        request: EmbedRequest,
        context: Context,
    ) -> Result<OutputStream<EmbedRequest>> {
        self.check(&request.tokens)?;
        if request.adapter.is_some() {
            return Err(Error::invalid("an encoder has no adapters"));
        }
        let (reply, answer) = oneshot::channel();
        let job = Job { tokens: request.tokens, deadline: context.deadline(), reply };
        let ticket = self.queue.push(job, context.priority())?;
        Ok(Box::pin(stream::once(async move {
            // Dropped with the stream.
            let _ticket = ticket;
            answer.await.unwrap_or_else(|_| Err(Error::internal("the engine failed")))
        })))
    }
}

impl Drop for EncodeEngine {
    fn drop(&mut self) {
        self.queue.close(&stopped());
        // The thread ends after its pass; nobody waits for it, since this may be the end of a
        // request on an async runtime.
        drop(self.thread.take());
    }
}

#[cfg(test)]
mod tests;
