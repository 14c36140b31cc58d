//! The workers of one model, as its route sees them.

use std::sync::{Arc, Weak};

use cluster::card::Role;
use cluster::instance::{Instance, InstanceId};
use cluster::membership::Membership;
use cluster::request::{LinkState, RemoteWorker};
use engine::{Tasks, WorkerLoad};
use router::PrefixIndex;
use tokio::sync::watch;

use super::canary::{Canary, Question};
use super::news::{EventSubscriber, Publisher};
use super::roster::{Candidates, Roster};
use crate::models::registry::Models;
use crate::pipeline::{Candidate, Engines, Workers};

/// The workers of one model.
pub(super) struct Pool {
    name: Arc<str>,
    roster: Roster,
    membership: Membership,
    /// What hears of workers that are unwell; it has the models that have this pool.
    models: Weak<Models>,
    canary: Canary,
    subscriber: Arc<EventSubscriber>,
}

/// A worker that takes work.
pub(super) struct Place {
    pub id: InstanceId,
    pub instance: Arc<Instance>,
    pub worker: RemoteWorker,
    /// Its part of the work.
    pub role: Role,
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
        (canary, subscriber): (Canary, Arc<EventSubscriber>),
    ) -> Arc<Self> {
        let (name, roster, models) = (name.into(), Roster::default(), Arc::downgrade(models));
        Arc::new(Self { name, roster, membership, models, canary, subscriber })
    }

    /// Returns what the workers' KV caches hold.
    pub(super) fn index(&self) -> Arc<PrefixIndex> {
        self.subscriber.index()
    }

    /// Takes these workers and no others from now on; one that stays keeps what is known of it.
    pub(super) fn set(self: &Arc<Self>, places: Vec<Place>, tasks: &Tasks) {
        let of = |place: &Place| (place.id, place.role);
        self.roster.set(places, of, |place| self.begin(place, tasks));
    }

    /// Returns whether it has no workers.
    pub(super) fn is_empty(&self) -> bool {
        self.parts().iter().all(|part| part.is_empty())
    }

    /// Tells everybody that a worker is reached, unwell or well again.
    pub(super) fn touch(&self) {
        self.roster.touch();
        if let Some(models) = self.models.upgrade() {
            models.touch();
        }
    }

    /// Says that the model is ready when one of its workers has been reached.
    pub(super) fn announce(self: &Arc<Self>, tasks: &Tasks) {
        let (pool, mut changes) = (Arc::downgrade(self), self.roster.changes());
        tasks.spawn("model ready", async move {
            while let Some(pool) = pool.upgrade() {
                if pool.is_ready() {
                    tracing::info!(model = %pool.name, "model ready");
                    return;
                }
                drop(pool);
                if changes.changed().await.is_err() {
                    return;
                }
            }
        });
    }

    /// Notes when a worker is reached for the first time.
    fn expect(self: &Arc<Self>, candidate: &Arc<Candidate>, worker: &RemoteWorker, tasks: &Tasks) {
        let mut states = worker.state();
        if *states.borrow() == LinkState::Open {
            return candidate.set_reached();
        }
        let (gone, reached) = (candidate.gone(), Arc::downgrade(candidate));
        let pool = Arc::downgrade(self);
        tasks.spawn("worker reached", async move {
            let is_open = tokio::select! {
                opened = states.wait_for(|state| *state == LinkState::Open) => opened.is_ok(),
                () = gone => false,
            };
            if let Some(candidate) = reached.upgrade().filter(|_| is_open) {
                candidate.set_reached();
                if let Some(pool) = pool.upgrade() {
                    pool.touch();
                }
            }
        });
    }

    fn begin(self: &Arc<Self>, place: Place, tasks: &Tasks) -> Arc<Candidate> {
        let model = place.worker.model(self.name.clone());
        let candidate = Arc::new(Candidate::new(place.id, Engines::of(Arc::new(model))));
        self.expect(&candidate, &place.worker, tasks);
        if let Some(asking) = self.canary.ask(self, &candidate, &place) {
            tasks.spawn("canary", asking);
        }
        let Place { instance, worker, has_load, has_kv, .. } = place;
        let publisher = Publisher { instance, worker, model: self.name.clone(), has_load, has_kv };
        let told = Arc::downgrade(&candidate);
        tasks.spawn("worker news", self.subscriber.clone().hear(publisher, told));
        candidate
    }

    /// Returns whether a request would find a worker that was reached.
    pub(super) fn is_ready(&self) -> bool {
        let is_ready = |one: &Arc<Candidate>| one.takes_work() && one.was_reached();
        self.parts().iter().any(|part| part.iter().any(is_ready))
    }

    /// Shows the load of each worker that takes work: of the prefill workers only if there are no
    /// others, since a text that has begun waits for those.
    pub(super) fn each_load(&self, visit: &mut dyn FnMut(WorkerLoad)) {
        for part in self.parts() {
            let mut working = part.iter().filter(|one| one.takes_work()).peekable();
            if working.peek().is_some() {
                return working.for_each(|candidate| visit(candidate.load()));
            }
        }
    }

    fn parts(&self) -> [Candidates; 2] {
        self.roster.parts()
    }
}

impl Workers for Pool {
    fn candidates(&self) -> Candidates {
        let [others, _] = self.parts();
        others
    }

    fn suspect(&self, id: InstanceId) {
        self.membership.suspect(id);
    }

    fn changes(&self) -> watch::Receiver<()> {
        self.roster.changes()
    }
}

/// The prefill workers of a model.
pub(super) struct Prompts(pub Arc<Pool>);

impl Workers for Prompts {
    fn candidates(&self) -> Candidates {
        let [_, prompts] = self.0.parts();
        prompts
    }

    fn suspect(&self, id: InstanceId) {
        self.0.suspect(id);
    }

    fn changes(&self) -> watch::Receiver<()> {
        self.0.changes()
    }
}

#[cfg(test)]
mod tests;
