//! The workers of one model, as its route sees them.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock, Weak};
use std::time::Duration;

use cluster::instance::InstanceId;
use cluster::membership::Membership;
use cluster::request::{News, RemoteWorker, WatchOptions};
use engine::{Tasks, WorkerLoad};
use futures_util::StreamExt;
use tokio::sync::watch;
use tokio::time::timeout;

use super::canary::{Canary, Question};
use crate::models::Models;
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
    changes: watch::Sender<()>,
    /// What hears of workers that are unwell; it has the models that have this pool.
    models: Weak<Models>,
    canary: Canary,
}

/// A worker that takes work.
pub(super) struct Place {
    pub id: InstanceId,
    pub worker: RemoteWorker,
    /// Whether it has a load to tell.
    pub has_load: bool,
    /// What it is asked to see whether it is well.
    pub question: Question,
}

impl Pool {
    /// Makes the pool of a model without workers.
    pub(super) fn new(
        name: &str,
        membership: Membership,
        models: &Arc<Models>,
        canary: Canary,
    ) -> Arc<Self> {
        let (candidates, changes) = (RwLock::new(Arc::from([])), watch::Sender::new(()));
        let models = Arc::downgrade(models);
        Arc::new(Self { name: name.into(), candidates, membership, changes, models, canary })
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

    fn begin(self: &Arc<Self>, place: Place, tasks: &Tasks) -> Arc<Candidate> {
        let model = place.worker.model(self.name.clone());
        let candidate = Arc::new(Candidate::new(place.id, Engines::of(Arc::new(model))));
        if let Some(asking) = self.canary.ask(self, &candidate, &place) {
            tasks.spawn("canary", asking);
        }
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
        self.candidates().iter().any(|candidate| candidate.takes_work())
    }

    /// Shows the load of each worker.
    pub(super) fn each_load(&self, visit: &mut dyn FnMut(WorkerLoad)) {
        self.candidates().iter().for_each(|candidate| visit(candidate.load()));
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
