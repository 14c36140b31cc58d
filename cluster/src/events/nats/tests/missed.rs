//! Connections break and streams go at any moment: a frontend misses no event for long.

use std::collections::BTreeSet;

use fastrand::Rng;

use super::*;

/// More events than a listener has room for: some are lost on the way.
const BURST: u64 = 3000;

/// A worker whose blocks come and go, and what it holds.
struct Blocks {
    held: BTreeSet<u64>,
    stored: u64,
}

impl Blocks {
    fn act(&mut self, fleet: &Fleet, random: &mut Rng) {
        match random.u8(..8) {
            0 => {
                fleet.events.publish(|| KvEvent::Cleared);
                self.held.clear();
            }
            1 | 2 => {
                let gone: Vec<u64> =
                    self.held.iter().rev().take(random.usize(1..50)).copied().collect();
                self.held.retain(|block| !gone.contains(block));
                let blocks = gone.into_iter().map(SequenceHash).collect();
                fleet.events.publish(|| KvEvent::Removed { blocks });
            }
            kind => {
                let count = if kind == 3 { BURST } else { random.u64(1..100) };
                fleet.store(self.stored..self.stored + count);
                self.held.extend(self.stored..self.stored + count);
                self.stored += count;
            }
        }
    }
}

/// Breaks something; what is broken mends itself.
async fn disturb(nats: &Server, fleet: &Fleet, random: &mut Rng) {
    match random.u8(..6) {
        0 => fleet.frontend.client.force_reconnect().await.unwrap(),
        1 => {
            for connection in nats.connections() {
                connection.client.force_reconnect().await.unwrap();
            }
        }
        2 if nats.has_jetstream() => {
            let namespace: Namespace = "a.b_c".parse().unwrap();
            let context = jetstream::new(fleet.frontend.client.clone());
            context.delete_stream(stream_name(&event_subject(&namespace))).await.ok();
        }
        3 => {
            nats.hang(true);
            sleep(Duration::from_millis(random.u64(..200))).await;
            nats.hang(false);
        }
        _ => {}
    }
}

async fn nothing_is_missed(nats: &Server) {
    for seed in 0..5 {
        let (mut random, fleet) = (Rng::with_seed(seed), Fleet::start(nats).await);
        let happens = async {
            let mut blocks = Blocks { held: BTreeSet::new(), stored: 0 };
            for _ in 0..random.usize(5..30) {
                blocks.act(&fleet, &mut random);
                if random.bool() {
                    disturb(nats, &fleet, &mut random).await;
                }
                sleep(Duration::from_millis(random.u64(..50))).await;
            }
            let what = format!("seed {seed}: all that the worker holds");
            fleet.until(&what, |fleet| fleet.held.are(&blocks.held)).await;
        };
        fleet.during(happens).await;
        fleet.publisher.set(Vec::new());
        fleet.tasks.cancel();
    }
}

#[tokio::test]
async fn nothing_is_missed_in_a_stream() {
    nothing_is_missed(&Server::start_with(None, Some(tempdir().unwrap()))).await;
}

#[tokio::test]
async fn nothing_is_missed_without_jetstream() {
    nothing_is_missed(&Server::start_with(None, None)).await;
}
