//! An API server that freezes, fails, forgets, loses its disk and asks for tokens, in simulated time.

use std::sync::Arc;

use cluster::discovery::kubernetes::{self, Pod};
use serde_json::json;
use tokio::time::sleep;

use super::api_server::Weather;
use super::*;

/// A fleet of a few workers and a frontend.
struct Fleet {
    server: ApiServer,
    tasks: Tasks,
    discovery: Arc<dyn Discovery>,
    instances: Vec<Instance>,
    leases: Vec<cluster::discovery::Lease>,
    follower: Follower,
}

impl Fleet {
    async fn start() -> Self {
        let server = ApiServer::start();
        let tasks = Tasks::new();
        let discovery = open(&server, &tasks);
        let instances: Vec<Instance> = (0..5).map(|port| instance("fleet", port)).collect();
        let registered = join_all(instances.iter().map(|one| discovery.register(one.clone())));
        let leases = registered.await.into_iter().map(Result::unwrap).collect();
        let mut follower = follow(&discovery);
        follower.until("five", |follower| follower.known.len() == 5).await;
        follower.until("synced", |follower| follower.is_synced).await;
        Self { server, tasks, discovery, instances, leases, follower }
    }

    fn removals(&self) -> usize {
        self.follower.count(|event| matches!(event, Event::Remove(_)))
    }

    fn outages(&self) -> usize {
        self.follower.count(|event| matches!(event, Event::Stale))
    }
}

fn open(server: &ApiServer, tasks: &Tasks) -> Arc<dyn Discovery> {
    open_kubernetes(server, kubernetes_config(server), tasks)
}

#[tokio::test(start_paused = true)]
async fn watches_end_and_go_on_and_bookmarks_and_renewals_are_no_news() {
    let mut fleet = Fleet::start().await;
    let listings = fleet.server.calls("GET configmaps");
    // Several times the longest watch and the time-to-live.
    fleet.follower.for_a_while(4 * TTL).await;
    assert_eq!(fleet.follower.log.len(), 6, "nothing but five and synced");
    assert!(fleet.server.calls("WATCH configmaps") >= 4);
    assert_eq!(fleet.server.calls("GET configmaps"), listings, "nothing is listed again");
    assert_eq!(fleet.server.names("leases").len(), 1, "one lease for the process");
}

