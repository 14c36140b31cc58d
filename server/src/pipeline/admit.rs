//! Refuses requests for a model that is too busy, by thresholds that can be changed while it runs.
//!
//! A whole request is checked before any of its prompts is queued; the decorator around the scheduler
//! counts the prompts that wait. Without thresholds only the queue's own bound holds. A model with
//! several workers is busy when each of them is.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context as Poller, Poll, ready};
use std::time::Duration;

use async_trait::async_trait;
use engine::{
    Context, Engine, Error, ErrorKind, GenerateOutput, GenerateRequest, OutputStream, Result,
    WorkerLoad,
};
use futures_util::Stream;

use crate::args::BusyArgs;
use crate::support::codes::BUSY;

/// When a refused request may come again: loads have changed by then.
const AGAIN: Duration = Duration::from_secs(1);

/// Shows the load of each worker of a model.
pub(crate) type EachLoad = Arc<dyn Fn(&mut dyn FnMut(WorkerLoad)) + Send + Sync>;

/// When a worker is busy. Nothing set means never.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Limits {
    /// The share of a worker's KV blocks that may be in use, above 0 and up to 1.
    pub blocks: Option<f64>,
    /// The prompt tokens that may wait for their first output, for each worker.
    pub prefill_tokens: Option<u64>,
    /// The requests that may wait in a worker's queue.
    pub waiting_requests: Option<u64>,
}

impl Limits {
    /// Returns when text models count as busy at the start.
    pub(crate) fn from_args(args: &BusyArgs) -> Self {
        Self {
            blocks: args.busy_kv_share,
            prefill_tokens: args.busy_prefill_tokens,
            waiting_requests: args.busy_waiting_requests,
        }
    }
}

impl Limits {
    /// Returns those that can hold where tokens and KV blocks are not known.
    pub(crate) fn of_texts(self) -> Self {
        Self { waiting_requests: self.waiting_requests, ..Self::default() }
    }

    /// Returns what a worker has too much of.
    fn excess(&self, load: &WorkerLoad) -> Option<String> {
        let WorkerLoad { used_blocks, total_blocks, waiting_requests, .. } = *load;
        let (used, total) = (f64::from(used_blocks), f64::from(total_blocks));
        if let Some(most) = self.blocks.filter(|most| used > most * total) {
            return Some(format!(
                "{used_blocks} of {total_blocks} KV blocks are in use, the threshold is {most}"
            ));
        }
        let waiting = u64::from(waiting_requests);
        let most = self.waiting_requests.filter(|most| waiting > *most)?;
        Some(format!("{waiting} requests wait, the threshold is {most}"))
    }
}

/// The limits of one model, and what they are compared with.
pub(crate) struct Thresholds {
    limits: Mutex<Limits>,
    each_load: EachLoad,
    /// Prompt tokens of requests that have no output yet.
    prefill_tokens: AtomicU64,
}

impl Thresholds {
    /// Makes the thresholds of a model whose workers' loads can be read.
    pub(crate) fn new(limits: Limits, each_load: EachLoad) -> Self {
        Self { limits: Mutex::new(limits), each_load, prefill_tokens: AtomicU64::new(0) }
    }

    /// Returns what shows the load of each worker.
    pub(crate) fn each_load(&self) -> &EachLoad {
        &self.each_load
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
        if limits == Limits::default() {
            return Ok(());
        }
        let (mut workers, mut free, mut excess) = (0, 0, None);
        (self.each_load)(&mut |load| {
            workers += 1;
            match limits.excess(&load) {
                Some(text) => excess = Some(text),
                None => free += 1,
            }
        });
        let waiting = self.prefill_tokens.load(Relaxed);
        // Prompts that wait for a first worker to come are bounded as those of one.
        let most = limits.prefill_tokens.map(|most| most.saturating_mul(workers.max(1)));
        if let Some(most) = most.filter(|most| waiting > *most) {
            return Err(busy(format!("{waiting} prompt tokens wait, the threshold is {most}")));
        }
        match excess.filter(|_| free == 0) {
            Some(text) if workers > 1 => Err(busy(format!("so are all {workers} workers: {text}"))),
            Some(text) => Err(busy(text)),
            None => Ok(()),
        }
    }
}

fn busy(why: String) -> Error {
    let text = format!("the model is busy: {why}");
    Error::new(ErrorKind::Overloaded, text).with_code(BUSY).with_retry_after(AGAIN)
}

/// A generating engine whose waiting prompts are counted.
pub(crate) struct PrefillTracker<E> {
    pub engine: E,
    pub thresholds: Arc<Thresholds>,
}

#[async_trait]
impl<E: Engine<GenerateRequest>> Engine<GenerateRequest> for PrefillTracker<E> {
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
        let read = used.clone();
        let each_load: EachLoad = Arc::new(move |visit| {
            visit(WorkerLoad {
                used_blocks: read.load(Relaxed) as u32,
                total_blocks: 10,
                ..WorkerLoad::default()
            });
        });
        let thresholds = Arc::new(Thresholds::new(Limits::default(), each_load));
        let script = vec![Step::Output(GenerateOutput::default())];
        let admit = PrefillTracker {
            engine: Scripted::<GenerateRequest>::new(script),
            thresholds: thresholds.clone(),
        };
        let call = || admit.call(request(), Context::new("r"));
        let limits =
            Limits { blocks: Some(0.5), prefill_tokens: Some(9), waiting_requests: Some(1) };
        thresholds.set(limits);
        let mut first = call().await.unwrap();
        let refused = thresholds.check().unwrap_err();
        assert_eq!((refused.kind(), refused.code()), (ErrorKind::Overloaded, Some("busy")));
        assert_eq!(refused.retry_after(), Some(AGAIN));
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

    #[test]
    fn a_model_is_busy_when_all_its_workers_are() {
        // Used blocks of 10, and requests that wait, of each worker.
        type Case = (&'static [(u32, u32)], Option<&'static str>);
        let table: [Case; 7] = [
            (&[], None),
            (&[(5, 3)], None),
            (&[(6, 0)], Some("6 of 10 KV blocks")),
            (&[(0, 4)], Some("4 requests wait, the threshold is 3")),
            (&[(9, 9), (0, 0)], None),
            (&[(9, 0), (0, 9)], Some("all 2 workers: 9 requests wait")),
            (&[(0, 9), (9, 0)], Some("all 2 workers: 9 of 10 KV blocks")),
        ];
        for (loads, expected) in table {
            let limits =
                Limits { blocks: Some(0.5), waiting_requests: Some(3), ..Limits::default() };
            let each_load: EachLoad = Arc::new(move |visit| {
                for &(used_blocks, waiting_requests) in loads {
                    let load =
                        WorkerLoad { used_blocks, waiting_requests, ..WorkerLoad::default() };
                    visit(WorkerLoad { total_blocks: 10, ..load });
                }
            });
            let found = Thresholds::new(limits, each_load).check().map_err(|e| e.to_string());
            match (expected, found) {
                (None, found) => assert_eq!(found, Ok(()), "{loads:?}"),
                (Some(text), found) => assert!(found.unwrap_err().contains(text), "{loads:?}"),
            }
        }
    }
}
