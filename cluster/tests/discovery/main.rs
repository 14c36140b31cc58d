//! One suite for every discovery, and what each of them has to survive besides.
//!
//! Stores inside this process are tested on simulated time, which passes only while nobody has
//! anything to do: no load of the machine can make a lease expire. etcd, processes that are killed
//! and TLS need real time. Their tests wait for conditions, and no healthy part of them fails before
//! it is silent for seconds.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod api_server;
mod crash;
mod etcd_outage;
mod etcd_security;
mod etcd_server;
mod file_outage;
mod follower;
mod known_addresses;
mod kubernetes_outage;
mod kubernetes_tls;
mod missed;

use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use cluster::card::{Card, Input, Kind};
use cluster::discovery::{
    Discovery, Etcd, Event, File, Kubernetes, Lease, LeaseState, Mem, Query, etcd, file, kubernetes,
};
use cluster::instance::{Instance, InstanceId};
use engine::{ErrorKind, Tasks};
use futures_util::future::join_all;
use tokio::time::{Instant, timeout};

use api_server::{ApiServer, Weather};
use etcd_server::EtcdServer;
use follower::{Follower, PATIENCE};
use known_addresses::KnownAddresses;

/// The time-to-live of leases. A healthy process confirms its lease every third of it, so a slow
/// machine may hold it up for four seconds.
const TTL: Duration = Duration::from_secs(6);

/// A store, and how another process would open it.
enum Store {
    Mem(Mem),
    File(tempfile::TempDir),
    Etcd(EtcdServer),
    Kubernetes(ApiServer),
    Static(KnownAddresses),
}

impl Store {
    fn mem() -> Self {
        Self::Mem(Mem::new(&Tasks::new()))
    }

    fn file() -> Self {
        Self::File(tempfile::tempdir().unwrap())
    }

    fn etcd() -> Self {
        Self::Etcd(EtcdServer::start())
    }

    fn kubernetes() -> Self {
        Self::Kubernetes(ApiServer::start())
    }

    fn known_addresses() -> Self {
        Self::Static(KnownAddresses::new(1000))
    }

    fn open(&self, tasks: &Tasks) -> Arc<dyn Discovery> {
        match self {
            Self::Mem(mem) => Arc::new(mem.clone()),
            Self::File(folder) => Arc::new(File::new(file_config(folder), tasks).unwrap()),
            Self::Etcd(server) => Arc::new(Etcd::new(etcd_config(server), tasks).unwrap()),
            Self::Kubernetes(server) => open_kubernetes(server, kubernetes_config(server), tasks),
            Self::Static(fleet) => Arc::new(fleet.clone()),
        }
    }

    /// Makes the store fail.
    fn lose(&mut self) {
        match self {
            Self::Mem(mem) => mem.set_reachable(false),
            Self::File(folder) => {
                let root = folder.path().join("fleet");
                std::fs::rename(&root, root.with_extension("away")).unwrap();
                std::fs::write(&root, "").unwrap();
            }
            Self::Etcd(server) => server.kill(),
            Self::Kubernetes(server) => server.set(Weather::Down),
            Self::Static(_) => unreachable!("there is no store"),
        }
    }

