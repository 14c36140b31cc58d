//! Everything beyond the frontend: the store, the workers, what became of requests there; and what
//! a frontend may do to them.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use cluster::card::{Card, Input, Kind};
use cluster::discovery::{Discovery, Mem, Query};
use cluster::instance::{Instance, InstanceId};
use cluster::membership::{Config, Membership, Probe};
use engine::Tasks;
use tokio::time::Instant;

use super::Counts;
use super::moments::Moments;
use super::search::Searches;
use super::worker::{Fate, Health, Worker};
use crate::pipeline::Candidate;

/// The one model of all workers.
pub(super) const MODEL: &str = "m";

/// The longest time by which the store is late.
pub(super) const MAX_LAG_MS: u64 = 1000;

/// When frontends know of a worker that is not registered any more at the latest, in milliseconds,
/// while the store can be reached: it may be late twice, behind an outage half a second is waited
/// for those who register again, and both sides try it every 50 ms.
const KNOWN_WITHIN: Duration = Duration::from_millis(2 * MAX_LAG_MS + 500 + 2 * 50);

/// When they call one again at the latest that was unwell, or whose connection broke: a probe
/// that hangs takes two seconds, the next one comes five seconds later, and is told to wait once
/// more where connections broke meanwhile.
const CURED_WITHIN: Duration = Duration::from_secs(8);

/// The longest time for which a dead worker's registration stays.
const MAX_LEASE_MS: u64 = 8000;

pub(super) struct World {
    /// Whether one worker lives for ever, and all take everything.
    pub(super) is_gentle: bool,
    pub(super) tasks: Tasks,
    pub(super) store: Mem,
    pub(super) moments: Moments,
    pub(super) counts: Arc<Counts>,
    /// Whether nothing happens to messages any more.
    pub(super) is_calm: AtomicBool,
    membership: OnceLock<Membership>,
    /// The last snapshot that the frontend follows.
    pub(super) followed: AtomicU64,
    random: Mutex<fastrand::Rng>,
    /// All that there ever were, by their numbers from 1 on.
    workers: Mutex<Vec<Arc<Worker>>>,
    fates: Mutex<BTreeMap<String, Vec<Fate>>>,
    pub(super) searches: Searches,
    /// Since when the store can be reached; none: it cannot.
    store_since: Mutex<Option<Instant>>,
    /// A hash of all that happened.
    trace: Mutex<DefaultHasher>,
    is_loud: bool,
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("World").finish_non_exhaustive()
    }
}

impl World {
    /// Makes a world and the frontend's view of who is there.
    pub(super) fn new(
        random: fastrand::Rng,
        (is_gentle, is_loud): (bool, bool),
        counts: &Arc<Counts>,
    ) -> Arc<Self> {
        let tasks = Tasks::new();
        let world = Arc::new(Self {
            is_gentle,
            store: Mem::new(&tasks),
            tasks,
            moments: Moments::new(),
            counts: counts.clone(),
            is_calm: AtomicBool::new(false),
            membership: OnceLock::new(),
            followed: AtomicU64::new(0),
            random: Mutex::new(random),
            workers: Mutex::default(),
            fates: Mutex::default(),
            searches: Searches::default(),
            store_since: Mutex::new(Some(Instant::now())),
            trace: Mutex::default(),
            is_loud,
        });
        let (store, tasks) = (&world.store, &world.tasks);
        let membership =
            Membership::start(store, Query::All, world.clone(), Config::default(), tasks);
        world.membership.set(membership).unwrap();
        world
    }

    pub(super) fn membership(&self) -> &Membership {
        self.membership.get().unwrap()
    }

    /// Notes that something happened.
    pub(super) fn tell(&self, what: fmt::Arguments<'_>) {
        let line = format!("{:>6} ms: {what}", self.moments.now_ms());
        line.hash(&mut *self.trace.lock().unwrap());
        if self.is_loud {
            println!("{line}");
        }
    }

    /// Returns a number that stands for all that happened.
    pub(super) fn trace(&self) -> u64 {
        self.trace.lock().unwrap().finish()
    }

    pub(super) fn with_random<T>(&self, draw: impl FnOnce(&mut fastrand::Rng) -> T) -> T {
        draw(&mut self.random.lock().unwrap())
    }

    pub(super) fn roll(&self, least: u64, most: u64) -> u64 {
        self.with_random(|random| random.u64(least..=most))
    }

    /// Returns whether something happens that does in so many of 100 cases, and never in the calm.
    pub(super) fn chance(&self, percent: u64) -> bool {
        self.roll(0, 99) < percent && !self.is_calm.load(Relaxed)
    }

    pub(super) fn worker(&self, id: InstanceId) -> Arc<Worker> {
        let workers = self.workers.lock().unwrap();
        workers.iter().find(|worker| worker.id == id).unwrap().clone()
    }

    /// Returns all that there ever were.
    pub(super) fn workers(&self) -> Vec<Arc<Worker>> {
        self.workers.lock().unwrap().clone()
    }

    /// Starts a worker.
    pub(super) fn join(self: &Arc<Self>, is_immortal: bool) {
        let capacity = match self.is_gentle {
            true => usize::MAX,
            false => usize::try_from(self.roll(1, 6)).unwrap(),
        };
        let mut workers = self.workers.lock().unwrap();
        let worker = Arc::new(Worker::new(workers.len() as u64 + 1, is_immortal, capacity));
        workers.push(worker.clone());
        drop(workers);
        let world = self.clone();
        self.tasks.spawn("join", async move {
            world.tell(format_args!("{} joins", worker.id));
            let lease = world.store.register(world.instance(&worker, false)).await.unwrap();
            *worker.lease.lock().unwrap() = Some(lease);
            world.owe(&worker, KNOWN_WITHIN);
        });
    }

