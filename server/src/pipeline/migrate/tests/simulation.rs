//! Fleets that come, die, drain and refuse at random, in simulated time: what a client gets is
//! right or fails for a reason, and nothing leaks.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;

use super::*;
use crate::pipeline::testing::oracle;
use crate::pipeline::{Route, RouteConfig, RouteMetrics, RouterMode};

mod clock;
mod world;

use clock::Clock;
use world::{Fate, World};

/// Seeds that are run; a failure names its own.
const SEEDS: u64 = 2000;

/// What came of all requests of all seeds, so that the test cannot pass by doing nothing.
#[derive(Debug, Default)]
struct Counts {
    right: AtomicU64,
    failed: AtomicU64,
    cancelled: AtomicU64,
    migrated: AtomicU64,
}

#[test]
fn two_thousand_fleets_lose_nothing_but_what_nobody_could_keep() {
    let counts = Arc::new(Counts::default());
    let replayed = crate::args::replayed_seed();
    for seed in replayed.map_or(0..SEEDS, |seed| seed..seed + 1) {
        let outcome = catch_unwind(AssertUnwindSafe(|| simulate(seed, &counts)));
        if let Err(panic) = outcome {
            println!("seed {seed} failed: STATOR_SEED={seed} runs it alone");
            resume_unwind(panic);
        }
    }
    println!("{counts:?}");
    if replayed.is_none() {
        let [right, failed, cancelled, migrated] =
            [&counts.right, &counts.failed, &counts.cancelled, &counts.migrated]
                .map(|count| count.load(Relaxed));
        assert!(right > 5 * SEEDS && migrated > SEEDS / 2, "{counts:?}");
        assert!(failed > SEEDS / 10 && cancelled > SEEDS / 10, "{counts:?}");
    }
}

fn simulate(seed: u64, counts: &Arc<Counts>) {
    let mut random = fastrand::Rng::with_seed(seed);
    // In a gentle world one worker lives for ever and takes everything.
    let is_gentle = seed.is_multiple_of(3);
    let clock = Clock::default();
    let world = World::new(clock.clone(), random.fork(), is_gentle);
    let config = RouteConfig {
        mode: [RouterMode::RoundRobin, RouterMode::LeastLoaded][random.usize(..2)],
        max_attempts: if is_gentle { 1000 } else { random.u32(1..5) },
        ..RouteConfig::default()
    };
    let limit = if is_gentle { 1000 } else { random.u32(1..4) };
    let route = Route::new("m", world.clone(), config, RouteMetrics::default());
    let tasks: FuturesUnordered<BoxFuture<'static, ()>> = FuturesUnordered::new();
    tasks.push(Box::pin(world.clone().live(random.fork())));
    for number in 0..8 {
        let client = Client {
            migrate: Migrate { engine: route.clone(), limit, count: Counter::default() },
            clock: clock.clone(),
            world: world.clone(),
            counts: counts.clone(),
            max_attempts: config.max_attempts as usize,
        };
        tasks.push(Box::pin(client.run(number, random.fork())));
    }
    clock.run(tasks);
    assert!(world.is_idle(), "seed {seed}: something is in flight in the end");
}

struct Client {
    migrate: Migrate<Route>,
    clock: Clock,
    world: Arc<World>,
    counts: Arc<Counts>,
    max_attempts: usize,
}

impl Client {
    async fn run(self, number: u64, mut random: fastrand::Rng) {
        self.clock.sleep(random.u64(..60)).await;
        let request = oracle::request(&mut random);
        let expected = oracle::answer_of(&request);
        let patience = random.bool().then(|| random.usize(..60)).filter(|_| random.bool());
        let context = Context::new(number.to_string());
        let error = match self.migrate.call(request, context).await {
            Err(error) => Some(error),
            Ok(mut stream) => {
                let mut outputs = Vec::new();
                let error = loop {
                    if patience.is_some_and(|most| outputs.len() >= most) {
                        self.counts.cancelled.fetch_add(1, Relaxed);
                        return;
                    }
                    match stream.next().await {
                        Some(Ok(output)) => outputs.push(Ok(output)),
                        Some(Err(error)) => break Some(error),
                        None => break None,
                    }
                };
                assert!(stream.next().await.is_none(), "an item behind the end");
                if error.is_none() {
                    let outputs = Box::pin(futures_util::stream::iter(outputs));
                    assert_eq!(collect(outputs).await.unwrap(), expected, "request {number}");
                }
                error
            }
        };
        let fates = self.world.fates(number);
        match error {
            None => {
                let was_lost = fates.contains(&Fate::Lost);
                self.counts.migrated.fetch_add(was_lost.into(), Relaxed);
                self.counts.right.fetch_add(1, Relaxed);
            }
            Some(error) => {
                assert!(!self.world.is_gentle, "request {number} failed: {error:?} {fates:?}");
                self.justify(&error, &fates);
                self.counts.failed.fetch_add(1, Relaxed);
            }
        }
    }

    /// Checks that a request had to fail.
    fn justify(&self, error: &Error, fates: &[Fate]) {
        let count = |fate| fates.iter().filter(|&&other| other == fate).count();
        let refused = count(Fate::Busy) + count(Fate::Refused);
        match error.kind() {
            ErrorKind::Overloaded => {
                assert!(count(Fate::Busy) > 0, "{fates:?}");
                assert_eq!(error.retry_after(), Some(world::RETRY_AFTER));
            }
            ErrorKind::Unavailable if error.message().contains("no worker of model `m`") => {
                let has_tried = refused + count(Fate::Lost) >= self.max_attempts;
                assert!(has_tried || self.world.was_short_of(self.max_attempts), "{fates:?}");
            }
            ErrorKind::Unavailable => {
                let losses = count(Fate::Lost);
                assert!(losses > self.migrate.limit as usize, "{error} {fates:?}");
            }
            kind => panic!("{kind:?} is no reason: {error}"),
        }
    }
}
