//! The workers of one model, as its route sees them.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock, Weak};

use cluster::instance::{Instance, InstanceId};
use cluster::membership::Membership;
use cluster::request::{LinkState, RemoteWorker};
use engine::{Tasks, WorkerLoad};
use tokio::sync::watch;

use super::canary::{Canary, Question};
use super::news::{Ear, Speaker};
use crate::models::Models;
use crate::pipeline::{Candidate, Engines, Workers};

/// The workers of one model.
pub(super) struct Pool {
    name: Arc<str>,
    candidates: RwLock<Arc<[Arc<Candidate>]>>,
    membership: Membership,
    changes: watch::Sender<()>,
    /// Whether any of the workers has been reached.
    reached: watch::Sender<bool>,
    /// What hears of workers that are unwell; it has the models that have this pool.
    models: Weak<Models>,
    canary: Canary,
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
    /// What it is asked to see whether it is well.
    pub question: Question,
}

impl Pool {
    /// Makes the pool of a model without workers.
    pub(super) fn new(
        name: &str,
        membership: Membership,
        models: &Arc<Models>,
        (canary, ear): (Canary, Arc<Ear>),
    ) -> Arc<Self> {
        let (candidates, changes) = (RwLock::new(Arc::from([])), watch::Sender::new(()));
        let (name, models, reached) =
            (name.into(), Arc::downgrade(models), watch::Sender::new(false));
        Arc::new(Self { name, candidates, membership, changes, reached, models, canary, ear })
    }

    /// Takes these workers and no others from now on; one that stays keeps what is known of it.
    pub(super) fn set(self: &Arc<Self>, places: Vec<Place>, tasks: &Tasks) {
        let now = self.candidates();
        let before: BTreeMap<InstanceId, &Arc<Candidate>> =
            now.iter().map(|candidate| (candidate.id, candidate)).collect();
        let take = |place: Place| match before.get(&place.id) {
            Some(candidate) => Arc::clone(candidate),
            None => self.begin(place, tasks),
        };
        let after: Arc<[Arc<Candidate>]> = places.into_iter().map(take).collect();
        *self.candidates.write().unwrap_or_else(PoisonError::into_inner) = after;
        self.changes.send_replace(());
    }

    /// Tells everybody that a worker is unwell or well again.
    pub(super) fn touch(&self) {
        self.changes.send_replace(());
        if let Some(models) = self.models.upgrade() {
            models.touch();
        }
    }

    /// Says that the model is ready when one of its workers has been reached.
    pub(super) fn announce(&self, tasks: &Tasks) {
        let (name, mut reached) = (self.name.clone(), self.reached.subscribe());
        tasks.spawn("model ready", async move {
            if reached.wait_for(|is_reached| *is_reached).await.is_ok() {
                tracing::info!(model = %name, "model ready");
            }
        });
    }

    /// Notes when a worker is reached for the first time: who is only registered may be anywhere.
    fn expect(self: &Arc<Self>, worker: &RemoteWorker, tasks: &Tasks) {
        if *self.reached.borrow() {
            return;
        }
        let (pool, mut states) = (Arc::downgrade(self), worker.state());
        tasks.spawn("worker reached", async move {
            let opened = states.wait_for(|state| *state == LinkState::Open).await.is_ok();
            if let Some(pool) = pool.upgrade().filter(|_| opened) {
                pool.reached.send_replace(true);
                pool.touch();
            }
        });
    }

    fn begin(self: &Arc<Self>, place: Place, tasks: &Tasks) -> Arc<Candidate> {
        self.expect(&place.worker, tasks);
        let model = place.worker.model(self.name.clone());
        let candidate = Arc::new(Candidate::new(place.id, Engines::of(Arc::new(model))));
        if let Some(asking) = self.canary.ask(self, &candidate, &place) {
            tasks.spawn("canary", asking);
        }
        let Place { instance, worker, has_load, has_kv, .. } = place;
        let speaker = Speaker { instance, worker, model: self.name.clone(), has_load, has_kv };
        let told = Arc::downgrade(&candidate);
        tasks.spawn("worker news", self.ear.clone().hear(speaker, told));
        candidate
    }

    /// Returns whether a request would find a worker.
    pub(super) fn is_ready(&self) -> bool {
        *self.reached.borrow() && self.candidates().iter().any(|candidate| candidate.takes_work())
    }

    /// Shows the load of each worker that takes work.
    pub(super) fn each_load(&self, visit: &mut dyn FnMut(WorkerLoad)) {
        let candidates = self.candidates();
        let working = candidates.iter().filter(|candidate| candidate.takes_work());
        working.for_each(|candidate| visit(candidate.load()));
    }
}

impl Workers for Pool {
    fn candidates(&self) -> Arc<[Arc<Candidate>]> {
        self.candidates.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn suspect(&self, id: InstanceId) {
        self.membership.suspect(id);
    }

    fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }
}
