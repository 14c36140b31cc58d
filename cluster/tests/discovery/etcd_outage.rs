//! A real etcd that is frozen, killed, emptied, compacted and cut off.

use std::net::SocketAddr;
use std::sync::Arc;

use cluster::discovery::Backoff;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::*;

/// How long outages last.
const OUTAGE: Duration = Duration::from_secs(2 * TTL.as_secs());

/// A fleet of a few workers and a frontend on one etcd.
struct Fleet {
    server: EtcdServer,
    tasks: Tasks,
    discovery: Arc<dyn Discovery>,
    instances: Vec<Instance>,
    leases: Vec<cluster::discovery::Lease>,
    follower: Follower,
}

impl Fleet {
    async fn start() -> Self {
        let server = EtcdServer::start();
        let tasks = Tasks::new();
        let discovery: Arc<dyn Discovery> =
            Arc::new(Etcd::new(etcd_config(&server), &tasks).unwrap());
        let instances: Vec<Instance> = (0..5).map(|port| instance("fleet", port)).collect();
        let mut leases = Vec::new();
        for instance in &instances {
            leases.push(discovery.register(instance.clone()).await.unwrap());
        }
        let mut follower = follow(&discovery);
        follower.until("five", |follower| follower.known.len() == 5).await;
        follower.until("synced", |follower| follower.is_synced).await;
        Self { server, tasks, discovery, instances, leases, follower }
    }

    /// Waits until the outage is known and some time beyond; nobody may be lost.
    async fn endure(&mut self) {
        let start = Instant::now();
        self.follower.until("stale", |follower| follower.is_stale).await;
        eprintln!("the outage was noticed after {:?}", start.elapsed());
        self.follower.for_a_while(OUTAGE.saturating_sub(start.elapsed())).await;
        assert_eq!(self.follower.known.len(), 5, "the view is frozen");
    }

