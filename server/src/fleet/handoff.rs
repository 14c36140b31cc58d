//! A worker's part in handing prompts over: it says where the KV blocks of a prompt are, and gets
//! those of others before it goes on with their prompts.
//!
//! What does not come is computed here. So nothing that fails in this file fails a request.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use cluster::LogThrottle;
use cluster::card::{Card, Role};
use cluster::instance::Instance;
use cluster::request::{MAX_BLOCK_BYTES, RemoteWorker, Served, Wanted};
use engine::{
    Context, Engine, Error, ErrorKind, GenerateRequest, KvBlocks, KvHandoff, KvLayout, KvSource,
    KvStore, OutputStream, Result, Tasks, TokenId,
};
use futures_util::StreamExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::planes::{Planes, Ways};
use crate::support::metrics::{Metrics, ModelLabels, ReasonLabels};

/// Workers whose connections are kept; the one that was asked longest ago goes first.
const MAX_SOURCES: usize = 256;

/// Blocks that came and are not in a cache yet, in KiB, of all requests of this process: who finds
/// room for some only gets the first ones, and computes the others.
const MAX_PULLED_KIB: u32 = 1 << 20;

/// What a worker hands over and gets.
pub(crate) struct Handoffs {
    role: Role,
    timeout: Duration,
    /// Where this worker can be asked, once it is known.
    own: OnceLock<(String, Vec<String>)>,
    planes: Arc<Planes>,
    sources: Mutex<Vec<(String, RemoteWorker)>>,
    room: Arc<Semaphore>,
    /// Whose blocks do not come for a reason that lasts.
    throttle: LogThrottle,
    metrics: Arc<Metrics>,
    tasks: Tasks,
}

/// Why blocks did not come; each is a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    /// They are of another model, adapter, block size or instruction set.
    Mismatch,
    /// Too many blocks are under way, here or there.
    Busy,
    /// The worker cannot be reached, or went away.
    Unreachable,
    /// They did not come in time.
    Late,
    /// The worker has given them up.
    Evicted,
    /// The worker refuses.
    Refused,
}

impl Reason {
    fn name(self) -> &'static str {
        match self {
            Self::Mismatch => "mismatch",
            Self::Busy => "busy",
            Self::Unreachable => "unreachable",
            Self::Late => "late",
            Self::Evicted => "evicted",
            Self::Refused => "refused",
        }
    }

    fn of(error: &Error) -> Self {
        match error.kind() {
            ErrorKind::Unavailable => Self::Unreachable,
            ErrorKind::DeadlineExceeded => Self::Late,
            ErrorKind::Overloaded => Self::Busy,
            _ if error.code() == Some("kv_layout") => Self::Mismatch,
            _ => Self::Refused,
        }
    }

    /// Returns whether it is likely to be the same next time, until somebody does something.
    fn is_lasting(self) -> bool {
        matches!(self, Self::Mismatch | Self::Unreachable | Self::Refused)
    }
}

/// That blocks did not come.
struct Failure {
    reason: Reason,
    /// What the other worker, or the way to it, has to say.
    error: Option<Error>,
}

impl From<Reason> for Failure {
    fn from(reason: Reason) -> Self {
        Self { reason, error: None }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { reason: Reason::of(&error), error: Some(error) }
    }
}

impl Handoffs {
    /// Makes the part of a worker with a role; blocks may take `timeout` to come.
    pub(crate) fn new(
        (role, timeout): (Role, Duration),
        planes: Arc<Planes>,
        metrics: Arc<Metrics>,
        tasks: &Tasks,
    ) -> Arc<Self> {
        let room = Arc::new(Semaphore::new(MAX_PULLED_KIB as usize));
        let (own, sources, throttle) = Default::default();
        let tasks = tasks.clone();
        Arc::new(Self { role, timeout, own, planes, sources, room, throttle, metrics, tasks })
    }

    /// Takes note of where this worker can be asked.
    pub(crate) fn announce(&self, instance: &Instance) {
        let _ = self.own.set((instance.address.clone(), instance.more_addresses.clone()));
    }

