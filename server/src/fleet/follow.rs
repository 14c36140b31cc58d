//! Makes models of what workers register: they come, change their workers, and go.
//!
//! One task owns what is served. A model is made once for each card, off the task, and keeps its
//! counters and thresholds while workers come and go under it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use cluster::LogThrottle;
use cluster::card::{Card, Checksum, Kind};
use cluster::instance::{Instance, InstanceId};
use cluster::membership::{Config as MembershipConfig, Membership, Model as Registered, Snapshot};
use cluster::request::{LinkState, RemoteWorker};
use engine::Tasks;
use futures_util::future::{BoxFuture, FutureExt};
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::time::{Instant, sleep, sleep_until};

use super::LEAVE_WAIT;
use super::bridges::Fetched;
use super::canary::Question;
use super::config::FleetConfig;
use super::maker::{Maker, Order};
use super::news::EventSubscriber;
use super::peers::Peers;
use super::planes::Planes;
use super::pool::{Place, Pool};
use super::store::Store;
use crate::models::registry::{Model, Models};
use crate::pipeline::Limits;
use crate::security::LinkConnectors;
use crate::support::metrics::{Metrics, ModelLabels};

/// The wait before a model that could not be made is tried again.
const AGAIN: Duration = Duration::from_secs(2);

/// The most models that left whose thresholds are remembered.
const MAX_REMEMBERED: usize = 1000;

/// The models of a fleet, in one frontend.
pub(crate) struct Fleet {
    membership: Membership,
    maker: Arc<Maker>,
    peers: Arc<Peers>,
    planes: Arc<Planes>,
    models: Arc<Models>,
    known: BTreeMap<String, Known>,
    /// The names that clients call.
    served: BTreeSet<String>,
    /// When models that were here counted as busy, for when they come back.
    limits: BTreeMap<String, Limits>,
    tasks: Tasks,
}

/// A name that workers serve.
struct Known {
    card: Arc<Card>,
    checksum: Checksum,
    pool: Arc<Pool>,
    /// The names that it has now, its own and aliases.
    names: BTreeSet<String>,
    /// What was made, for each name that clients may call it by: it may get that one at any moment.
    made: BTreeMap<String, Arc<Model>>,
    /// What was made of another card that had the name, which is called until this one is made.
    before: Option<Before>,
    /// When it is forgotten, since its last worker is gone.
    until: Option<Instant>,
    /// When its workers are, if another model took one of its names over: requests that were on
    /// their way then find them still.
    lingers: Option<Instant>,
    /// Why it could not be served, which is tried again and again.
    throttle: LogThrottle,
}

/// What had the name of a model before its card changed.
struct Before {
    card: Arc<Card>,
    pool: Arc<Pool>,
    made: BTreeMap<String, Arc<Model>>,
}

/// Which of two models is served that are the same version of a name: the greater one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// It is being made.
    Awaited,
    /// Its workers left.
    Idle,
    /// Its name has another card, of which nothing is made yet.
    Replaced,
    /// It has workers.
    Staffed,
}

/// A version to be served: the model, once it is made.
type Choice = (Rank, Option<Arc<Model>>);

impl Known {
    /// Returns the names that clients call it by.
    fn called(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(|name| self.card.public(name))
    }

    /// Returns the versions that it has of a name that clients call.
    fn choices(&self, name: &str) -> impl Iterator<Item = (u64, Choice)> {
        let model = self.made.get(name).cloned();
        let rank = match model {
            None => Rank::Awaited,
            Some(_) if self.pool.is_empty() => Rank::Idle,
            Some(_) => Rank::Staffed,
        };
        let before = self.before.as_ref().filter(|_| self.made.is_empty()).and_then(|before| {
            let model = before.made.get(name)?.clone();
            Some((before.card.number(), (Rank::Replaced, Some(model))))
        });
        std::iter::once((self.card.number(), (rank, model))).chain(before)
    }

