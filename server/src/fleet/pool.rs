//! The workers of one model, as its route sees them.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use cluster::instance::InstanceId;
use cluster::membership::Membership;
use cluster::request::{News, RemoteWorker, WatchOptions};
use engine::{Tasks, WorkerLoad};
use futures_util::StreamExt;
use tokio::time::timeout;

use crate::pipeline::{Candidate, Engines, Workers};

/// How often workers tell their load.
const LOAD_INTERVAL: Duration = Duration::from_millis(250);

/// The wait before a worker that tells nothing is asked again.
const AGAIN: Duration = Duration::from_secs(1);

/// The workers of one model.
pub(super) struct Pool {
    name: Arc<str>,
    candidates: RwLock<Arc<[Arc<Candidate>]>>,
    membership: Membership,
}

/// A worker that takes work.
pub(super) struct Place {
    pub id: InstanceId,
    pub worker: RemoteWorker,
    /// Whether it has a load to tell.
    pub has_load: bool,
}

impl Pool {
    /// Makes the pool of a model without workers.
    pub(super) fn new(name: &str, membership: Membership) -> Arc<Self> {
        let candidates = RwLock::new(Arc::from([]));
        Arc::new(Self { name: name.into(), candidates, membership })
    }

    /// Takes these workers and no others from now on; one that stays keeps what is known of it.
    pub(super) fn set(&self, places: Vec<Place>, tasks: &Tasks) {
        let now = self.candidates();
        let before: BTreeMap<InstanceId, &Arc<Candidate>> =
            now.iter().map(|candidate| (candidate.id, candidate)).collect();
        let take = |place: Place| match before.get(&place.id) {
            Some(candidate) => Arc::clone(candidate),
            None => self.begin(place, tasks),
        };
        let after: Arc<[Arc<Candidate>]> = places.into_iter().map(take).collect();
        *self.candidates.write().unwrap_or_else(PoisonError::into_inner) = after;
    }

    fn begin(&self, place: Place, tasks: &Tasks) -> Arc<Candidate> {
        let model = place.worker.model(self.name.clone());
        let candidate = Arc::new(Candidate::new(place.id, Engines::of(Arc::new(model))));
        let (name, told) = (self.name.clone(), Arc::downgrade(&candidate));
        let options = WatchOptions {
            load_interval: place.has_load.then_some(LOAD_INTERVAL),
            kv_events: false,
        };
        tasks.spawn("worker load", async move {
            while told.strong_count() > 0 {
                if let Ok(mut news) = place.worker.watch(&name, options).await {
                    loop {
                        let next = timeout(AGAIN, news.next()).await;
                        let Some(candidate) = told.upgrade() else { return };
                        let Ok(next) = next else { continue };
                        let Some(Ok(news)) = next else { break };
                        match news {
                            News::Load(load) => candidate.set_load(load),
                            News::Draining => candidate.set_draining(true),
                            News::Kv { .. } | News::Gap { .. } => {}
                        }
                    }
                }
                tokio::time::sleep(AGAIN).await;
            }
        });
        candidate
    }

    /// Returns whether a request would find a worker.
    pub(super) fn is_ready(&self) -> bool {
        self.candidates().iter().any(|candidate| !candidate.is_draining())
    }

    /// Returns how busy all workers are together.
    pub(super) fn load(&self) -> WorkerLoad {
        let add = |all: WorkerLoad, one: WorkerLoad| WorkerLoad {
            waiting_requests: all.waiting_requests.saturating_add(one.waiting_requests),
            running_sequences: all.running_sequences.saturating_add(one.running_sequences),
            used_blocks: all.used_blocks.saturating_add(one.used_blocks),
            cached_blocks: all.cached_blocks.saturating_add(one.cached_blocks),
            total_blocks: all.total_blocks.saturating_add(one.total_blocks),
            block_tokens: one.block_tokens,
        };
        let candidates = self.candidates();
        candidates.iter().map(|candidate| candidate.load()).fold(WorkerLoad::default(), add)
    }
}

impl Workers for Pool {
    fn candidates(&self) -> Arc<[Arc<Candidate>]> {
        self.candidates.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn suspect(&self, id: InstanceId) {
        self.membership.suspect(id);
    }
}
