//! One worker as the frontend sees it: how to ask it, and how busy it is.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use cluster::instance::InstanceId;
use engine::{
    EmbedRequest, EmbedTextRequest, Engine, GenerateRequest, InferRequest, TextRequest, WorkerLoad,
};
use prometheus_client::metrics::gauge::Gauge;
use router::{ActiveLoad, Overlap, Reservation, WorkerId, WorkerState};
use tokio_util::sync::{CancellationToken, DropGuard, WaitForCancellationFutureOwned};

/// The engines of a worker, one for each kind of request; one that it has not refuses.
#[derive(Clone)]
pub(crate) struct Engines {
    pub generate: Arc<dyn Engine<GenerateRequest>>,
    pub infer: Arc<dyn Engine<InferRequest>>,
    pub embed: Arc<dyn Engine<EmbedRequest>>,
    pub text: Arc<dyn Engine<TextRequest>>,
    pub embed_text: Arc<dyn Engine<EmbedTextRequest>>,
}

impl Engines {
    /// Takes the engines from what is all of them, as a remote model is.
    pub(crate) fn of<E>(engine: Arc<E>) -> Self
    where
        E: Engine<GenerateRequest>
            + Engine<InferRequest>
            + Engine<EmbedRequest>
            + Engine<TextRequest>
            + Engine<EmbedTextRequest>,
    {
        Self {
            generate: engine.clone(),
            infer: engine.clone(),
            embed: engine.clone(),
            text: engine.clone(),
            embed_text: engine,
        }
    }
}

/// A worker of a model. It lives as long as the worker is known.
pub(crate) struct Candidate {
    pub id: InstanceId,
    pub engines: Engines,
    is_draining: AtomicBool,
    /// Whether a connection to it was open once.
    was_reached: AtomicBool,
    /// Whether it failed the frontend's own request.
    is_unwell: AtomicBool,
    /// Cancelled when it fails that; there is another one when it answers again.
    silence: Mutex<CancellationToken>,
    /// Whether it answered anything since that was asked last.
    was_heard: AtomicBool,
    /// Places in the worker that requests of this frontend take.
    in_flight: AtomicU64,
    /// Places that others took when the load was told.
    others: AtomicU64,
    load: Mutex<WorkerLoad>,
    /// What this frontend's requests still have to compute there, and what they hold.
    active: Arc<ActiveLoad>,
    /// The number of the choice that fell on it last.
    chosen: AtomicU64,
    /// Cancelled with its end.
    end: DropGuard,
}

impl Candidate {
    /// Makes a worker of which nothing but its engines is known.
    pub(crate) fn new(id: InstanceId, engines: Engines) -> Self {
        Self {
            id,
            engines,
            is_draining: AtomicBool::new(false),
            was_reached: AtomicBool::new(false),
            is_unwell: AtomicBool::new(false),
            silence: Mutex::default(),
            was_heard: AtomicBool::new(false),
            in_flight: AtomicU64::new(0),
            others: AtomicU64::new(0),
            load: Mutex::default(),
            active: Arc::default(),
            chosen: AtomicU64::new(0),
            end: CancellationToken::new().drop_guard(),
        }
    }

