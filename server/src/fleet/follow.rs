//! Makes models of what workers register: they come, change their workers, and go.
//!
//! One task owns what is served. A model is made once for each card, off the task, and keeps its
//! counters and thresholds while workers come and go under it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use cluster::Complaints;
use cluster::card::{Checksum, Kind};
use cluster::instance::{Instance, InstanceId};
use cluster::membership::{Config as MembershipConfig, Membership, Model as Registered, Snapshot};
use cluster::request::{LinkState, RemoteWorker};
use engine::Tasks;
use futures_util::future::{BoxFuture, FutureExt};
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::time::{Instant, sleep, sleep_until};

use super::bridges::Fetched;
use super::canary::Question;
use super::config::FleetConfig;
use super::maker::{Maker, Order};
use super::news::Ear;
use super::peers::Peers;
use super::planes::Planes;
use super::pool::{Place, Pool};
use super::store::Store;
use crate::metrics::{Metrics, ModelLabels};
use crate::models::{Model, Models};
use crate::pipeline::Limits;
use crate::security::LinkConnectors;

/// The wait before a model that could not be made is tried again.
const AGAIN: Duration = Duration::from_secs(2);

/// The most models that left whose thresholds are remembered.
const MAX_REMEMBERED: usize = 1000;

/// The version under which workers' models are called.
const VERSION: u64 = 1;

/// The models of a fleet, in one frontend.
pub(crate) struct Fleet {
    membership: Membership,
    maker: Arc<Maker>,
    peers: Arc<Peers>,
    planes: Arc<Planes>,
    models: Arc<Models>,
    known: BTreeMap<String, Known>,
    /// Whose workers still have a name that another model takes over, until that one is made.
    leaving: BTreeMap<String, Arc<Pool>>,
    /// When models that were here counted as busy, for when they come back.
    limits: BTreeMap<String, Limits>,
    tasks: Tasks,
}

/// A name that workers serve.
struct Known {
    checksum: Checksum,
    pool: Arc<Pool>,
    names: Vec<String>,
    /// When it is forgotten, since its last worker is gone.
    until: Option<Instant>,
    /// Why it could not be served, which is tried again and again.
    complaints: Complaints,
}

type Made = (Order, Result<Vec<Model>, String>);

impl Fleet {
    /// Starts to look for workers.
    ///
    /// Errors: a discovery that is not set up rightly.
    pub(crate) async fn open(
        config: &FleetConfig,
        models: &Arc<Models>,
        metrics: &Arc<Metrics>,
        tasks: &Tasks,
    ) -> Result<Self, String> {
        if matches!(config.store, Store::Static(_)) && config.planes.uses_nats() {
            tracing::warn!(
                "workers of static:// tell no subjects of nats: requests and events go over grpc"
            );
        }
        let tls = config.tls.clone().map(LinkConnectors::load).transpose()?;
        let planes = Arc::new(Planes::open(&config.planes, tls, tasks).await?);
        let peers = Peers::new(planes.clone(), tasks);
        let discovery = config.store.open(peers.clone(), tasks);
        let discovery = discovery.map_err(|error| error.to_string())?;
        let (query, settings) = (config.query.clone(), MembershipConfig::default());
        let membership = Membership::start(&*discovery, query, peers.clone(), settings, tasks);
        let fetched = Fetched::default();
        let maker = Maker { config: config.clone(), metrics: metrics.clone(), fetched };
        Ok(Self {
            membership,
            maker: Arc::new(maker),
            peers,
            planes,
            models: models.clone(),
            known: BTreeMap::new(),
            leaving: BTreeMap::new(),
            limits: BTreeMap::new(),
            tasks: tasks.clone(),
        })
    }

    /// Keeps what is served as the workers are, until the future is dropped.
    pub(crate) async fn follow(mut self) {
        self.planes.settle().await;
        let mut snapshots = self.membership.snapshots();
        let mut making = FuturesUnordered::<BoxFuture<'static, Made>>::new();
        loop {
            let snapshot = snapshots.borrow_and_update().clone();
            for order in self.apply(&snapshot) {
                making.push(make(self.maker.clone(), order, Duration::ZERO).boxed());
            }
            loop {
                let until = self.known.values().filter_map(|known| known.until).min();
                tokio::select! {
                    () = sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => {
                        self.retire(&snapshot);
                    }
                    changed = snapshots.changed() => match changed {
                        Ok(()) => break,
                        Err(_) => return,
                    },
                    Some(made) = making.next() => {
                        if let Some(order) = self.take(made) {
                            making.push(make(self.maker.clone(), order, AGAIN).boxed());
                        }
                    }
                }
            }
        }
    }

