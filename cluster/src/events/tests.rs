//! A sink fed through a plane that loses, repeats and reorders is right in the end, and right
//! all the time about the place up to which it knows.

use std::collections::{BTreeSet, HashMap, VecDeque};

use engine::{BlockHash, KvEvent, KvEvents, KvNews, KvSnapshot, SequenceHash, StoredBlock};
use fastrand::Rng;

use std::sync::{Mutex, MutexGuard};

use super::follow::Follower;
use super::*;
use crate::instance::InstanceId;

const WORKER: InstanceId = InstanceId(7);

/// What is known of a worker's blocks, as a set.
#[derive(Debug, Default)]
pub(super) struct HeldBlocks(Mutex<BTreeSet<u64>>);

impl HeldBlocks {
    fn all(&self) -> MutexGuard<'_, BTreeSet<u64>> {
        self.0.lock().unwrap()
    }

    /// Returns how many there are.
    pub(super) fn count(&self) -> usize {
        self.all().len()
    }

    /// Returns whether exactly these are known.
    pub(super) fn are(&self, blocks: &BTreeSet<u64>) -> bool {
        *self.all() == *blocks
    }
}

impl BlockSink for HeldBlocks {
    fn replace(&self, blocks: &[SequenceHash]) {
        *self.all() = blocks.iter().map(|block| block.0).collect();
    }

    fn apply(&self, event: &KvEvent) {
        match event {
            KvEvent::Stored { blocks, .. } => {
                self.all().extend(blocks.iter().map(|block| block.sequence.0));
            }
            KvEvent::Removed { blocks } => {
                let mut all = self.all();
                for block in blocks {
                    all.remove(&block.0);
                }
            }
            KvEvent::Cleared => self.all().clear(),
        }
    }
}

/// A worker, what its cache holds, and what it held after each event.
struct Worker {
    events: KvEvents,
    reader: engine::KvEventReader,
    truth: BTreeSet<u64>,
    history: HashMap<(u64, u64), BTreeSet<u64>>,
}

impl Worker {
    fn new() -> Self {
        let events = KvEvents::new(1024);
        let reader = events.subscribe();
        let history = HashMap::from([((events.epoch(), 0), BTreeSet::new())]);
        Self { events, reader, truth: BTreeSet::new(), history }
    }

    /// Does something; returns what it tells.
    fn act(&mut self, rng: &mut Rng) -> Told {
        let event = match rng.u8(..20) {
            0 => {
                self.truth.clear();
                KvEvent::Cleared
            }
            1..8 => {
                let blocks: Vec<u64> =
                    self.truth.iter().rev().take(rng.usize(1..3)).copied().collect();
                self.truth.retain(|block| !blocks.contains(block));
                KvEvent::Removed { blocks: blocks.into_iter().map(SequenceHash).collect() }
            }
            _ => {
                let first = rng.u64(..200);
                let blocks = first..first + rng.u64(1..4);
                self.truth.extend(blocks.clone());
                let stored = |number| StoredBlock {
                    sequence: SequenceHash(number),
                    block: BlockHash(number),
                };
                let blocks = blocks.map(stored).collect();
                KvEvent::Stored { parent: None, blocks, block_tokens: 16 }
            }
        };
        self.events.publish(|| event);
        let Some(KvNews::Event(event)) = self.reader.try_next() else {
            panic!("an event was lost before it was told");
        };
        let (epoch, sequence) = (self.reader.epoch(), self.reader.sequence());
        self.history.insert((epoch, sequence), self.truth.clone());
        Told::Kv(Position { epoch, sequence }, event)
    }

    /// Loads its model anew.
    fn reload(&mut self) {
        let history = std::mem::take(&mut self.history);
        *self = Self::new();
        self.history.extend(history);
    }

    fn snapshot(&self) -> KvSnapshot {
        self.events.snapshot().0
    }