    /// Returns the load that the worker told last.
    pub(crate) fn load(&self) -> WorkerLoad {
        *self.load.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what the worker tells of its load. What it has beyond the requests of this frontend
    /// is that of other frontends.
    pub(crate) fn set_load(&self, load: WorkerLoad) {
        let told = u64::from(load.waiting_requests) + u64::from(load.running_sequences);
        self.others.store(told.saturating_sub(self.in_flight()), Relaxed);
        *self.load.lock().unwrap_or_else(PoisonError::into_inner) = load;
    }

    /// Returns whether a request may be given to it.
    pub(crate) fn takes_work(&self) -> bool {
        !self.is_draining() && !self.is_unwell()
    }

    /// Returns whether it drains, and so takes no new work.
    pub(crate) fn is_draining(&self) -> bool {
        self.is_draining.load(Relaxed)
    }

    /// Returns whether it was reached: who is only registered may be anywhere.
    pub(crate) fn was_reached(&self) -> bool {
        self.was_reached.load(Relaxed)
    }

    /// Notes that it was reached.
    pub(crate) fn set_reached(&self) {
        self.was_reached.store(true, Relaxed);
    }

    /// Returns whether it failed the frontend's own request, and so gets no other.
    pub(crate) fn is_unwell(&self) -> bool {
        self.is_unwell.load(Relaxed)
    }

    /// Notes how the frontend's own request went; returns whether that is news.
    pub(crate) fn set_unwell(&self, is_unwell: bool) -> bool {
        let is_news = self.is_unwell.swap(is_unwell, Relaxed) != is_unwell;
        let mut silence = self.silence.lock().unwrap_or_else(PoisonError::into_inner);
        match is_unwell {
            true => silence.cancel(),
            false if is_news => *silence = CancellationToken::new(),
            false => {}
        }
        is_news
    }

    /// Returns what is done when it fails the frontend's own request: others that it has are not
    /// waited for any longer.
    pub(super) fn silence(&self) -> WaitForCancellationFutureOwned {
        let silence = self.silence.lock().unwrap_or_else(PoisonError::into_inner);
        silence.clone().cancelled_owned()
    }

    /// Notes that it answered something.
    fn hear(&self) {
        // Read first, since many streams do this for each of their outputs.
        if !self.was_heard.load(Relaxed) {
            self.was_heard.store(true, Relaxed);
        }
    }

    /// Returns whether it answered anything since this was asked last.
    pub(crate) fn take_heard(&self) -> bool {
        self.was_heard.swap(false, Relaxed)
    }

    /// Notes whether it takes no new work.
    pub(crate) fn set_draining(&self, is_draining: bool) {
        self.is_draining.store(is_draining, Relaxed);
    }

    /// Returns what is done when it is known no more.
    pub(crate) fn gone(&self) -> WaitForCancellationFutureOwned {
        self.end.token().clone().cancelled_owned()
    }

    /// Returns how many places requests of this frontend take.
    pub(crate) fn in_flight(&self) -> u64 {
        self.in_flight.load(Relaxed)
    }

    /// Returns how many requests it has, as far as is known.
    pub(super) fn cost(&self) -> u64 {
        self.in_flight() + self.others.load(Relaxed)
    }

    /// Returns what a policy sees of it.
    pub(super) fn state(&self, overlap: Overlap) -> WorkerState {
        WorkerState {
            id: WorkerId(self.id.0),
            requests: self.cost(),
            last_chosen: self.chosen.load(Relaxed),
            prefill_tokens: self.active.prefill_tokens(),
            decode_blocks: self.active.decode_blocks(),
            overlap,
        }
    }

    /// Chooses it, unless somebody else did since `before` was read.
    pub(super) fn choose(&self, before: u64, now: u64) -> bool {
        self.chosen.compare_exchange(before, now, Relaxed, Relaxed).is_ok()
    }
}

impl fmt::Debug for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Candidate")
            .field("id", &self.id)
            .field("in_flight", &self.in_flight())
            .finish_non_exhaustive()
    }
}

/// A request's places in a worker, as long as this lives.
pub(super) struct InFlight {
    candidate: Arc<Candidate>,
    places: u64,
    calls: Gauge,
    tracked: Option<Tracked>,
}

/// What a prompt adds to its worker's load.
#[derive(Clone, Copy, Debug)]
pub(super) struct PromptLoad {
    /// Tokens that the worker has to compute.
    pub prefill_tokens: u64,
    /// KV blocks that it does not hold yet.
    pub blocks: u64,
    pub block_tokens: u32,
}

/// The load of a request with a prompt, as it changes.
struct Tracked {
    reservation: Reservation,
    block_tokens: u32,
    /// Output tokens behind the last block that was counted.
    tokens: u32,
}

impl InFlight {
    pub(super) fn begin(
        candidate: Arc<Candidate>,
        places: u64,
        calls: Gauge,
        prompt: Option<PromptLoad>,
    ) -> Self {
        candidate.in_flight.fetch_add(places, Relaxed);
        calls.inc();
        let tracked = prompt.map(|prompt| Tracked {
            reservation: Reservation::new(&candidate.active, prompt.prefill_tokens, prompt.blocks),
            block_tokens: prompt.block_tokens.max(1),
            tokens: 0,
        });
        Self { candidate, places, calls, tracked }
    }

    /// Notes an output of this many tokens.
    pub(super) fn progress(&mut self, tokens: usize) {
        self.candidate.hear();
        if let Some(tracked) = &mut self.tracked {
            tracked.reservation.prefill_done();
            tracked.tokens = tracked.tokens.saturating_add(tokens as u32);
            let blocks = tracked.tokens / tracked.block_tokens;
            if blocks > 0 {
                tracked.tokens %= tracked.block_tokens;
                tracked.reservation.grow(blocks.into());
            }
        }
    }

    pub(super) fn candidate(&self) -> &Arc<Candidate> {
        &self.candidate
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.candidate.in_flight.fetch_sub(self.places, Relaxed);
        self.calls.dec();
    }
}
