//! Workers that come and go.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::time::Duration;

use cluster::instance::InstanceId;
use engine::testing::Function;
use engine::{EmbedRequest, EmbedTextRequest, InferRequest, TextRequest};
use tokio::sync::watch;

use super::*;
use crate::pipeline::{Candidate, Engines, Workers};

/// What a busy worker says.
pub(super) const RETRY_AFTER: Duration = Duration::from_millis(7);

/// What a worker did with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Accepted,
    Busy,
    /// It is dead or drains.
    Refused,
    Lost,
}

pub(super) struct World {
    clock: Clock,
    random: Mutex<fastrand::Rng>,
    pub is_gentle: bool,
    workers: Mutex<Vec<Arc<Worker>>>,
    candidates: Mutex<Arc<[Arc<Candidate>]>>,
    /// All that there ever were.
    history: Mutex<Vec<(Arc<Worker>, Arc<Candidate>)>>,
    fates: Mutex<BTreeMap<String, Vec<Fate>>>,
    /// The fewest that could be asked at any time.
    fewest: AtomicUsize,
}

struct Worker {
    id: InstanceId,
    /// It takes everything and lives for ever.
    is_immortal: bool,
    capacity: usize,
    is_dead: AtomicBool,
    is_draining: AtomicBool,
    streams: AtomicUsize,
}

#[derive(Clone)]
struct Remote {
    worker: Arc<Worker>,
    world: std::sync::Weak<World>,
}

impl World {
    pub(super) fn new(clock: Clock, mut random: fastrand::Rng, is_gentle: bool) -> Arc<Self> {
        let count = random.usize(..4);
        let world = Arc::new(Self {
            clock,
            random: Mutex::new(random),
            is_gentle,
            workers: Mutex::default(),
            candidates: Mutex::new(Arc::new([])),
            history: Mutex::default(),
            fates: Mutex::default(),
            fewest: AtomicUsize::new(usize::MAX),
        });
        if is_gentle {
            world.join(true);
        }
        (0..count).for_each(|_| world.join(false));
        world
    }

    fn join(self: &Arc<Self>, is_immortal: bool) {
        let mut history = self.history.lock().unwrap();
        let worker = Arc::new(Worker {
            id: InstanceId(history.len() as u64),
            is_immortal,
            capacity: if is_immortal { usize::MAX } else { self.roll(1, 6) as usize },
            is_dead: AtomicBool::new(false),
            is_draining: AtomicBool::new(false),
            streams: AtomicUsize::new(0),
        });
        let remote = Remote { worker: worker.clone(), world: Arc::downgrade(self) };
        let engines = Engines {
            generate: Arc::new(remote),
            infer: Arc::new(Function(|_: InferRequest, _| Err(dead()))),
            embed: Arc::new(Function(|_: EmbedRequest, _| Err(dead()))),
            text: Arc::new(Function(|_: TextRequest, _| Err(dead()))),
            embed_text: Arc::new(Function(|_: EmbedTextRequest, _| Err(dead()))),
        };
        let candidate = Arc::new(Candidate::new(worker.id, engines));
        history.push((worker.clone(), candidate));
        drop(history);
        self.workers.lock().unwrap().push(worker);
        self.publish();
    }

    /// Shows clients the workers that are registered.
    fn publish(&self) {
        let workers = self.workers.lock().unwrap();
        let history = self.history.lock().unwrap();
        let known = |id: InstanceId| workers.iter().any(|worker| worker.id == id);
        let shown = history.iter().filter(|(worker, _)| known(worker.id));
        *self.candidates.lock().unwrap() = shown.map(|(_, candidate)| candidate.clone()).collect();
    }

    fn roll(&self, least: u64, most: u64) -> u64 {
        self.random.lock().unwrap().u64(least..=most)
    }