    /// Removes a registration as somebody does who has the store before them.
    fn delete(&self, instance: &Instance) {
        let id = instance.id;
        match self {
            Self::Mem(mem) => mem.forget(),
            Self::File(folder) => {
                let homes = std::fs::read_dir(folder.path().join("fleet")).unwrap();
                let files = homes.flat_map(|home| std::fs::read_dir(home.unwrap().path()).unwrap());
                let files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
                let is_its = |path: &&std::path::PathBuf| {
                    path.file_name().unwrap().to_string_lossy().starts_with(&id.to_string())
                };
                std::fs::remove_file(files.iter().find(is_its).unwrap()).unwrap();
            }
            Self::Etcd(server) => {
                use base64::Engine;
                let key = format!("/stator/v1/instances/{}/{id}", instance.namespace);
                let key = base64::engine::general_purpose::STANDARD.encode(key);
                let answer = server.post("/v3/kv/deleterange", &format!(r#"{{"key":"{key}"}}"#));
                assert_eq!(answer["deleted"], "1", "{answer}");
            }
            Self::Kubernetes(server) => server.delete("configmaps", &format!("stator-{id}")),
            Self::Static(_) => unreachable!("there is no store"),
        }
    }

    /// Makes the store work again.
    fn restore(&mut self) {
        match self {
            Self::Mem(mem) => mem.set_reachable(true),
            Self::File(folder) => {
                let root = folder.path().join("fleet");
                std::fs::remove_file(&root).unwrap();
                std::fs::rename(root.with_extension("away"), &root).unwrap();
            }
            Self::Etcd(server) => server.restart(),
            Self::Kubernetes(server) => server.set(Weather::Fine),
            Self::Static(_) => unreachable!("there is no store"),
        }
    }
}

fn file_config(folder: &tempfile::TempDir) -> file::Config {
    let poll = Duration::from_millis(20);
    file::Config { poll, ..file::Config::new(folder.path().join("fleet")) }
}

fn etcd_config(server: &EtcdServer) -> etcd::Config {
    etcd::Config {
        endpoints: vec![server.address()],
        ttl: TTL,
        request_timeout: Duration::from_secs(4),
        grace: 2 * TTL,
        ..etcd::Config::default()
    }
}

fn open_kubernetes(
    server: &ApiServer,
    config: kubernetes::Config,
    tasks: &Tasks,
) -> Arc<dyn Discovery> {
    let opened = match server.connector() {
        Some(connector) => Kubernetes::with_connector(config, connector, tasks),
        None => Kubernetes::new(config, tasks),
    };
    Arc::new(opened.unwrap())
}

fn kubernetes_config(server: &ApiServer) -> kubernetes::Config {
    kubernetes::Config {
        ttl: TTL,
        request_timeout: Duration::from_secs(4),
        grace: 2 * TTL,
        clock: runtime_clock,
        ..kubernetes::Config::new(server.url(), "fleet")
    }
}

/// A clock that goes with the runtime's time, which may be simulated: a machine that stands still
/// for some seconds makes no Lease old.
fn runtime_clock() -> SystemTime {
    static ORIGIN: LazyLock<(SystemTime, std::time::Instant)> =
        LazyLock::new(|| (SystemTime::now(), std::time::Instant::now()));
    let (time, origin) = *ORIGIN;
    let now = Instant::now().into_std();
    match now.checked_duration_since(origin) {
        Some(since) => time + since,
        None => time - origin.duration_since(now),
    }
}

/// Makes an instance; known addresses are `grpc://worker:0` and on.
fn instance(namespace: &str, port: u16) -> Instance {
    let mut instance = Instance::new(namespace.parse().unwrap(), format!("grpc://worker:{port}"));
    instance.cards.push(Card::new("model", Kind::Text, Input::Token));
    instance
}

fn follow(discovery: &Arc<dyn Discovery>) -> Follower {
    Follower::new(discovery.watch(Query::All))
}

/// Waits until a store holds a registration; whoever registers waits for a slow store only for some
/// seconds.
async fn until_held(lease: &Lease) {
    let mut states = lease.states();
    let held = states.wait_for(|state| *state == LeaseState::Held);
    timeout(PATIENCE, held).await.expect("the store holds it").unwrap();
}

async fn a_registration_is_seen_by_all_updated_and_revoked(store: Store) {
    let tasks = Tasks::new();
    let (worker, frontend) = (store.open(&tasks), store.open(&tasks));
    let mut followers = [follow(&worker), follow(&frontend)];
    for follower in &mut followers {
        follower.until("synced", |follower| follower.is_synced).await;
        assert!(follower.known.is_empty());
    }
    let mut instance = instance("fleet", 1);
    let lease = worker.register(instance.clone()).await.unwrap();
    assert_eq!(lease.id(), instance.id);
    until_held(&lease).await;
    for follower in &mut followers {
        follower.until("it is seen", |follower| follower.has(&instance)).await;
    }
    instance.cards[0].adapters.push("french".into());
    instance.is_draining = true;
    lease.update(instance.clone()).await.unwrap();
    for follower in &mut followers {
        follower.until("it is changed", |follower| follower.has(&instance)).await;
    }
    let mut other = instance.clone();
    other.id = InstanceId(1);
    assert!(lease.update(other).await.unwrap_err().message().contains("cannot update"));
    let mut moved = instance.clone();
    moved.namespace = "elsewhere".parse().unwrap();
    assert!(lease.update(moved).await.unwrap_err().message().contains("namespace"));
    lease.revoke().await.unwrap();
    for follower in &mut followers {
        follower.until("it is gone", |follower| follower.known.is_empty()).await;
        // What was seen is exactly that: nothing twice, nothing between.
        assert_eq!(follower.count(|event| matches!(event, Event::Put(_))), 2);
        assert_eq!(follower.count(|event| matches!(event, Event::Remove(_))), 1);
    }
}

async fn a_late_watcher_hears_the_present_ones_and_then_that_these_are_all(store: Store) {
    let tasks = Tasks::new();
    let worker = store.open(&tasks);
    let instances: Vec<Instance> = (0..100).map(|port| instance("fleet", port)).collect();
    let leases = join_all(instances.iter().map(|one| worker.register(one.clone()))).await;
    let mut follower = follow(&store.open(&tasks));
    follower.until("synced", |follower| follower.is_synced).await;
    assert_eq!(follower.known.len(), 100);
    assert_eq!(follower.log.len(), 101, "one event for each and the last one");
    assert!(instances.iter().all(|instance| follower.has(instance)));
    drop(leases);
    follower.until("they are gone", |follower| follower.known.is_empty()).await;
}

async fn a_dropped_lease_ends(store: Store) {
    let tasks = Tasks::new();
    let worker = store.open(&tasks);
    let (kept, dropped) = (instance("fleet", 1), instance("fleet", 2));
    let _kept = worker.register(kept.clone()).await.unwrap();
    let lease = worker.register(dropped.clone()).await.unwrap();
    let mut follower = follow(&worker);
    follower.until("both", |follower| follower.known.len() == 2).await;
    let start = Instant::now();
    drop(lease);
    follower.until("one", |follower| !follower.has(&dropped)).await;
    eprintln!("a dropped lease was seen to end after {:?}", start.elapsed());
    assert!(follower.has(&kept));
}

async fn namespaces_and_prefixes_are_kept_apart(store: Store) {
    let tasks = Tasks::new();
    let discovery = store.open(&tasks);
    let names = ["blue", "blue-1", "blue-2", "green"];
    let one = |name: &str| name.parse().unwrap();
    let cases = [
        (Query::All, vec![0, 1, 2, 3]),
        (Query::Namespaces(vec![one("blue")]), vec![0]),
        (Query::Namespaces(vec![one("blue-2"), one("green")]), vec![2, 3]),
        (Query::Namespaces(vec![]), vec![]),
        (Query::prefix("blue-").unwrap(), vec![1, 2]),
        (Query::prefix("blue").unwrap(), vec![0, 1, 2]),
    ];
    // Half of the watchers come before the instances and half after.
    let early = cases.clone().map(|(query, seen)| (discovery.watch(query), seen));
    let instances: Vec<Instance> = (0..4).map(|at| instance(names[at], at as u16)).collect();
    let registrations = instances.iter().map(|one| discovery.register(one.clone()));
    let leases: Vec<_> = join_all(registrations).await.into_iter().map(Result::unwrap).collect();
    let late = cases.map(|(query, seen)| (discovery.watch(query), seen));
    let mut followers = Vec::new();
    for (watch, seen) in early.into_iter().chain(late) {
        let mut follower = Follower::new(watch);
        let sees = |follower: &Follower| {
            follower.is_synced && seen.iter().all(|at: &usize| follower.has(&instances[*at]))
        };
        follower.until("its own", sees).await;
        assert_eq!(follower.known.len(), seen.len());
        followers.push(follower);
    }
    for lease in leases {
        lease.revoke().await.unwrap();
    }
    for mut follower in followers {
        follower.until("none", |follower| follower.known.is_empty()).await;
    }
}

async fn a_thousand_instances_register(store: Store) {
    let tasks = Tasks::new();
    let (worker, frontend) = (store.open(&tasks), store.open(&tasks));
    let mut follower = follow(&frontend);
    follower.until("synced", |follower| follower.is_synced).await;
    let start = Instant::now();
    let instances: Vec<Instance> = (0..1000).map(|port| instance("fleet", port)).collect();
    let leases = join_all(instances.iter().map(|one| worker.register(one.clone()))).await;
    let registered = start.elapsed();
    follower.until("all of them", |follower| follower.known.len() == 1000).await;
    eprintln!("1000 instances registered after {registered:?}, seen after {:?}", start.elapsed());
    for lease in &leases {
        until_held(lease.as_ref().unwrap()).await;
    }
    drop(leases);
    follower.until("none of them", |follower| follower.known.is_empty()).await;
}

async fn what_is_not_valid_is_refused(store: Store) {
    let discovery = store.open(&Tasks::new());
    let mut nameless = instance("fleet", 1);
    nameless.cards[0].name.clear();
    let error = discovery.register(nameless).await.unwrap_err();
    assert!(error.message().contains("name"), "{error}");
    let mut follower = follow(&discovery);
    follower.until("synced", |follower| follower.is_synced).await;
    assert!(follower.known.is_empty());
}

async fn an_instance_has_one_lease_at_a_time(store: Store) {
    let tasks = Tasks::new();
    let (worker, frontend) = (store.open(&tasks), store.open(&tasks));
    let instance = instance("fleet", 1);
    let lease = worker.register(instance.clone()).await.unwrap();
    let error = worker.register(instance.clone()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error}");
    let mut follower = follow(&frontend);
    follower.until("it", |follower| follower.has(&instance)).await;
    follower.for_a_while(Duration::from_millis(200)).await;
    assert!(follower.has(&instance), "the second one took nothing away");
    lease.revoke().await.unwrap();
    follower.until("none", |follower| follower.known.is_empty()).await;
    let _lease = worker.register(instance.clone()).await.unwrap();
    follower.until("it again", |follower| follower.has(&instance)).await;
}

async fn changes_are_heard_in_their_order(store: Store) {
    const CHANGES: usize = 30;
    let tasks = Tasks::new();
    let (worker, frontend) = (store.open(&tasks), store.open(&tasks));
    let mut follower = follow(&frontend);
    let mut instance = instance("fleet", 1);
    let lease = worker.register(instance.clone()).await.unwrap();
    until_held(&lease).await;
    for at in 0..CHANGES {
        instance.cards[0].adapters.push(format!("adapter-{at}"));
        lease.update(instance.clone()).await.unwrap();
    }
    follower.until("the last", |follower| follower.has(&instance)).await;
    lease.revoke().await.unwrap();
    follower.until("none", |follower| follower.known.is_empty()).await;
    let told = follower.log.iter().filter_map(|event| match event {
        Event::Put(instance) => Some(instance.cards[0].adapters.len()),
        _ => None,
    });
    let told: Vec<usize> = told.collect();
    // A reader may hear of several changes at once, and never of an older one after a newer.
    assert!(told.is_sorted_by(|one, next| one < next), "{told:?}");
    assert_eq!(told.last(), Some(&CHANGES));
}

async fn what_somebody_removes_is_put_back(store: Store) {
    let tasks = Tasks::new();
    let (worker, frontend) = (store.open(&tasks), store.open(&tasks));
    let (removed, kept) = (instance("fleet", 1), instance("fleet", 2));
    let lease = worker.register(removed.clone()).await.unwrap();
    let _kept = worker.register(kept.clone()).await.unwrap();
    for _ in 0..2 {
        let mut before = follow(&frontend);
        before.until("both", |before| before.has(&removed) && before.has(&kept)).await;
        store.delete(&removed);
        let start = Instant::now();
        loop {
            let mut late = follow(&store.open(&tasks));
            late.until("synced", |late| late.is_synced).await;
            if late.has(&removed) {
                break;
            }
            assert!(start.elapsed() < PATIENCE, "it is not put back");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        eprintln!("what was removed was put back after {:?}", start.elapsed());
    }
    until_held(&lease).await;
    // It is ours as before: what we give back stays away.
    lease.revoke().await.unwrap();
    let mut after = follow(&frontend);
    after.until("synced", |after| after.is_synced).await;
    after.for_a_while(Duration::from_secs(4)).await;
    assert!(after.has(&kept) && after.known.len() == 1);
}

async fn a_lost_store_freezes_the_view_and_is_found_again(mut store: Store) {
    let tasks = Tasks::new();
    let (worker, frontend) = (store.open(&tasks), store.open(&tasks));
    let mut instances = [instance("fleet", 1), instance("fleet", 2), instance("fleet", 3)];
    let leases = join_all(instances.iter().map(|one| worker.register(one.clone()))).await;
    let mut leases: Vec<_> = leases.into_iter().map(Result::unwrap).collect();
    let mut follower = follow(&frontend);
    follower.until("synced", |follower| follower.is_synced).await;
    follower.until("all", |follower| follower.known.len() == 3).await;
    store.lose();
    follower.until("stale", |follower| follower.is_stale).await;
    // What is changed and ended meanwhile is not known, and made good later.
    instances[0].is_draining = true;
    assert!(leases[0].update(instances[0].clone()).await.is_err());
    let (last, gone) = (leases.pop().unwrap(), instances[2].id);
    assert!(last.revoke().await.is_err());
    follower.for_a_while(Duration::from_secs(1)).await;
    assert_eq!((follower.known.len(), follower.is_stale), (3, true), "the view is frozen");
    store.restore();
    follower.until("fresh", |follower| !follower.is_stale).await;
    follower.until("the change", |follower| follower.has(&instances[0])).await;
    follower.until("the end", |follower| !follower.known.contains_key(&gone)).await;
    // Longer than any time-to-live or grace: what would flap has flapped.
    follower.for_a_while(2 * TTL + Duration::from_secs(1)).await;
    assert!(follower.has(&instances[0]) && follower.has(&instances[1]));
    assert_eq!(follower.count(|event| matches!(event, Event::Remove(_))), 1);
    assert!(leases.iter().all(|lease| lease.state() == LeaseState::Held));
    let mut late = follow(&frontend);
    late.until("two", |late| late.known.len() == 2).await;
}

macro_rules! suite {
    ($suite:ident $store:ident $time:tt: $($case:ident)*) => {
        mod $suite {
            $(
                #[tokio::test $time]
                async fn $case() {
                    super::$case(super::Store::$store()).await;
                }
            )*
        }
    };
    (outages $($suite:ident: $store:ident $time:tt)*) => {
        $(suite! { $suite $store $time:
            a_lost_store_freezes_the_view_and_is_found_again
            what_somebody_removes_is_put_back
        })*
    };
    ($($suite:ident: $store:ident $time:tt)*) => {
        $(suite! { $suite $store $time:
            a_registration_is_seen_by_all_updated_and_revoked
            a_late_watcher_hears_the_present_ones_and_then_that_these_are_all
            a_dropped_lease_ends
            namespaces_and_prefixes_are_kept_apart
            a_thousand_instances_register
            what_is_not_valid_is_refused
            an_instance_has_one_lease_at_a_time
            changes_are_heard_in_their_order
        })*
    };
}

suite! {
    over_mem: mem (start_paused = true)
    over_file: file (start_paused = true)
    over_etcd: etcd (flavor = "multi_thread", worker_threads = 2)
    over_kubernetes: kubernetes (start_paused = true)
    over_static: known_addresses (start_paused = true)
}
suite! {
    outages
    outage_of_mem: mem (start_paused = true)
    outage_of_file: file (start_paused = true)
    outage_of_etcd: etcd (flavor = "multi_thread", worker_threads = 2)
    outage_of_kubernetes: kubernetes (start_paused = true)
}
