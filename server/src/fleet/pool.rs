//! The workers of one model, as its route sees them.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use cluster::instance::{Instance, InstanceId};
use cluster::membership::Membership;
use cluster::request::RemoteWorker;
use engine::{Tasks, WorkerLoad};

use super::news::{Ear, Speaker};
use crate::pipeline::{Candidate, Engines, Workers};

/// The workers of one model.
pub(super) struct Pool {
    name: Arc<str>,
    candidates: RwLock<Arc<[Arc<Candidate>]>>,
    membership: Membership,
    ear: Arc<Ear>,
}

/// A worker that takes work.
pub(super) struct Place {
    pub id: InstanceId,
    pub instance: Arc<Instance>,
    pub worker: RemoteWorker,
    /// Whether it has a load to tell, and KV events.
    pub has_load: bool,
    pub has_kv: bool,
}

impl Pool {
    /// Makes the pool of a model without workers.
    pub(super) fn new(name: &str, membership: Membership, ear: Arc<Ear>) -> Arc<Self> {
        let candidates = RwLock::new(Arc::from([]));
        Arc::new(Self { name: name.into(), candidates, membership, ear })
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
        let Place { instance, worker, has_load, has_kv, .. } = place;
        let speaker = Speaker { instance, worker, model: self.name.clone(), has_load, has_kv };
        let told = Arc::downgrade(&candidate);
        tasks.spawn("worker news", self.ear.clone().hear(speaker, told));
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