    fn head(&self) -> Told {
        Told::Head(Position { epoch: self.reader.epoch(), sequence: self.reader.sequence() })
    }
}

/// What is on its way to the frontend.
enum Flying {
    Told(Told),
    Snapshot(KvSnapshot),
}

fn check(seed: u64) {
    let mut rng = Rng::with_seed(seed);
    let (loss, reorder) = (rng.u8(..40), rng.u8(..40));
    let (held, counters) = (HeldBlocks::default(), Counters::default());
    let mut follower = Follower::new(&held, &counters);
    let mut worker = Worker::new();
    let mut flying = VecDeque::new();
    let mut is_asked = follower.take(Told::Gap);
    let verify = |follower: &Follower<'_>, worker: &Worker| {
        if !follower.tracker.is_waiting() {
            let Position { epoch, sequence } = follower.tracker.position();
            let truth = &worker.history[&(epoch, sequence)];
            assert_eq!(&*held.all(), truth, "seed {seed} at {epoch}/{sequence}");
        }
    };
    for _ in 0..rng.usize(50..300) {
        match rng.u8(..100) {
            0 => worker.reload(),
            1..60 => {
                let told = worker.act(&mut rng);
                for _ in 0..1 + usize::from(rng.u8(..20) == 0) {
                    if rng.u8(..100) >= loss {
                        let back = if rng.u8(..100) < reorder { rng.usize(..4) } else { 0 };
                        let place = flying.len() - back.min(flying.len());
                        flying.insert(place, Flying::Told(told.clone()));
                    }
                }
            }
            60..65 => flying.push_back(Flying::Told(worker.head())),
            65..75 if is_asked => {
                // The answer takes its own way.
                let place = rng.usize(..=flying.len());
                flying.insert(place, Flying::Snapshot(worker.snapshot()));
                is_asked = false;
            }
            _ => match flying.pop_front() {
                Some(Flying::Told(told)) => is_asked |= follower.take(told),
                Some(Flying::Snapshot(snapshot)) => is_asked |= follower.catch_up(&snapshot),
                None => {}
            },
        }
        verify(&follower, &worker);
    }
    for message in flying {
        match message {
            Flying::Told(told) => is_asked |= follower.take(told),
            Flying::Snapshot(snapshot) => is_asked |= follower.catch_up(&snapshot),
        }
        verify(&follower, &worker);
    }
    // Heads come all the time, and one answer is enough when nothing happens.
    is_asked |= follower.take(worker.head());
    is_asked |= follower.take(worker.head());
    if is_asked {
        assert!(!follower.catch_up(&worker.snapshot()), "seed {seed}");
    }
    verify(&follower, &worker);
    assert_eq!(*held.all(), worker.truth, "seed {seed}");
}

#[test]
fn what_is_known_is_right_in_spite_of_its_plane() {
    (0..2_000).for_each(check);
}

#[tokio::test]
async fn within_a_process_the_sink_follows() {
    let events = KvEvents::new(16);
    let source = Source { events: Some(events.clone()), load: None };
    let local = Local { source, load_interval: std::time::Duration::from_secs(1) };
    let (held, counters) = (HeldBlocks::default(), Counters::default());
    let mut worker = Worker::new();
    worker.events = events.clone();
    worker.reader = events.subscribe();
    let following = follow(&local, WORKER, (&held, &counters), |_| true);
    let acting = async {
        let mut rng = Rng::with_seed(1);
        for round in 0..200 {
            worker.act(&mut rng);
            // Now and then so many come at once that the ring overflows.
            if round % 50 > 25 {
                tokio::task::yield_now().await;
            }
        }
        while *held.all() != worker.truth {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        ended = following => panic!("the plane ended: {ended:?}"),
        done = tokio::time::timeout(std::time::Duration::from_secs(30), acting) => done.unwrap(),
    }
    assert!(counters.gaps.load(std::sync::atomic::Ordering::Relaxed) > 0);
}