    /// Returns what is served of a model whose blocks can be handed over.
    pub(crate) fn around(self: &Arc<Self>, card: &Card, served: Served) -> Served {
        let Some((engine, store)) = served.generate.clone().zip(served.blocks.clone()) else {
            return served;
        };
        let source = self.own.get().filter(|_| self.role == Role::Prefill);
        let block_bytes = store.layout().block_bytes;
        let source = source.filter(|_| block_bytes <= MAX_BLOCK_BYTES);
        if self.role == Role::Prefill && block_bytes > MAX_BLOCK_BYTES {
            let (model, most) = (&card.name, MAX_BLOCK_BYTES);
            let text = "KV blocks are too large to be handed over: decode workers compute prompts";
            // Models are served anew at each change of one of them.
            if self.throttle.is_due(model, text) {
                tracing::warn!(model, block_bytes, most, "{text}");
            }
        }
        let source = source.map(|(address, more)| {
            let (address, more_addresses) = (address.clone(), more.clone());
            Arc::new(KvSource { address, more_addresses, layout: store.layout() })
        });
        let (model, handoffs) = (card.name.as_str().into(), self.clone());
        let handing = Handing { engine, store, source, model, handoffs };
        Served { generate: Some(Arc::new(handing)), ..served }
    }

    /// Warns that a worker's blocks do not come, if that is going to last and is news.
    fn complain(&self, model: &str, address: &str, failure: &Failure) {
        let why = match &failure.error {
            Some(error) => error.message(),
            None => "they are of another file, build, adapter, block size or kind of processor",
        };
        if failure.reason.is_lasting() && self.throttle.is_due(address, why) {
            let text = "a prefill worker's KV blocks do not come: its prompts are computed again";
            tracing::warn!(model, address, reason = failure.reason.name(), why, "{text}");
        }
    }

    /// Returns the worker at a source.
    ///
    /// Errors: an address that this worker does not call.
    fn worker(&self, source: &KvSource) -> Result<RemoteWorker> {
        let key = format!("{} {}", source.address, source.more_addresses.join(" "));
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        let known = sources.iter().position(|(other, _)| *other == key);
        let worker = match known {
            Some(place) => sources.remove(place).1,
            None => {
                let ways = Ways::told(&source.more_addresses);
                self.planes.client(&source.address, ways, &self.tasks)?
            }
        };
        if sources.len() >= MAX_SOURCES {
            sources.remove(0);
        }
        sources.push((key, worker.clone()));
        Ok(worker)
    }
}

/// A model's engine, which gets blocks before it is asked and says where its own are.
struct Handing {
    engine: Arc<dyn Engine<GenerateRequest>>,
    store: Arc<dyn KvStore>,
    /// What is said of its own blocks; none: nothing.
    source: Option<Arc<KvSource>>,
    model: Arc<str>,
    handoffs: Arc<Handoffs>,
}

#[async_trait]
impl Engine<GenerateRequest> for Handing {
    async fn call(
        &self,
        mut request: GenerateRequest,
        context: Context,
    ) -> Result<OutputStream<GenerateRequest>> {
        if let Some(KvHandoff::At(source)) = request.handoff.take() {
            let blocks = self.get(&source, &request.tokens, &context).await;
            request.handoff = blocks.map(KvHandoff::Here);
        }
        let stream = self.engine.call(request, context).await?;
        let Some(source) = self.source.clone() else { return Ok(stream) };
        Ok(Box::pin(stream.map(move |item| {
            item.map(|mut output| {
                output.kv_source = output.finish.map(|_| source.clone());
                output
            })
        })))
    }
}

/// Blocks on their way.
struct Pulled {
    first: usize,
    blocks: Vec<Bytes>,
    /// Their share of the room for all.
    room: Option<OwnedSemaphorePermit>,
}