    /// Gives models their workers; returns the models that are to be made.
    fn apply(&mut self, snapshot: &Snapshot) -> Vec<Order> {
        self.retire(snapshot);
        let orders: Vec<Order> = snapshot
            .models
            .iter()
            .filter_map(|(name, model)| self.place(name, model, snapshot))
            .collect();
        let members = snapshot.models.values().flat_map(|model| &model.members);
        let known: BTreeSet<InstanceId> = members.map(|member| member.instance.id).collect();
        self.peers.retain(|id| known.contains(&id));
        self.models.touch();
        orders
    }

    /// Takes models away whose workers are gone. They stay for the time that requests wait for a
    /// worker, unless somebody else has one of their names.
    fn retire(&mut self, snapshot: &Snapshot) {
        let now = Instant::now();
        let wait = self.maker.config.worker_wait;
        let mut over = Vec::new();
        for (name, known) in &mut self.known {
            if snapshot.models.contains_key(name) {
                known.until = None;
                continue;
            }
            let is_taken = known.names.iter().any(|name| snapshot.model(name).is_some());
            if !is_taken {
                known.pool.set(Vec::new(), &self.tasks);
            }
            let until = *known.until.get_or_insert(now + wait);
            if is_taken || until <= now {
                over.push(name.clone());
            }
        }
        for name in over {
            if let Some(known) = self.known.remove(&name) {
                self.forget(&known, snapshot);
            }
        }
    }

    /// Gives a model its workers; returns it if it is to be made.
    fn place(&mut self, name: &str, model: &Registered, snapshot: &Snapshot) -> Option<Order> {
        let workers = self.workers(model);
        let remotes = workers.iter().map(|place| place.worker.clone()).collect();
        let names = names(name, model, snapshot);
        let same = self.known.get(name).filter(|known| known.checksum == model.checksum);
        let pool = match same {
            Some(known) => known.pool.clone(),
            None => self.pool(name),
        };
        pool.set(workers, &self.tasks);
        if same.is_some_and(|known| known.names == names) {
            return None;
        }
        let is_base = |(_, other): &(&String, &Registered)| {
            let has = |member: &cluster::membership::Member| {
                member.card.adapters.iter().any(|adapter| adapter == name)
            };
            other.members.iter().any(has)
        };
        let parent = snapshot.models.iter().find(is_base).map(|(base, _)| base.as_str().into());
        names.iter().for_each(|name| self.models.announce(name, VERSION));
        let (checksum, names_now) = (model.checksum, names.clone());
        let known = Known {
            checksum,
            pool: pool.clone(),
            names: names_now,
            until: None,
            complaints: Complaints::default(),
        };
        if let Some(before) = self.known.insert(name.to_owned(), known) {
            self.forget(&before, snapshot);
        }
        let card = model.card.clone();
        Some(Order { card, checksum, pool, workers: remotes, names, parent })
    }

    /// Makes a pool for the workers of a model.
    fn pool(&self, name: &str) -> Arc<Pool> {
        let canary = self.maker.canary(name);
        let ear = Ear::new(name, self.planes.clone(), &self.maker.metrics, &self.tasks);
        Pool::new(name, self.membership.clone(), &self.models, (canary, ear))
    }

    /// Takes the names of a model away. One that another model takes over is the old one's until
    /// that is made.
    fn forget(&mut self, old: &Known, snapshot: &Snapshot) {
        for name in &old.names {
            let is_still_ours =
                |known: &Known| Arc::ptr_eq(&known.pool, &old.pool) && known.names.contains(name);
            if self.known.values().any(is_still_ours) {
                continue;
            }
            if snapshot.model(name).is_some() {
                self.leaving.entry(name.clone()).or_insert_with(|| old.pool.clone());
                continue;
            }
            self.leave(name);
            if let Some(limits) = self.limits_of(name) {
                self.limits.insert(name.to_owned(), limits);
                if self.limits.len() > MAX_REMEMBERED {
                    self.limits.pop_first();
                }
            }
            self.models.forget(name);
            self.maker.metrics.set_load(&ModelLabels { model: name.as_str().into() }, None);
        }
        self.end(&old.pool);
    }

    /// Notes that nothing is served by a name's old model any more.
    fn leave(&mut self, name: &str) {
        if let Some(pool) = self.leaving.remove(name) {
            self.end(&pool);
        }
    }

