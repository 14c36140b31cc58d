//! Requests of one sequence run one after the other, over one state that ends with it.
//!
//! The rules and their texts are Triton's sequence batcher's: every request has an id, the first
//! one of a sequence says so, a sequence that is idle for too long is forgotten. It stands right
//! above the engine, under the deadline, so that waiting for a turn counts.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use engine::{
    Context, Engine, Error, ErrorKind, InferRequest, OutputStream, Result, Sequence, SequenceId,
    SequenceState,
};
use futures_util::StreamExt;
use proto::inference as wire;
use tensor::ModelConfig;
use tokio::sync::{Mutex as TurnMutex, OwnedSemaphorePermit, Semaphore};
use wire::model_sequence_batching::StrategyChoice;

/// The most characters of a text id.
const MAX_ID_CHARACTERS: usize = 128;

/// Sequences that run at once when the configuration does not say.
const DEFAULT_SEQUENCES: usize = 1024;

/// Requests that wait for their turn or a place; more are refused.
const MAX_WAITING: usize = 4096;

/// What a model says of its sequences.
#[derive(Clone, Debug)]
pub(crate) struct SequenceOptions {
    model: String,
    idle: Duration,
    max_sequences: usize,
    has_batch: bool,
}

impl SequenceOptions {
    /// Reads a model's configuration. Errors: settings that this server does not have.
    pub(crate) fn new(
        config: &ModelConfig,
        batching: &wire::ModelSequenceBatching,
    ) -> std::result::Result<Self, String> {
        if batching.iterative_sequence {
            return Err("`iterative_sequence` is not served".into());
        }
        if config.decoupled {
            return Err("sequences of decoupled models are not served".into());
        }
        let max_sequences = match &batching.strategy_choice {
            Some(StrategyChoice::Oldest(oldest)) if oldest.max_candidate_sequences > 0 => {
                oldest.max_candidate_sequences as usize
            }
            _ => DEFAULT_SEQUENCES,
        };
        let idle = match batching.max_sequence_idle_microseconds {
            0 => Duration::from_secs(1),
            microseconds => Duration::from_micros(microseconds),
        };
        let (model, has_batch) = (config.name.clone(), config.max_batch_size > 0);
        Ok(Self { model, idle, max_sequences, has_batch })
    }
}

/// An engine whose requests come in sequences.
pub(crate) struct Sequences<E> {
    engine: E,
    options: SequenceOptions,
    live: Mutex<HashMap<SequenceId, Arc<Slot>>>,
    places: Arc<Semaphore>,
    waiting: AtomicUsize,
}

/// One sequence.
struct Slot {
    state: SequenceState,
    /// Held by the request whose turn it is; fair, so turns are in the order of arrival.
    turn: Arc<TurnMutex<Progress>>,
    /// Requests that hold the turn or wait for it.
    users: AtomicUsize,
    used: Mutex<Instant>,
    /// A request has had its turn; one that never ran leaves no sequence behind.
    has_run: AtomicBool,
}

/// Where a sequence stands.
#[derive(Default)]
struct Progress {
    /// The place among the sequences that run at once, once it has one.
    place: Option<OwnedSemaphorePermit>,
    /// Its last request was answered, and nobody has begun it anew.
    has_ended: bool,
}

impl<E> Sequences<E> {
    /// Makes the decorator.
    pub(crate) fn new(engine: E, options: SequenceOptions) -> Self {
        let places = Arc::new(Semaphore::new(options.max_sequences));
        Self { engine, options, live: Mutex::default(), places, waiting: AtomicUsize::new(0) }
    }

