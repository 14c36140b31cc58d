//! Refuses requests for a model that is too busy, by thresholds that can be changed while it runs.
//!
//! A whole request is checked before any of its prompts is queued; the decorator around the scheduler
//! counts the prompts that wait. Without thresholds only the queue's own bound holds.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context as Poller, Poll, ready};

use async_trait::async_trait;
use engine::{
    Context, Engine, Error, ErrorKind, GenerateOutput, GenerateRequest, OutputStream, Result,
    WorkerLoad,
};
use futures_util::Stream;

/// Reads the load of an engine.
type ReadLoad = Box<dyn Fn() -> WorkerLoad + Send + Sync>;

/// When a model is busy. Nothing set means never.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Limits {
    /// The share of the KV blocks that may be in use, above 0 and up to 1.
    pub blocks: Option<f64>,
    /// The prompt tokens that may wait for their first output.
    pub prefill_tokens: Option<u64>,
}

/// The limits of one model, and what they are compared with.
pub(crate) struct Thresholds {
    limits: Mutex<Limits>,
    load: ReadLoad,
    /// Prompt tokens of requests that have no output yet.
    prefill_tokens: AtomicU64,
}

impl Thresholds {
    /// Makes the thresholds of an engine whose load can be read: none at first.
    pub(crate) fn new(load: impl Fn() -> WorkerLoad + Send + Sync + 'static) -> Self {
        let (limits, prefill_tokens) = (Mutex::default(), AtomicU64::new(0));
        Self { limits, load: Box::new(load), prefill_tokens }
    }

    /// Returns the limits in force.
    pub(crate) fn limits(&self) -> Limits {
        *self.lock()
    }

    /// Sets the limits.
    pub(crate) fn set(&self, limits: Limits) {
        *self.lock() = limits;
    }

    fn lock(&self) -> MutexGuard<'_, Limits> {
        self.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses a request while the model is busy.
    ///
    /// Errors: overloaded, with the code `busy`.
    pub(crate) fn check(&self) -> Result<()> {
        let limits = self.limits();
        let busy = |text: String| Err(Error::new(ErrorKind::Overloaded, text).with_code("busy"));
        if let Some(most) = limits.prefill_tokens {
            let waiting = self.prefill_tokens.load(Relaxed);
            if waiting > most {
                return busy(format!(
                    "the model is busy: {waiting} prompt tokens wait, the threshold is {most}"
                ));
            }
        }
        if let Some(most) = limits.blocks {
            let WorkerLoad { used_blocks, total_blocks, .. } = (self.load)();
            if f64::from(used_blocks) > most * f64::from(total_blocks) {
                return busy(format!(
                    "the model is busy: {used_blocks} of {total_blocks} KV blocks are in use, \
                     the threshold is {most}"
                ));
            }
        }
        Ok(())
    }
}

/// A generating engine whose waiting prompts are counted.
pub(crate) struct Admit<E> {
    pub engine: E,
    pub thresholds: Arc<Thresholds>,
}

#[async_trait]
impl<E: Engine<GenerateRequest>> Engine<GenerateRequest> for Admit<E> {
    async fn call(
        &self,
        request: GenerateRequest,
        context: Context,
    ) -> Result<OutputStream<GenerateRequest>> {
        let prefill = Prefill::begin(self.thresholds.clone(), request.tokens.len() as u64);
        let stream = self.engine.call(request, context).await?;
        Ok(Box::pin(Admitted { stream, prefill: Some(prefill) }))
    }
}

/// A prompt that has no output yet; it is counted while this lives.
struct Prefill(Arc<Thresholds>, u64);

impl Prefill {
    fn begin(thresholds: Arc<Thresholds>, tokens: u64) -> Self {
        thresholds.prefill_tokens.fetch_add(tokens, Relaxed);
        Self(thresholds, tokens)
    }
}

impl Drop for Prefill {
    fn drop(&mut self) {
        self.0.prefill_tokens.fetch_sub(self.1, Relaxed);
    }
}

struct Admitted {
    stream: OutputStream<GenerateRequest>,
    prefill: Option<Prefill>,
}

impl Stream for Admitted {
    type Item = Result<GenerateOutput>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Poller<'_>) -> Poll<Option<Self::Item>> {
        let item = ready!(self.stream.as_mut().poll_next(cx));
        self.prefill = None;
        Poll::Ready(item)
    }
}

#[cfg(test)]
mod tests {
    use engine::StopConditions;
    use engine::testing::{Scripted, Step};
    use futures_util::StreamExt;

    use super::*;

    fn request() -> GenerateRequest {
        GenerateRequest::new(vec![1; 10], StopConditions::after(1))
    }

    #[tokio::test]
    async fn a_busy_model_refuses_until_it_is_not() {
        let used = Arc::new(AtomicU64::new(0));
        let load = {
            let used = used.clone();
            move || WorkerLoad {
                used_blocks: used.load(Relaxed) as u32,
                total_blocks: 10,
                ..WorkerLoad::default()
            }
        };
        let thresholds = Arc::new(Thresholds::new(load));
        let script = vec![Step::Output(GenerateOutput::default())];
        let admit = Admit {
            engine: Scripted::<GenerateRequest>::new(script),
            thresholds: thresholds.clone(),
        };
        let call = || admit.call(request(), Context::new("r"));
        thresholds.set(Limits { blocks: Some(0.5), prefill_tokens: Some(9) });
        let mut first = call().await.unwrap();
        let refused = thresholds.check().unwrap_err();
        assert_eq!((refused.kind(), refused.code()), (ErrorKind::Overloaded, Some("busy")));
        assert!(refused.message().contains("10 prompt tokens"), "{refused}");
        assert!(first.next().await.is_some(), "its prompt waits no longer");
        assert!(thresholds.check().is_ok());
        drop(call().await.unwrap());
        used.store(6, Relaxed);
        let refused = thresholds.check().unwrap_err();
        assert!(refused.message().contains("6 of 10 KV blocks"), "{refused}");
        thresholds.set(Limits::default());
        assert!(thresholds.check().is_ok());
        assert_eq!(thresholds.prefill_tokens.load(Relaxed), 0, "dropped streams are not counted");
    }
}