#[tokio::test(start_paused = true)]
async fn a_version_that_is_forgotten_leads_to_a_listing_and_is_no_outage() {
    let mut fleet = Fleet::start().await;
    // A change goes with the history, so that only a listing shows it.
    fleet.follower.for_a_while(Duration::from_millis(1500)).await;
    for _ in 0..2 {
        let listings = fleet.server.calls("GET configmaps");
        fleet.server.set(Weather::Deaf);
        fleet.instances[0].is_draining ^= true;
        fleet.leases[0].update(fleet.instances[0].clone()).await.unwrap();
        fleet.server.forget_history();
        fleet.server.set(Weather::Fine);
        let changed = fleet.instances[0].clone();
        fleet.follower.until("the change", |follower| follower.has(&changed)).await;
        assert!(fleet.server.calls("GET configmaps") > listings);
        fleet.follower.for_a_while(Duration::from_millis(1500)).await;
    }
    assert_eq!((fleet.removals(), fleet.outages()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_tells_nothing_is_found_out_before_anybody_is_removed() {
    let mut fleet = Fleet::start().await;
    fleet.server.set(Weather::Deaf);
    fleet.follower.for_a_while(4 * TTL).await;
    assert_eq!(fleet.removals(), 0, "renewals that nobody heard count");
    let new = instance("fleet", 50);
    let _lease = fleet.discovery.register(new.clone()).await.unwrap();
    fleet.follower.until("the new one", |follower| follower.has(&new)).await;
}

#[tokio::test(start_paused = true)]
async fn a_frozen_server_freezes_the_view() {
    let mut fleet = Fleet::start().await;
    fleet.server.set(Weather::Frozen);
    fleet.follower.until("stale", |follower| follower.is_stale).await;
    fleet.follower.for_a_while(2 * TTL).await;
    assert_eq!(fleet.follower.known.len(), 5);
    assert_eq!(fleet.leases[0].state(), LeaseState::Lost, "watchers may think so by now");
    fleet.server.set(Weather::Fine);
    fleet.follower.until("fresh", |follower| !follower.is_stale).await;
    fleet.follower.for_a_while(4 * TTL).await;
    assert_eq!((fleet.removals(), fleet.follower.known.len()), (0, 5));
    assert_eq!(fleet.leases[0].state(), LeaseState::Held);
    assert!(!fleet.tasks.is_cancelled());
}

#[tokio::test(start_paused = true)]
async fn a_server_that_lost_its_disk_is_filled_again() {
    let mut fleet = Fleet::start().await;
    fleet.server.set(Weather::Down);
    fleet.follower.until("stale", |follower| follower.is_stale).await;
    fleet.server.lose_disk();
    fleet.server.set(Weather::Fine);
    fleet.follower.until("fresh", |follower| !follower.is_stale).await;
    fleet.follower.for_a_while(4 * TTL).await;
    assert_eq!((fleet.removals(), fleet.follower.known.len()), (0, 5));
    let mut late = follow(&fleet.discovery);
    late.until("five", |late| late.known.len() == 5).await;
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_removed_takes_its_instances_along_and_they_register_again() {
    let mut fleet = Fleet::start().await;
    let lease = fleet.server.names("leases").remove(0);
    fleet.server.delete("leases", &lease);
    fleet.follower.until("none", |follower| follower.known.is_empty()).await;
    assert!(fleet.server.names("configmaps").is_empty(), "Kubernetes removes what it owned");
    fleet.follower.until("five", |follower| follower.known.len() == 5).await;
    assert_ne!(fleet.server.names("leases"), [lease]);
}

#[tokio::test(start_paused = true)]
async fn objects_of_others_are_left_out_and_a_spoilt_one_is_gone() {
    let mut fleet = Fleet::start().await;
    let spoilt = format!("stator-{}", fleet.instances[1].id);
    let mut object = fleet.server.object("configmaps", &spoilt);
    object["data"]["instance"] = json!("{\"version\":2}");
    fleet.server.put("configmaps", object.clone());
    let gone = fleet.instances[1].id;
    fleet.follower.until("four", |follower| !follower.known.contains_key(&gone)).await;
    // One under the name of another, one without a lease, one without data.
    let good = fleet.server.object("configmaps", &format!("stator-{}", fleet.instances[0].id));
    let change = |name: &str, field: &str| {
        let mut object = good.clone();
        object["metadata"]["name"] = json!(name);
        if field == "data" {
            object.as_object_mut().unwrap().remove("data");
        } else {
            object["metadata"]["labels"]["stator/lease"] = json!("stator-none");
        }
        object
    };
    fleet.server.put("configmaps", change("another", "name"));
    fleet.server.put("configmaps", change("empty", "data"));
    let mut late = follow(&fleet.discovery);
    late.until("synced", |late| late.is_synced).await;
    assert_eq!((late.known.len(), fleet.follower.known.len()), (4, 4));
    assert_eq!(fleet.outages(), 0);
}

/// The Lease of another process.
fn lease(name: &str, renewed: &str) -> serde_json::Value {
    json!({
        "metadata": {"name": name, "labels": {"stator/record": "process"}},
        "spec": {"renewTime": renewed},
    })
}

#[tokio::test(start_paused = true)]
async fn who_could_not_renew_in_an_outage_is_not_swept_away() {
    let server = ApiServer::start();
    server.put("leases", lease("stator-late", "2020-01-01T00:00:00.000000Z"));
    let tasks = Tasks::new();
    // Two looks are at least so far apart.
    let leftover_age = Duration::from_secs(8);
    let config = kubernetes::Config { leftover_age, ..kubernetes_config(&server) };
    let discovery = open_kubernetes(&server, config, &tasks);
    let _lease = discovery.register(instance("fleet", 1)).await.unwrap();
    let start = Instant::now();
    let looked = |before: usize| {
        assert!(start.elapsed() < PATIENCE, "nobody looks for leftovers");
        server.calls("GET leases") > before
    };
    let is_there = || server.names("leases").contains(&"stator-late".to_owned());
    while !looked(0) {
        sleep(Duration::from_millis(5)).await;
    }
    server.set(Weather::Down);
    // Longer than two renewals. At the next look it has not changed for as long as a leftover.
    sleep(Duration::from_secs(5)).await;
    let before = server.calls("GET leases");
    server.set(Weather::Fine);
    while !looked(before) {
        sleep(Duration::from_millis(5)).await;
    }
    sleep(Duration::from_millis(200)).await;
    assert!(is_there(), "it had no time to renew");
    server.put("leases", lease("stator-late", "2020-01-01T00:00:01.000000Z"));
    // From now on it is as old as it seems.
    while is_there() {
        assert!(start.elapsed() < PATIENCE, "it is not swept away");
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn who_ended_long_ago_is_not_seen_and_is_swept_away() {
    let server = ApiServer::start();
    // Clocks say nothing: both seem to be old, and one of them is renewed.
    server.put("leases", lease("stator-old", "2020-01-01T00:00:00.000000Z"));
    server.put("leases", lease("stator-late", "2020-01-01T00:00:00.000000Z"));
    let ghost = instance("fleet", 9);
    server.put("configmaps", {
        let uid = server.object("leases", "stator-old")["metadata"]["uid"].clone();
        json!({
            "metadata": {
                "name": format!("stator-{}", ghost.id),
                "labels": {"stator/record": "instance", "stator/lease": "stator-old"},
                "ownerReferences": [{"uid": uid}],
            },
            "data": {"instance": String::from_utf8(ghost.to_json().unwrap()).unwrap()},
        })
    });
    let tasks = Tasks::new();
    let leftover_age = Duration::from_secs(1);
    let config = kubernetes::Config { leftover_age, ..kubernetes_config(&server) };
    let discovery = open_kubernetes(&server, config, &tasks);
    let mut follower = follow(&discovery);
    follower.until("synced", |follower| follower.is_synced).await;
    assert!(follower.known.is_empty(), "a ghost");
    let _lease = discovery.register(instance("fleet", 1)).await.unwrap();
    follower.until("one", |follower| follower.known.len() == 1).await;
    assert!(server.names("leases").contains(&"stator-old".to_owned()), "not at first sight");
    let start = Instant::now();
    while server.names("leases").contains(&"stator-old".to_owned()) {
        assert!(start.elapsed() < PATIENCE, "it is not swept away");
        server.put("leases", lease("stator-late", "2020-01-01T00:00:01.000000Z"));
        follower.for_a_while(Duration::from_millis(100)).await;
    }
    assert!(start.elapsed() > Duration::from_millis(500));
    assert_eq!(server.names("configmaps").len(), 1);
    assert_eq!(server.names("leases").len(), 2, "ours and the one that is renewed");
    assert!(server.names("leases").contains(&"stator-late".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_token_that_is_replaced_is_read_again_and_the_pod_owns_the_lease() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, "first\n").unwrap();
    let server = ApiServer::start();
    server.ask_for_token("first");
    let tasks = Tasks::new();
    let pod = Pod { name: "worker-0".into(), uid: "uid-of-pod".into() };
    let config = kubernetes::Config {
        token_file: Some(file.clone()),
        pod: Some(pod),
        ..kubernetes_config(&server)
    };
    let discovery = open_kubernetes(&server, config, &tasks);
    let first = instance("fleet", 1);
    let lease = discovery.register(first.clone()).await.unwrap();
    assert_eq!(lease.state(), LeaseState::Held);
    let mut follower = follow(&discovery);
    follower.until("it", |follower| follower.has(&first)).await;
    let object = server.object("leases", &server.names("leases")[0]);
    assert_eq!(object["metadata"]["ownerReferences"][0]["uid"], "uid-of-pod");
    std::fs::write(&file, "second\n").unwrap();
    server.ask_for_token("second");
    let second = instance("fleet", 2);
    let _lease = discovery.register(second.clone()).await.unwrap();
    follower.until("both", |follower| follower.has(&second)).await;
    follower.for_a_while(2 * TTL).await;
    assert_eq!(follower.count(|event| matches!(event, Event::Stale | Event::Remove(_))), 0);
    let stranger = open(&server, &tasks);
    let mut refused = follow(&stranger);
    refused.until("refused", |follower| follower.is_stale).await;
}