    fn live(&self) -> MutexGuard<'_, HashMap<SequenceId, Arc<Slot>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks what every request of a sequence has to have.
    fn check<'a>(&self, request: &'a InferRequest) -> Result<&'a Sequence> {
        let model = &self.options.model;
        let must = format!("inference request to model '{model}' must specify");
        let sequence = request.sequence.as_ref().ok_or_else(|| {
            Error::invalid(format!("{must} a non-zero or non-empty correlation ID"))
        })?;
        if let SequenceId::Text(id) = &sequence.id
            && id.chars().count() > MAX_ID_CHARACTERS
        {
            return Err(Error::new(
                ErrorKind::Unimplemented,
                format!(
                    "string correlation ID cannot be longer than {MAX_ID_CHARACTERS} characters, \
                     got {} for model '{model}'",
                    id.chars().count()
                ),
            ));
        }
        let batch = request.inputs.first().and_then(|input| input.shape.first()).copied();
        match batch {
            Some(size) if size > 1 && self.options.has_batch => Err(Error::invalid(format!(
                "{must} batch-size 1 due to requirements of sequence batcher"
            ))),
            _ => Ok(sequence),
        }
    }

    /// Finds or makes the sequence that a request belongs to, and counts the request in.
    fn enter(&self, sequence: &Sequence) -> Result<Visit<'_, E>> {
        let mut live = self.live();
        let now = Instant::now();
        live.retain(|_, slot| !slot.is_idle(now, self.options.idle));
        let slot = match live.get(&sequence.id) {
            // A start on a live id begins it anew, and takes its turn behind what still runs.
            Some(slot) => slot.clone(),
            None if sequence.start => {
                let slot = Arc::new(Slot::new(now));
                live.insert(sequence.id.clone(), slot.clone());
                slot
            }
            None => return Err(self.without_start(sequence)),
        };
        slot.users.fetch_add(1, Relaxed);
        Ok(Visit { sequences: self, id: sequence.id.clone(), slot })
    }

    fn without_start(&self, sequence: &Sequence) -> Error {
        Error::invalid(format!(
            "inference request for sequence {} to model '{}' must specify the START flag on the \
             first request of the sequence",
            sequence.id, self.options.model
        ))
    }

    /// Waits for a place among the sequences that run at once.
    async fn place(&self) -> Result<OwnedSemaphorePermit> {
        loop {
            // Nothing else may come that would forget the idle ones.
            let now = Instant::now();
            self.live().retain(|_, slot| !slot.is_idle(now, self.options.idle));
            let places = self.places.clone().acquire_owned();
            match tokio::time::timeout(self.options.idle, places).await {
                Ok(Ok(permit)) => return Ok(permit),
                Ok(Err(error)) => {
                    return Err(Error::internal("no sequence can begin").with_source(error));
                }
                Err(_) => {}
            }
        }
    }
}

impl Slot {
    fn new(now: Instant) -> Self {
        Self {
            state: SequenceState::default(),
            turn: Arc::default(),
            users: AtomicUsize::new(0),
            used: Mutex::new(now),
            has_run: AtomicBool::new(false),
        }
    }

    fn is_idle(&self, now: Instant, limit: Duration) -> bool {
        let used = *self.used.lock().unwrap_or_else(PoisonError::into_inner);
        self.users.load(Relaxed) == 0 && now.saturating_duration_since(used) > limit
    }
}

/// A request inside its sequence; dropped with the request.
struct Visit<'a, E> {
    sequences: &'a Sequences<E>,
    id: SequenceId,
    slot: Arc<Slot>,
}

impl<E> Drop for Visit<'_, E> {
    fn drop(&mut self) {
        *self.slot.used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        let mut live = self.sequences.live();
        let was_last = self.slot.users.fetch_sub(1, Relaxed) == 1;
        if was_last && !self.slot.has_run.load(Relaxed) {
            live.remove(&self.id);
        }
    }
}

/// A request that waits, counted.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

#[async_trait]
impl<E: Engine<InferRequest>> Engine<InferRequest> for Sequences<E> {
    async fn call(
        &self,
        mut request: InferRequest,
        context: Context,
    ) -> Result<OutputStream<InferRequest>> {
        let sequence = self.check(&request)?.clone();
        let before = self.waiting.fetch_add(1, Relaxed);
        let waiting = Waiting(&self.waiting);
        if before >= MAX_WAITING {
            return Err(Error::new(ErrorKind::Overloaded, "Exceeds maximum queue size"));
        }
        let visit = self.enter(&sequence)?;
        let mut turn = visit.slot.turn.clone().lock_owned().await;
        if turn.has_ended && !sequence.start {
            return Err(self.without_start(&sequence));
        }
        if turn.place.is_none() {
            turn.place = Some(self.place().await?);
        }
        drop(waiting);
        turn.has_ended = sequence.end;
        visit.slot.has_run.store(true, Relaxed);
        if let Some(sequence) = &mut request.sequence {
            sequence.state = visit.slot.state.clone();
            if sequence.start {
                sequence.state.lock().clear();
            }
        }
        // The answer is taken whole while the turn is held: models of sequences give one.
        let outputs: Vec<_> = match self.engine.call(request, context).await {
            Ok(stream) => stream.collect().await,
            Err(error) => vec![Err(error)],
        };
        if sequence.end {
            let mut live = visit.sequences.live();
            // Somebody who waits for a turn may begin the same id anew, in a place of its own.
            if visit.slot.users.load(Relaxed) == 1 {
                live.remove(&visit.id);
            }
            turn.place = None;
            visit.slot.state.lock().clear();
        }
        Ok(Box::pin(futures_util::stream::iter(outputs)))
    }
}