    /// Lets workers come, die, drain and be forgotten, for some time.
    pub(super) async fn live(self: Arc<Self>, mut random: fastrand::Rng) {
        for _ in 0..20 {
            self.clock.sleep(random.u64(1..12)).await;
            let workers = self.workers.lock().unwrap().clone();
            let chosen = workers.get(random.usize(..workers.len().max(1)));
            let chosen = chosen.filter(|worker| !worker.is_immortal);
            match (random.u32(..10), chosen) {
                (0..4, _) => self.join(false),
                (4..7, Some(worker)) => worker.is_dead.store(true, Relaxed),
                (7, Some(worker)) => {
                    worker.is_draining.store(true, Relaxed);
                    let history = self.history.lock().unwrap();
                    let known = history.iter().find(|(other, _)| other.id == worker.id);
                    if random.bool() {
                        known.unwrap().1.set_draining(true);
                    }
                }
                (8, Some(worker)) if worker.is_dead.load(Relaxed) => self.forget(worker.id),
                _ => {}
            }
        }
    }

    fn forget(&self, id: InstanceId) {
        self.workers.lock().unwrap().retain(|worker| worker.id != id || worker.is_immortal);
        self.publish();
    }

    fn note(&self, context: &Context, fate: Fate) {
        self.fates.lock().unwrap().entry(context.id().to_owned()).or_default().push(fate);
    }

    /// Returns what workers did with a request.
    pub(super) fn fates(&self, number: u64) -> Vec<Fate> {
        self.fates.lock().unwrap().get(&number.to_string()).cloned().unwrap_or_default()
    }

    /// Returns whether there once were fewer workers to ask than that.
    pub(super) fn was_short_of(&self, workers: usize) -> bool {
        self.fewest.load(Relaxed) < workers
    }

    pub(super) fn is_idle(&self) -> bool {
        let history = self.history.lock().unwrap();
        let is_idle = |(worker, candidate): &(Arc<Worker>, Arc<Candidate>)| {
            worker.streams.load(Relaxed) == 0 && candidate.in_flight() == 0
        };
        history.iter().all(is_idle)
    }
}

impl Workers for World {
    fn candidates(&self) -> Arc<[Arc<Candidate>]> {
        let candidates = self.candidates.lock().unwrap().clone();
        let open = candidates.iter().filter(|candidate| !candidate.is_draining()).count();
        self.fewest.fetch_min(open, Relaxed);
        candidates
    }

    fn suspect(&self, id: InstanceId) {
        let history = self.history.lock().unwrap();
        let (worker, _) = history.iter().find(|(worker, _)| worker.id == id).unwrap();
        assert!(worker.is_dead.load(Relaxed), "{id} is suspected and lives");
        drop(history);
        if self.roll(0, 1) == 0 {
            self.forget(id);
        }
    }

    fn changes(&self) -> watch::Receiver<()> {
        watch::channel(()).1
    }
}

struct Open(Arc<Worker>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Relaxed);
    }
}

#[async_trait]
impl Engine<GenerateRequest> for Remote {
    async fn call(
        &self,
        request: GenerateRequest,
        context: Context,
    ) -> Result<OutputStream<GenerateRequest>> {
        let (worker, world) = (self.worker.clone(), self.world.upgrade().unwrap());
        world.clock.sleep(world.roll(0, 3)).await;
        let refused = |fate, error| {
            world.note(&context, fate);
            Err(error)
        };
        if worker.is_dead.load(Relaxed) {
            return refused(Fate::Refused, dead());
        }
        if worker.is_draining.load(Relaxed) {
            return refused(Fate::Refused, dead().with_code("draining"));
        }
        if worker.streams.load(Relaxed) >= worker.capacity {
            let error = Error::new(ErrorKind::Overloaded, "the queue is full");
            return refused(Fate::Busy, error.with_retry_after(RETRY_AFTER));
        }
        world.note(&context, Fate::Accepted);
        worker.streams.fetch_add(1, Relaxed);
        let open = Open(worker.clone());
        let outputs = oracle::pieces(&request, &mut world.random.lock().unwrap());
        let state = (outputs.into_iter(), open, world, context, false);
        Ok(Box::pin(futures_util::stream::unfold(state, |mut state| async move {
            let (outputs, open, world, context, is_over) = &mut state;
            if *is_over {
                return None;
            }
            world.clock.sleep(world.roll(0, 4)).await;
            if !open.0.is_dead.load(Relaxed) {
                return Some((Ok(outputs.next()?), state));
            }
            world.note(context, Fate::Lost);
            *is_over = true;
            // Now and then a connection just ends.
            (world.roll(0, 3) > 0).then(|| (Err(dead()), state))
        })))
    }
}
