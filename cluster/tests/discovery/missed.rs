//! Watches break at any moment, pages and histories end anywhere: a watcher misses no change.

use std::cell::{Cell, RefCell};

use cluster::discovery::Backoff;
use fastrand::Rng;
use tokio::runtime::Builder;

use super::etcd_outage::Proxy;
use super::*;

/// A process whose registrations come, change and go.
struct Worker {
    discovery: Arc<dyn Discovery>,
    leases: Vec<(Instance, Lease)>,
    registered: u16,
}

impl Worker {
    fn new(discovery: Arc<dyn Discovery>) -> Self {
        Self { discovery, leases: Vec::new(), registered: 0 }
    }

    /// Changes something; a store that is away hears of it later.
    async fn act(&mut self, random: &mut Rng) {
        let place = random.usize(..=self.leases.len());
        match random.u8(..3) {
            0 if place < self.leases.len() => drop(self.leases.swap_remove(place)),
            1 if place < self.leases.len() => {
                let (instance, lease) = &mut self.leases[place];
                instance.is_draining ^= true;
                lease.update(instance.clone()).await.ok();
            }
            _ => {
                self.registered += 1;
                let instance = instance("fleet", self.registered);
                let lease = self.discovery.register(instance.clone()).await.unwrap();
                self.leases.push((instance, lease));
            }
        }
    }

    fn is_seen_by(&self, follower: &Follower) -> bool {
        let mut instances = self.leases.iter().map(|(instance, _)| instance);
        follower.known.len() == self.leases.len() && instances.all(|one| follower.has(one))
    }
}

/// Acts in a store that is disturbed, and checks what all watchers know at the end.
async fn check(
    what: &str,
    [worker, frontend]: [Arc<dyn Discovery>; 2],
    random: &mut Rng,
    mut disturb: impl FnMut(&mut Rng),
    end: impl FnOnce(),
) {
    let mut worker = Worker::new(worker);
    let mut early = follow(&frontend);
    for _ in 0..random.usize(10..60) {
        worker.act(random).await;
        if random.bool() {
            disturb(random);
        }
        // Events wait for their reader in a bounded buffer.
        early.for_a_while(Duration::from_millis(random.u64(..400))).await;
    }
    end();
    for follower in [&mut early, &mut follow(&frontend)] {
        let knows = |follower: &Follower| !follower.is_stale && worker.is_seen_by(follower);
        follower.until(what, knows).await;
    }
}

#[test]
fn nothing_is_missed_in_kubernetes() {
    for seed in 0..200 {
        let runtime = Builder::new_current_thread().enable_all().start_paused(true).build();
        runtime.unwrap().block_on(async {
            let (mut random, tasks) = (Rng::with_seed(seed), Tasks::new());
            let server = ApiServer::start();
            let open = || open_kubernetes(&server, kubernetes_config(&server), &tasks);
            let disturb = |random: &mut Rng| match random.u8(..8) {
                0 => server.set(Weather::Down),
                1 => server.set(Weather::Deaf),
                2 => server.set(Weather::Frozen),
                3 => server.forget_history(),
                4 => server.set_page(random.usize(1..4)),
                5 if random.bool() => {
                    // The watches break before the disk is gone, as with any real server.
                    server.set(Weather::Down);
                    server.lose_disk();
                }
                _ => server.set(Weather::Fine),
            };
            let end = || server.set(Weather::Fine);
            let what = format!("seed {seed}: nothing is missed");
            check(&what, [open(), open()], &mut random, disturb, end).await;
            tasks.cancel();
        });
    }
}

#[test]
fn nothing_is_missed_in_a_folder() {
    for seed in 0..20 {
        let runtime = Builder::new_current_thread().enable_all().start_paused(true).build();
        runtime.unwrap().block_on(async {
            let (mut random, tasks) = (Rng::with_seed(seed), Tasks::new());
            let store = RefCell::new(Store::file());
            let discoveries = [store.borrow().open(&tasks), store.borrow().open(&tasks)];
            // The folder is there once somebody watches it.
            follow(&discoveries[0]).until("it is made", |follower| follower.is_synced).await;
            let is_lost = Cell::new(false);
            let set_lost = |lost: bool| match (is_lost.replace(lost), lost) {
                (false, true) => store.borrow_mut().lose(),
                (true, false) => store.borrow_mut().restore(),
                _ => {}
            };
            let disturb = |random: &mut Rng| set_lost(random.u8(..4) == 0);
            let what = format!("seed {seed}: nothing is missed");
            check(&what, discoveries, &mut random, disturb, || set_lost(false)).await;
            tasks.cancel();
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_missed_in_etcd() {
    let server = EtcdServer::start();
    let proxy = Proxy::start(server.port()).await;
    let (tasks, mut random) = (Tasks::new(), Rng::with_seed(1));
    let worker = Arc::new(Etcd::new(etcd_config(&server), &tasks).unwrap());
    let backoff = Backoff { first: Duration::from_millis(10), ..Backoff::default() };
    let endpoints = vec![proxy.address.to_string()];
    let config = etcd::Config { endpoints, backoff, ..etcd_config(&server) };
    let frontend = Arc::new(Etcd::new(config, &tasks).unwrap());
    let disturb = |random: &mut Rng| match random.u8(..4) {
        0 => server.compact(),
        1 => proxy.cut(true),
        _ => proxy.cut(false),
    };
    let end = || proxy.cut(false);
    check("nothing is missed", [worker, frontend], &mut random, disturb, end).await;
    tasks.cancel();
}
