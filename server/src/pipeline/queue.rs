//! Keeps to the `max_queue_size` that a tensor model declares: as many requests run at once as its
//! instances take, as many wait as it says, and more are refused.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use async_trait::async_trait;
use engine::{Context, Engine, Error, ErrorKind, InferRequest, OutputStream, Result};
use futures_util::TryStreamExt;
use proto::inference::ModelConfig;
use proto::inference::model_config::SchedulingChoice;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// An engine with a bounded queue in front of it.
#[derive(Debug)]
pub(crate) struct Queued<E> {
    engine: E,
    places: Arc<Semaphore>,
    waiting: AtomicUsize,
    max_waiting: usize,
}

/// A request that waits, counted.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// Returns the most requests that may wait for a model; none: its declaration sets no limit.
///
/// Errors: limits of levels of priority, which have one queue here.
pub(crate) fn max_waiting(declared: &ModelConfig) -> std::result::Result<Option<usize>, String> {
    let Some(SchedulingChoice::DynamicBatching(batching)) = &declared.scheduling_choice else {
        return Ok(None);
    };
    if batching.priority_queue_policy.values().any(|policy| policy.max_queue_size > 0) {
        let text = "`priority_queue_policy`: all levels have one queue here, which can be limited by \
                    `max_queue_size` of `default_queue_policy` alone";
        return Err(text.to_owned());
    }
    let size = batching.default_queue_policy.as_ref().map_or(0, |policy| policy.max_queue_size);
    Ok((size > 0).then_some(size as usize))
}

/// Returns how many requests the instances of a model take at once: a batch each.
fn places(declared: &ModelConfig) -> usize {
    let groups = declared.instance_group.iter();
    let instances: usize = groups.map(|group| group.count.max(1) as usize).sum();
    let batch = declared.max_batch_size.max(1) as usize;
    instances.max(1).saturating_mul(batch).min(Semaphore::MAX_PERMITS)
}

impl<E> Queued<E> {
    /// Puts a queue for so many requests in front of an engine.
    pub(crate) fn new(engine: E, declared: &ModelConfig, max_waiting: usize) -> Self {
        let places = Arc::new(Semaphore::new(places(declared)));
        Self { engine, places, waiting: AtomicUsize::new(0), max_waiting }
    }

    async fn place(&self) -> Result<OwnedSemaphorePermit> {
        if let Ok(place) = self.places.clone().try_acquire_owned() {
            return Ok(place);
        }
        let before = self.waiting.fetch_add(1, Relaxed);
        let _waiting = Waiting(&self.waiting);
        if before >= self.max_waiting {
            return Err(Error::new(ErrorKind::Overloaded, "Exceeds maximum queue size"));
        }
        let place = self.places.clone().acquire_owned().await;
        place.map_err(|_| Error::internal("the queue of the model is closed"))
    }
}

#[async_trait]
impl<E: Engine<InferRequest>> Engine<InferRequest> for Queued<E> {
    async fn call(
        &self,
        request: InferRequest,
        context: Context,
    ) -> Result<OutputStream<InferRequest>> {
        let came = Instant::now();
        let place = self.place().await?;
        let waited = came.elapsed();
        let outputs = self.engine.call(request, context).await?;
        // The place is the request's until its answer is over.
        Ok(Box::pin(outputs.map_ok(move |mut output| {
            let _held = &place;
            output.queue_time += waited;
            output
        })))
    }
}