    /// Empties a pool that no name leads to: who still calls its model is not to wait for workers
    /// that never come.
    fn end(&self, pool: &Arc<Pool>) {
        let known = self.known.values().map(|known| &known.pool);
        if !known.chain(self.leaving.values()).any(|other| Arc::ptr_eq(other, pool)) {
            pool.set(Vec::new(), &self.tasks);
        }
    }

    /// Returns when a model counts as busy, as far as it is here.
    fn limits_of(&self, name: &str) -> Option<Limits> {
        let model = self.models.get(name, "").ok()?;
        Some(model.text.as_ref()?.thresholds.limits())
    }

    /// Returns the workers of a model that take work, with connections that are watched.
    fn workers(&self, model: &Registered) -> Vec<Place> {
        let mut places = Vec::new();
        for member in model.accepting_any() {
            let id = member.instance.id;
            match self.peers.worker(&member.instance) {
                Ok((worker, is_new)) => {
                    if is_new {
                        self.watch(&member.instance, worker.clone());
                    }
                    let instance = member.instance.clone();
                    let has_load = model.card.kind != Kind::Tensor;
                    let has_kv = has_load && model.card.kind != Kind::Embedding;
                    let question = Question::of(&model.card);
                    let role = member.card.role;
                    places.push(Place { id, instance, worker, role, has_load, has_kv, question });
                }
                refused => self.peers.note(&member.instance.address, &refused),
            }
        }
        places
    }

    /// Connects at once, and tells the membership when the last connection is lost.
    fn watch(&self, instance: &Arc<Instance>, worker: RemoteWorker) {
        let (membership, peers) = (self.membership.clone(), self.peers.clone());
        let (id, instance) = (instance.id, instance.clone());
        let mut states = worker.state();
        self.tasks.spawn("worker state", async move {
            let connected = worker.connect().await;
            peers.note(&instance.address, &connected);
            if connected.is_err() {
                membership.suspect(id);
            }
            // Only the state is held from now on, so that it ends with the worker.
            drop((worker, peers, instance));
            while states.changed().await.is_ok() {
                if *states.borrow_and_update() == LinkState::Lost {
                    membership.suspect(id);
                }
            }
        });
    }

    /// Serves a model that was made; returns it if it is to be tried again.
    fn take(&mut self, (order, made): Made) -> Option<Order> {
        let name = &order.card.name;
        let known = self.known.get(name)?;
        if !Arc::ptr_eq(&known.pool, &order.pool) || known.names != order.names {
            return None;
        }
        match made {
            Ok(models) => {
                known.complaints.forget(name);
                // What was changed while it ran stays changed, under all of its names.
                let before = self.limits_of(name).or_else(|| self.limits.remove(name));
                let text = models.first().and_then(|model| model.text.as_ref());
                if let (Some(text), Some(before)) = (text, before) {
                    text.thresholds.set(before);
                }
                for model in models {
                    let name = model.name.clone();
                    self.models.replace(&name, vec![(VERSION, Arc::new(model))]);
                    self.leave(&name);
                }
                order.pool.announce(&self.tasks);
                None
            }
            Err(why) => {
                if known.complaints.is_due(name, &why) {
                    tracing::warn!(model = name, why, "a model of workers cannot be served");
                }
                order.names.iter().for_each(|name| self.models.fail(name, &why));
                order.names.iter().for_each(|name| self.leave(name));
                Some(self.renewed(order))
            }
        }
    }

    /// Returns an order with the workers that there are now.
    fn renewed(&self, order: Order) -> Order {
        let snapshot = self.membership.now();
        let model = snapshot.models.get(&order.card.name);
        let model = model.filter(|model| model.checksum == order.checksum);
        let places = model.map(|model| self.workers(model)).unwrap_or_default();
        Order { workers: places.into_iter().map(|place| place.worker).collect(), ..order }
    }
}

/// Returns the name of a model, and those of its aliases that are not another one's.
fn names(name: &str, model: &Registered, snapshot: &Snapshot) -> Vec<String> {
    let is_ours = |alias: &&String| snapshot.aliases.get(*alias).is_some_and(|of| of == name);
    let aliases = model.card.aliases.iter().filter(is_ours).cloned();
    std::iter::once(name.to_owned()).chain(aliases).collect()
}

async fn make(maker: Arc<Maker>, order: Order, wait: Duration) -> Made {
    sleep(wait).await;
    let made = maker.make(&order).await;
    (order, made)
}
