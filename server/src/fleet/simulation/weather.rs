//! What happens to a fleet: workers come, go, die, hang and drain, connections break, the store
//! is away, slow or forgetful.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use futures_util::future::join;
use tokio::time::{Duration, timeout};

use super::worker::{Health, Worker};
use super::world::{MAX_LAG_MS, World};

/// How long a worker that drains waits for its answers, in milliseconds.
const GRACE_MS: u64 = 10_000;

/// Lets things happen for some time.
pub(super) async fn blow(world: Arc<World>, mut random: fastrand::Rng) {
    let caches = churn(world.clone(), random.fork());
    let fleet = async {
        for _ in 0..20 {
            world.moments.sleep(random.u64(1..1200)).await;
            let mut workers = world.workers();
            workers.retain(|worker| worker.is_settled() && worker.health() == Health::Well);
            let chosen = workers.get(random.usize(..workers.len().max(1)));
            happen(&world, chosen, &mut random);
        }
    };
    join(caches, fleet).await;
}

/// Lets something happen to the fleet, or to one worker of it.
fn happen(world: &Arc<World>, chosen: Option<&Arc<Worker>>, random: &mut fastrand::Rng) {
    let mortal = chosen.filter(|worker| !worker.is_immortal);
    match (random.u32(..100), chosen, mortal) {
        (0..30, ..) => world.join(false),
        (30..42, _, Some(worker)) => world.kill(worker),
        (42..52, _, Some(worker)) => {
            let draining = drain(world.clone(), worker.clone(), random.bool());
            world.tasks.spawn("drain", draining);
        }
        (52..58, Some(worker), _) => {
            let hanging = hang(world.clone(), worker.clone());
            world.tasks.spawn("hang", hanging);
        }
        (58..68, Some(worker), _) => {
            world.tell(format_args!("{} loses its connections", worker.id));
            world.cut(worker);
        }
        (68..76, ..) => {
            let away = outage(world.clone(), random.u64(1..6000), random.bool());
            world.tasks.spawn("outage", away);
        }
        (76..80, ..) => {
            world.tell(format_args!("the store forgets"));
            world.forget();
        }
        (80..90, ..) => {
            let lag_ms = if random.bool() { 0 } else { random.u64(..=MAX_LAG_MS) };
            world.tell(format_args!("the store is late by {lag_ms} ms"));
            world.store.set_lag(Duration::from_millis(lag_ms));
        }
        (90..95, Some(worker), _) => {
            world.tell(format_args!("{} loads its model anew", worker.id));
            worker.cache.lock().unwrap().reload();
        }
        _ => {}
    }
}

/// Lets caches change beside what requests do.
async fn churn(world: Arc<World>, mut random: fastrand::Rng) {
    for _ in 0..40 {
        world.moments.sleep(random.u64(1..500)).await;
        let mut workers = world.workers();
        workers.retain(|worker| worker.health() == Health::Well);
        if let Some(worker) = workers.get(random.usize(..workers.len().max(1))) {
            worker.cache.lock().unwrap().act(&mut random);
        }
    }
}

/// Lets a worker finish what it has, as one that is told to end.
async fn drain(world: Arc<World>, worker: Arc<Worker>, is_told: bool) {
    world.tell(format_args!("{} drains", worker.id));
    let Some(lease) = worker.take_lease() else { return };
    if is_told {
        let _ = lease.update(world.instance(&worker, true)).await;
        world.moments.sleep(world.roll(1, 1000)).await;
    }
    // Where the store is away it goes on by itself.
    let _ = lease.revoke().await;
    worker.leave();
    world.tell(format_args!("{} is not registered any more", worker.id));
    // What comes for another moment is taken.
    world.moments.sleep(500).await;
    worker.is_draining.store(true, Relaxed);
    let finished = async {
        while worker.streams() > 0 {
            world.moments.sleep(100).await;
        }
    };
    let _ = timeout(Duration::from_millis(GRACE_MS), finished).await;
    worker.die();
}

/// Lets a worker hang until it goes on or somebody kills it.
async fn hang(world: Arc<World>, worker: Arc<Worker>) {
    world.tell(format_args!("{} hangs", worker.id));
    worker.hang();
    world.moments.sleep(world.roll(100, 12_000)).await;
    if worker.is_immortal || world.roll(0, 1) == 0 {
        world.tell(format_args!("{} goes on", worker.id));
        world.revive(&worker);
    } else {
        world.kill(&worker);
    }
}

/// Takes the store away for some time; it may come back empty.
async fn outage(world: Arc<World>, time_ms: u64, is_forgetful: bool) {
    world.set_reachable(false);
    world.moments.sleep(time_ms).await;
    if is_forgetful {
        world.forget();
    }
    world.set_reachable(true);
}

/// Lets nothing more happen.
pub(super) fn calm(world: &World) {
    world.tell(format_args!("calm"));
    world.is_calm.store(true, Relaxed);
    world.store.set_lag(Duration::ZERO);
}