impl Handing {
    /// Gets the blocks of a prompt that are not here; none: there are none to go on with.
    async fn get(
        &self,
        source: &KvSource,
        tokens: &Arc<[TokenId]>,
        context: &Context,
    ) -> Option<KvBlocks> {
        let began = Instant::now();
        let mut pulled = Pulled { first: 0, blocks: Vec::new(), room: None };
        let outcome = self.pull(source, tokens, context, &mut pulled).await;
        let metrics = &self.handoffs.metrics;
        if let Err(failure) = &outcome {
            self.handoffs.complain(&self.model, &source.address, failure);
            let (came, reason) = (pulled.blocks.len(), failure.reason.name());
            tracing::debug!(request = context.id(), came, reason, "a prompt is computed again");
            let labels = ReasonLabels { model: self.model.clone(), reason };
            metrics.transfer_fallbacks.get_or_create(&labels).inc();
        }
        if pulled.blocks.is_empty() {
            return None;
        }
        if outcome.is_ok() {
            self.handoffs.throttle.forget(&source.address);
        }
        let labels = ModelLabels { model: self.model.clone() };
        let bytes: usize = pulled.blocks.iter().map(Bytes::len).sum();
        metrics.transfer_blocks.get_or_create(&labels).inc_by(pulled.blocks.len() as u64);
        metrics.transfer_bytes.get_or_create(&labels).inc_by(bytes as u64);
        metrics.transfer_seconds.get_or_create(&labels).observe(began.elapsed().as_secs_f64());
        Some(KvBlocks::new(pulled.first, pulled.blocks, Arc::new(pulled.room)))
    }

    /// Gets blocks into `pulled`, which has those that came in time whatever happens.
    async fn pull(
        &self,
        source: &KvSource,
        tokens: &Arc<[TokenId]>,
        context: &Context,
        pulled: &mut Pulled,
    ) -> std::result::Result<(), Failure> {
        let layout = self.store.layout();
        if source.layout != layout {
            return Err(Reason::Mismatch.into());
        }
        // The last token is computed here in any case.
        let all = tokens.len().saturating_sub(1) / layout.block_tokens.max(1) as usize;
        let longest = Instant::now() + self.handoffs.timeout;
        let until = context.deadline().map_or(longest, |deadline| deadline.min(longest));
        let held = tokio::time::timeout_at(until.into(), self.store.held(tokens)).await;
        pulled.first = held.map_err(|_| Reason::Late)??;
        let missing = all.saturating_sub(pulled.first);
        if missing == 0 {
            return Ok(());
        }
        let (count, room) = self.room(missing, &layout)?;
        pulled.room = Some(room);
        let worker = self.handoffs.worker(source)?;
        // No block in front of the last token is asked for that would not be used.
        let asked = tokens[..(pulled.first + count) * layout.block_tokens as usize].into();
        let wanted = Wanted { tokens: asked, first: pulled.first, layout };
        let mut blocks = worker.pull(&self.model, wanted, until).await?;
        while pulled.blocks.len() < count {
            match blocks.next().await {
                Some(Ok(block)) if block.len() as u64 == layout.block_bytes => {
                    pulled.blocks.push(block);
                }
                Some(Ok(_)) => return Err(Reason::Mismatch.into()),
                Some(Err(error)) => return Err(error.into()),
                None => return Err(Reason::Evicted.into()),
            }
        }
        match count < missing {
            true => Err(Reason::Busy.into()),
            false => Ok(()),
        }
    }

    /// Takes the room of some blocks, or of as many of them as there is room for; returns how many.
    ///
    /// Errors: busy if there is not even room for one.
    fn room(
        &self,
        blocks: usize,
        layout: &KvLayout,
    ) -> std::result::Result<(usize, OwnedSemaphorePermit), Reason> {
        let room = &self.handoffs.room;
        loop {
            let free = (room.available_permits() as u64) << 10;
            let most = free.checked_div(layout.block_bytes).unwrap_or(u64::MAX);
            let count = most.min(blocks as u64);
            // No more than the permits that there were, which a `u32` counts.
            let kib = (count * layout.block_bytes).div_ceil(1 << 10) as u32;
            if count == 0 {
                return Err(Reason::Busy);
            }
            // Where this fails another one was quicker, and there is less to share.
            if let Ok(permit) = room.clone().try_acquire_many_owned(kib) {
                return Ok((count as usize, permit));
            }
        }
    }
}

#[cfg(test)]
mod tests;