    pub(super) fn instance(&self, worker: &Worker, is_draining: bool) -> Instance {
        let mut instance =
            Instance::new("fleet".parse().unwrap(), format!("local://{}", worker.id));
        (instance.id, instance.is_draining) = (worker.id, is_draining);
        instance.cards.push(Card::new(MODEL, Kind::Text, Input::Token));
        instance
    }

    /// Kills a worker, whose registration stays for some time.
    pub(super) fn kill(self: &Arc<Self>, worker: &Arc<Worker>) {
        self.tell(format_args!("{} dies", worker.id));
        worker.die();
        let (world, worker) = (self.clone(), worker.clone());
        let lease = worker.take_lease();
        let stays_ms = self.roll(1, MAX_LEASE_MS);
        self.tasks.spawn("death", async move {
            world.moments.sleep(stays_ms).await;
            world.tell(format_args!("the registration of {} ends", worker.id));
            drop(lease);
            worker.leave();
        });
    }

    /// Lets the store answer, or not.
    pub(super) fn set_reachable(&self, is_reachable: bool) {
        self.tell(format_args!("the store can be reached: {is_reachable}"));
        *self.store_since.lock().unwrap() = is_reachable.then(Instant::now);
        self.store.set_reachable(is_reachable);
        for worker in self.workers() {
            match is_reachable {
                true => self.owe(&worker, CURED_WITHIN),
                false => worker.wait_for_store(),
            }
        }
    }

    /// Lets the store forget who is registered.
    pub(super) fn forget(&self) {
        self.store.forget();
        self.workers().iter().for_each(|worker| self.owe(worker, KNOWN_WITHIN));
    }

    /// Breaks the connections of a worker.
    pub(super) fn cut(&self, worker: &Worker) {
        worker.cut();
        self.owe(worker, CURED_WITHIN);
    }

    /// Lets a worker go on if it hangs.
    pub(super) fn revive(&self, worker: &Worker) {
        worker.revive();
        self.owe(worker, CURED_WITHIN);
    }

    /// Takes a suspicion to the membership.
    pub(super) fn suspect(&self, id: InstanceId) {
        let worker = self.worker(id);
        assert!(worker.was_hurt(), "{id} is suspected and well");
        self.owe(&worker, CURED_WITHIN);
        self.membership().suspect(id);
    }

    /// Gives the frontend so much time to call a worker that is well and registered.
    fn owe(&self, worker: &Worker, within: Duration) {
        let is_there = worker.is_settled() && worker.health() == Health::Well;
        let is_reachable = self.store_since.lock().unwrap().is_some();
        worker.set_known_by((is_there && is_reachable).then(|| Instant::now() + within));
    }

    /// Notes what a worker did with a request, for one of its searches.
    pub(super) fn note(&self, search: &str, worker: InstanceId, fate: Fate) {
        self.tell(format_args!("{search} at {worker}: {fate:?}"));
        self.searches.hear(search, fate);
        let request = search.split(',').next().unwrap().to_owned();
        self.fates.lock().unwrap().entry(request).or_default().push(fate);
    }

    /// Returns what workers did with a request.
    pub(super) fn fates(&self, request: &str) -> Vec<Fate> {
        self.fates.lock().unwrap().get(request).cloned().unwrap_or_default()
    }

    /// Checks that a worker may be called now: it is a member of what the frontend saw last, and
    /// not gone for longer than it takes to know that.
    pub(super) fn check_call(&self, worker: &Worker) {
        let id = worker.id;
        let snapshot = self.membership().now();
        let model = snapshot.models.get(MODEL);
        let is_member =
            model.is_some_and(|model| model.accepting_any().any(|member| member.instance.id == id));
        // A snapshot is followed in the moment in which it comes.
        let is_followed = snapshot.revision == self.followed.load(Relaxed);
        assert!(is_member || !is_followed, "{id} is called and no member");
        let since = *self.store_since.lock().unwrap();
        if let Some((since, left)) = since.zip(worker.left()) {
            let gone = since.max(left).elapsed();
            assert!(gone <= KNOWN_WITHIN, "{id} is called and has been gone for {gone:?}");
        }
    }

    /// Checks that everybody can be asked who has been there for as long as it takes to know that.
    pub(super) fn check_view(&self, candidates: &[Arc<Candidate>]) {
        let now = Instant::now();
        for worker in self.workers() {
            let is_owed = worker.known_by().is_some_and(|known_by| known_by < now);
            let is_seen = || candidates.iter().any(|candidate| candidate.id == worker.id);
            assert!(!is_owed || is_seen(), "{} is there and cannot be asked", worker.id);
        }
    }

    /// Returns the workers that are there in the calm.
    pub(super) fn present(&self) -> Vec<Arc<Worker>> {
        let is_there =
            |worker: &Arc<Worker>| worker.is_settled() && worker.health() == Health::Well;
        self.workers().into_iter().filter(is_there).collect()
    }
}

#[async_trait]
impl Probe for World {
    async fn is_well(&self, instance: &Instance) -> bool {
        let worker = self.worker(instance.id);
        self.moments.sleep(self.roll(1, 40)).await;
        if worker.health() == Health::Hung {
            std::future::pending::<()>().await;
        }
        let is_well = worker.health() == Health::Well;
        self.counts.cured.fetch_add(is_well.into(), Relaxed);
        self.tell(format_args!("{} is probed: {is_well}", worker.id));
        is_well
    }
}