    /// Checks that everybody is there again and that nobody was thought to be gone.
    async fn recover(&mut self) {
        let start = Instant::now();
        self.follower.until("fresh", |follower| !follower.is_stale).await;
        eprintln!("the end of the outage was noticed after {:?}", start.elapsed());
        for lease in &self.leases {
            until_held(lease).await;
        }
        let new = instance("fleet", 100);
        let lease = self.discovery.register(new.clone()).await.unwrap();
        self.follower.until("the new one", |follower| follower.has(&new)).await;
        // Longer than any time-to-live or grace: what would flap has flapped.
        self.follower.for_a_while(2 * TTL + Duration::from_secs(2)).await;
        assert_eq!(self.follower.known.len(), 6);
        assert!(self.instances.iter().all(|instance| self.follower.has(instance)));
        let removed = self.follower.count(|event| matches!(event, Event::Remove(_)));
        let put = self.follower.count(|event| matches!(event, Event::Put(_)));
        assert_eq!((removed, put), (0, 6), "nothing flaps: {:?}", self.follower.log);
        // The truth is in etcd too, and a worker that ends is noticed as ever.
        let mut late = follow(&self.discovery);
        late.until("six", |late| late.known.len() == 6).await;
        lease.revoke().await.unwrap();
        self.follower.until("five", |follower| follower.known.len() == 5).await;
        assert!(!self.tasks.is_cancelled());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_etcd_freezes_the_view_and_nothing_flaps_when_it_goes_on() {
    let mut fleet = Fleet::start().await;
    fleet.server.freeze();
    fleet.endure().await;
    fleet.server.thaw();
    fleet.recover().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_etcd_that_starts_again_finds_its_fleet() {
    let mut fleet = Fleet::start().await;
    fleet.server.kill();
    fleet.endure().await;
    fleet.server.restart();
    fleet.recover().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_that_lost_its_disk_is_filled_again() {
    let mut fleet = Fleet::start().await;
    // Its revisions are far ahead of those that it will count again.
    for _ in 0..100 {
        fleet.server.post("/v3/kv/put", r#"{"key":"YQ==","value":"YQ=="}"#);
    }
    fleet.server.kill();
    fleet.endure().await;
    fleet.server.restart_empty();
    fleet.recover().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn registering_and_watching_may_begin_before_etcd_does() {
    let mut server = EtcdServer::start();
    server.kill();
    let tasks = Tasks::new();
    let discovery: Arc<dyn Discovery> = Arc::new(Etcd::new(etcd_config(&server), &tasks).unwrap());
    let mut follower = follow(&discovery);
    follower.until("stale", |follower| follower.is_stale).await;
    let instance = instance("fleet", 1);
    let lease = discovery.register(instance.clone()).await.unwrap();
    assert_eq!(lease.state(), LeaseState::Pending);
    let mut changed = instance.clone();
    changed.is_draining = true;
    assert!(lease.update(changed.clone()).await.is_err(), "it cannot be seen yet");
    server.restart();
    follower.until("it", |follower| follower.has(&changed)).await;
    follower.until("fresh", |follower| !follower.is_stale && follower.is_synced).await;
    until_held(&lease).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_that_are_away_are_passed_over() {
    let mut away = EtcdServer::start();
    away.kill();
    let frozen = EtcdServer::start();
    frozen.freeze();
    let server = EtcdServer::start();
    let endpoints = vec![away.address(), frozen.address(), server.address()];
    // One wait would be longer than the test: nobody waits before all members were tried.
    let wait = Duration::from_secs(600);
    let backoff = Backoff { first: wait, longest: wait };
    // The frozen one is waited for that long, and a busy one of those that are well may take as long.
    let request_timeout = Duration::from_secs(15);
    let config =
        etcd::Config { endpoints, backoff, request_timeout, grace: wait, ..etcd_config(&server) };
    let one = || async {
        let tasks = Tasks::new();
        let discovery = Arc::new(Etcd::new(config.clone(), &tasks).unwrap()) as Arc<dyn Discovery>;
        let instance = instance("fleet", 1);
        let lease = discovery.register(instance.clone()).await.unwrap();
        until_held(&lease).await;
        let mut follower = follow(&discovery);
        follower.until("it", |follower| follower.has(&instance)).await;
        assert_eq!(follower.count(|event| matches!(event, Event::Stale)), 0);
        tasks.cancel();
    };
    join_all((0..4).map(|_| one())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_an_operator_revokes_is_taken_again() {
    let mut fleet = Fleet::start().await;
    let leases = fleet.server.post("/v3/lease/leases", "{}");
    let leases = leases["leases"].as_array().unwrap().clone();
    assert_eq!(leases.len(), 1, "one lease for the process");
    fleet.server.post("/v3/lease/revoke", &leases[0].to_string());
    fleet.follower.until("none", |follower| follower.known.is_empty()).await;
    fleet.follower.until("five", |follower| follower.known.len() == 5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revocation_without_etcd_is_made_good_later() {
    let mut fleet = Fleet::start().await;
    fleet.server.kill();
    fleet.follower.until("stale", |follower| follower.is_stale).await;
    let lease = fleet.leases.pop().unwrap();
    let (id, dropped) = (lease.id(), fleet.leases.pop().unwrap());
    assert!(lease.revoke().await.is_err());
    let dropped_id = dropped.id();
    drop(dropped);
    fleet.server.restart();
    let is_gone = |follower: &Follower| {
        !follower.known.contains_key(&id) && !follower.known.contains_key(&dropped_id)
    };
    fleet.follower.until("both are gone", is_gone).await;
    assert_eq!(fleet.follower.known.len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_of_others_are_left_out_and_a_spoilt_record_is_gone() {
    let mut fleet = Fleet::start().await;
    let base64 = |text: &str| {
        use base64::Engine;
        base64::engine::general_purpose::STANDARD.encode(text)
    };
    let put = |key: &str, value: &str| {
        let body = format!(r#"{{"key":"{}","value":"{}"}}"#, base64(key), base64(value));
        fleet.server.post("/v3/kv/put", &body);
    };
    put("/stator/v1/instances/fleet/00000000000000ff", "{");
    put("/stator/v1/instances/fleet/note", "{}");
    let record = String::from_utf8(fleet.instances[0].to_json().unwrap()).unwrap();
    put("/stator/v1/instances/fleet/00000000000000fe", &record);
    let spoilt = fleet.instances[1].id;
    put(&format!("/stator/v1/instances/fleet/{spoilt}"), r#"{"version":2}"#);
    fleet.follower.until("four", |follower| follower.known.len() == 4).await;
    assert!(!fleet.follower.known.contains_key(&spoilt));
    // Its worker sees that the key hangs on its lease no more.
    fleet.follower.until("five", |follower| follower.known.len() == 5).await;
    let mut late = follow(&fleet.discovery);
    late.until("synced", |late| late.is_synced).await;
    assert_eq!(late.known.len(), 5);
}

/// Carries connections to etcd until it is cut.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    is_cut: watch::Sender<bool>,
    _tasks: Tasks,
}

impl Proxy {
    pub(crate) async fn start(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (is_cut, cuts) = watch::channel(false);
        let tasks = Tasks::new();
        let connections = tasks.clone();
        tasks.spawn("proxy", async move {
            loop {
                let (mut client, _) = listener.accept().await.unwrap();
                let mut cuts = cuts.clone();
                if *cuts.borrow() {
                    continue;
                }
                connections.spawn("connection", async move {
                    let mut etcd = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                    tokio::select! {
                        _ = copy_bidirectional(&mut client, &mut etcd) => {}
                        _ = cuts.wait_for(|is_cut| *is_cut) => {}
                    }
                });
            }
        });
        Self { address, is_cut, _tasks: tasks }
    }

    pub(crate) fn cut(&self, is_cut: bool) {
        self.is_cut.send_replace(is_cut);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_that_was_cut_off_while_etcd_was_compacted_catches_up() {
    let mut fleet = Fleet::start().await;
    let proxy = Proxy::start(fleet.server.port()).await;
    let tasks = Tasks::new();
    let endpoints = vec![proxy.address.to_string()];
    let grace = Duration::from_secs(1);
    let backoff = Backoff { longest: grace, ..Backoff::default() };
    let config = etcd::Config { endpoints, grace, backoff, ..etcd_config(&fleet.server) };
    let far: Arc<dyn Discovery> = Arc::new(Etcd::new(config, &tasks).unwrap());
    let mut cut_off = follow(&far);
    cut_off.until("five", |follower| follower.known.len() == 5).await;
    proxy.cut(true);
    cut_off.until("stale", |follower| follower.is_stale).await;
    // One leaves, one changes, one comes, and the history of it is forgotten.
    fleet.leases.pop().unwrap().revoke().await.unwrap();
    let gone = fleet.instances.pop().unwrap();
    fleet.instances[0].is_draining = true;
    fleet.leases[0].update(fleet.instances[0].clone()).await.unwrap();
    let new = instance("fleet", 50);
    let _lease = fleet.discovery.register(new.clone()).await.unwrap();
    fleet.server.compact();
    cut_off.for_a_while(Duration::from_secs(1)).await;
    assert!(cut_off.has(&gone) && !cut_off.has(&new));
    proxy.cut(false);
    let fresh = |follower: &Follower| !follower.is_stale && !follower.has(&gone);
    cut_off.until("fresh", fresh).await;
    assert!(cut_off.has(&new) && fleet.instances.iter().all(|instance| cut_off.has(instance)));
    assert_eq!(cut_off.known.len(), 5);
    fleet.follower.for_a_while(Duration::from_millis(100)).await;
    assert_eq!(fleet.follower.count(|event| matches!(event, Event::Stale)), 0);
}