    /// Returns what can be called until the next card of its name is made.
    fn into_before(self) -> Option<Before> {
        match self.made.is_empty() {
            true => self.before,
            false => Some(Before { card: self.card, pool: self.pool, made: self.made }),
        }
    }
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
            served: BTreeSet::new(),
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
                let next = |known: &Known| known.lingers.or(known.until);
                let until = self.known.values().filter_map(next).min();
                tokio::select! {
                    () = sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => {
                        self.retire(&snapshot);
                        self.settle();
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
        self.settle();
        self.models.touch();
        orders
    }

    /// Takes models away whose workers are gone. They stay for the time that requests wait for a
    /// worker, under the names that nobody else has.
    fn retire(&mut self, snapshot: &Snapshot) {
        let now = Instant::now();
        let wait = self.maker.config.worker_wait;
        let mut over = Vec::new();
        for (name, known) in &mut self.known {
            if snapshot.models.contains_key(name) {
                (known.until, known.lingers) = (None, None);
                continue;
            }
            let had = known.names.len();
            known.names.retain(|name| snapshot.model(name).is_none());
            if known.names.len() < had {
                known.lingers = Some(now + LEAVE_WAIT);
            }
            let until = *known.until.get_or_insert(now + wait);
            if known.lingers.is_some_and(|until| now < until) {
                continue;
            }
            known.lingers = None;
            known.pool.set(Vec::new(), &self.tasks);
            if known.names.is_empty() || until <= now {
                over.push(name.clone());
            }
        }
        over.iter().for_each(|name| drop(self.known.remove(name)));
    }

    /// Gives a model its workers and names; returns it if it is to be made.
    fn place(&mut self, name: &str, model: &Registered, snapshot: &Snapshot) -> Option<Order> {
        let workers = self.workers(model);
        let remotes = workers.iter().map(|place| place.worker.clone()).collect();
        let names = names(name, model, snapshot);
        let same = self.known.get_mut(name).filter(|known| known.checksum == model.checksum);
        if let Some(known) = same {
            known.pool.set(workers, &self.tasks);
            known.names = names;
            return None;
        }
        let pool = self.pool(name);
        pool.set(workers, &self.tasks);
        let card = model.card.clone();
        for name in &names {
            self.models.announce_version(card.public(name), card.number());
        }
        let before = self.known.remove(name).and_then(Known::into_before);
        let known = Known {
            card: card.clone(),
            checksum: model.checksum,
            pool: pool.clone(),
            names,
            made: BTreeMap::new(),
            before,
            until: None,
            lingers: None,
            throttle: LogThrottle::default(),
        };
        self.known.insert(name.to_owned(), known);
        let claimed = card.aliases.iter().chain([&card.name]).map(|name| card.public(name));
        let claimed: BTreeSet<&str> = claimed.collect();
        let names = claimed.into_iter().map(str::to_owned).collect();
        let (checksum, parent) = (model.checksum, base_of(card.public(name), snapshot));
        Some(Order { card, checksum, pool, workers: remotes, names, parent })
    }

    /// Makes a pool for the workers of a model.
    fn pool(&self, name: &str) -> Arc<Pool> {
        let canary = self.maker.canary(name);
        let subscriber =
            EventSubscriber::new(name, self.planes.clone(), &self.maker.metrics, &self.tasks);
        Pool::new(name, self.membership.clone(), &self.models, (canary, subscriber))
    }

    /// Serves the names that workers have, or had a moment ago, and takes others away.
    fn settle(&mut self) {
        let called = self.known.values().flat_map(Known::called);
        let names: BTreeSet<String> = called.map(str::to_owned).collect();
        for name in &self.served - &names {
            self.leave(&name);
        }
        self.serve(&names);
        self.served = names;
    }

    /// Serves all versions of these names. Two workers may have one version in different cards.
    fn serve(&mut self, names: &BTreeSet<String>) {
        let mut served = BTreeMap::<&str, BTreeMap<u64, Choice>>::new();
        for known in self.known.values() {
            for name in known.called().filter(|name| names.contains(*name)) {
                let versions = served.entry(name).or_default();
                for (version, choice) in known.choices(name) {
                    let best = versions.entry(version).or_insert((Rank::Awaited, None));
                    if choice.0 > best.0 {
                        *best = choice;
                    }
                }
            }
        }
        for (name, versions) in served {
            let model = |(version, (_, model)): (u64, Choice)| (version, model);
            self.models.serve(name, versions.into_iter().map(model).collect());
        }
        let models = &self.models;
        let is_unused =
            |before: &mut Before| !before.made.iter().any(|(name, model)| models.has(name, model));
        for known in self.known.values_mut() {
            if let Some(before) = known.before.take_if(is_unused) {
                // Who still calls the old model is not to wait for workers that never come.
                before.pool.set(Vec::new(), &self.tasks);
            }
        }
    }

    /// Takes a name away that nobody has any more.
    fn leave(&mut self, name: &str) {
        if let Some(limits) = self.limits_of(name) {
            self.limits.insert(name.to_owned(), limits);
            if self.limits.len() > MAX_REMEMBERED {
                self.limits.pop_first();
            }
        }
        // Requests have waited for a worker all the while that the name was kept.
        let (grace, waited) = (self.maker.config.model_grace, self.maker.config.worker_wait);
        self.models.leave(name, grace.saturating_sub(waited));
        self.maker.metrics.set_load(&ModelLabels { model: name.into() }, None);
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
            drop((worker, instance));
            let peers = Arc::downgrade(&peers);
            while states.changed().await.is_ok() {
                let state = *states.borrow_and_update();
                let is_lost = match state {
                    LinkState::Open => false,
                    // The connections to a worker that has no models any more are ended here.
                    LinkState::Lost => {
                        peers.upgrade().is_some_and(|peers| peers.known(id).is_some())
                    }
                    // Another way is open, or the worker is lost as well.
                    LinkState::Idle => {
                        let worker = peers.upgrade().and_then(|peers| peers.known(id));
                        match worker {
                            Some(worker) => worker.connect().await.is_err(),
                            None => false,
                        }
                    }
                };
                if is_lost {
                    membership.suspect(id);
                }
            }
        });
    }

    /// Serves a model that was made; returns it if it is to be tried again.
    fn take(&mut self, (order, made): Made) -> Option<Order> {
        let (name, public) = (&order.card.name, order.card.public(&order.card.name));
        let limits = self.limits_of(public);
        let known = self.known.get_mut(name)?;
        if !Arc::ptr_eq(&known.pool, &order.pool) {
            return None;
        }
        match made {
            Ok(models) => {
                known.throttle.forget(name);
                // What was changed while it ran stays changed, under all of its names.
                let limits = limits.or_else(|| self.limits.remove(public));
                let text = models.first().and_then(|model| model.text.as_ref());
                if let (Some(text), Some(limits)) = (text, limits) {
                    text.thresholds.set(limits);
                }
                let named = |model: Model| (model.name.to_string(), Arc::new(model));
                known.made = models.into_iter().map(named).collect();
                let names = known.called().map(str::to_owned).collect();
                self.serve(&names);
                order.pool.announce(&self.tasks);
                None
            }
            Err(why) => {
                if known.throttle.is_due(name, &why) {
                    tracing::warn!(model = name, why, "a model of workers cannot be served");
                }
                let version = known.card.number();
                known.called().for_each(|name| self.models.fail_version(name, version, &why));
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
fn names(name: &str, model: &Registered, snapshot: &Snapshot) -> BTreeSet<String> {
    let is_ours = |alias: &&String| snapshot.aliases.get(*alias).is_some_and(|of| of == name);
    let aliases = model.card.aliases.iter().filter(is_ours).cloned();
    std::iter::once(name.to_owned()).chain(aliases).collect()
}

/// Returns the name of the model whose workers have one as an adapter.
fn base_of(name: &str, snapshot: &Snapshot) -> Option<Arc<str>> {
    let is_base = |(_, model): &(&String, &Registered)| {
        let mut adapters = model.members.iter().flat_map(|member| &member.card.adapters);
        adapters.any(|adapter| adapter == name)
    };
    snapshot.models.iter().find(is_base).map(|(base, _)| base.as_str().into())
}

async fn make(maker: Arc<Maker>, order: Order, wait: Duration) -> Made {
    sleep(wait).await;
    let made = maker.make(&order).await;
    (order, made)
}
