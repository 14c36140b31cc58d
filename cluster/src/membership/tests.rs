//! The task around the core, over discovery in memory.

use std::collections::BTreeSet;

use super::*;
use crate::card::{Card, Input, Kind};
use crate::discovery::Mem;

/// Answers for those who are well.
#[derive(Debug, Default)]
struct Wellness(Mutex<BTreeSet<InstanceId>>);

#[async_trait]
impl Probe for Wellness {
    async fn is_well(&self, instance: &Instance) -> bool {
        let is_well = self.0.lock().unwrap().contains(&instance.id);
        match instance.address.as_str() {
            "local://hangs" => std::future::pending().await,
            _ => is_well,
        }
    }
}

fn worker(address: &str) -> Instance {
    let mut instance = Instance::new("fleet".parse().unwrap(), address);
    instance.cards.push(Card::new("m", Kind::Text, Input::Token));
    instance
}

async fn until(membership: &Membership, what: impl Fn(&Snapshot) -> bool) {
    let mut snapshots = membership.snapshots();
    let seen = snapshots.wait_for(|snapshot| what(snapshot));
    timeout(Duration::from_secs(60), seen).await.expect("the snapshot comes").unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_dead_connection_removes_a_worker_at_once_and_a_probe_brings_it_back() {
    let tasks = Tasks::new();
    let mem = Mem::new(&tasks);
    let probe = Arc::new(Wellness::default());
    let membership = Membership::start(&mem, Query::All, probe.clone(), Config::default(), &tasks);
    let (good, hanging) = (worker("local://good"), worker("local://hangs"));
    let lease = mem.register(good.clone()).await.unwrap();
    let _other = mem.register(hanging.clone()).await.unwrap();
    until(&membership, |snapshot| snapshot.has(good.id) && snapshot.has(hanging.id)).await;
    for id in [good.id, hanging.id, InstanceId(1)] {
        membership.suspect(id);
    }
    until(&membership, |snapshot| !snapshot.has(good.id) && !snapshot.has(hanging.id)).await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(!membership.now().has(good.id), "failed probes bring nobody back");
    probe.0.lock().unwrap().extend([good.id, hanging.id]);
    until(&membership, |snapshot| snapshot.has(good.id)).await;
    assert!(!membership.now().has(hanging.id), "a probe that hangs has failed");
    lease.revoke().await.unwrap();
    until(&membership, |snapshot| !snapshot.has(good.id)).await;
}

#[tokio::test(start_paused = true)]
async fn a_lost_store_freezes_the_snapshot() {
    let tasks = Tasks::new();
    let mem = Mem::new(&tasks);
    let probe = Arc::new(Wellness::default());
    let membership = Membership::start(&mem, Query::All, probe, Config::default(), &tasks);
    let first = worker("local://1");
    let _lease = mem.register(first.clone()).await.unwrap();
    until(&membership, |snapshot| snapshot.has(first.id)).await;
    mem.set_reachable(false);
    mem.forget();
    until(&membership, |snapshot| snapshot.is_stale).await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(membership.now().has(first.id));
    mem.set_reachable(true);
    until(&membership, |snapshot| !snapshot.is_stale).await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(membership.now().has(first.id), "it has registered again");
}
