//! The index against a naive one, its limits, and its memory.

use std::collections::{BTreeMap, BTreeSet};

use engine::{BlockHash, StoredBlock};
use proptest::prelude::*;

use super::*;

/// What each worker holds, by tier.
type Naive = BTreeMap<u64, [BTreeSet<u64>; 3]>;

const TIERS: [Tier; 3] = [Tier::Device, Tier::Host, Tier::Disk];

fn stored(blocks: &[u64]) -> KvEvent {
    let blocks = blocks
        .iter()
        .map(|block| StoredBlock { sequence: SequenceHash(*block), block: BlockHash(*block) })
        .collect();
    KvEvent::Stored { parent: None, blocks, block_tokens: 16 }
}

fn removed(blocks: &[u64]) -> KvEvent {
    KvEvent::Removed { blocks: blocks.iter().copied().map(SequenceHash).collect() }
}

fn naive_overlap(held: &[BTreeSet<u64>; 3], prompt: &[u64]) -> Overlap {
    let mut overlap = Overlap::default();
    for block in prompt {
        let [device, host, disk] = held;
        match () {
            () if device.contains(block) => overlap.device += 1,
            () if host.contains(block) => overlap.host += 1,
            () if disk.contains(block) => overlap.disk += 1,
            () => break,
        }
    }
    overlap
}

#[derive(Clone, Debug)]
enum Step {
    Store(u64, usize, Vec<u64>),
    Remove(u64, usize, Vec<u64>),
    Replace(u64, Vec<u64>),
    Clear(u64),
    Forget(u64),
    Find(Vec<u64>),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let worker = || 0..70u64;
    let run = || (0..12u64, 0..12u64).prop_map(|(from, count)| (from..from + count).collect());
    let some = || prop::collection::vec(0..16u64, 0..6);
    let step = prop_oneof![
        6 => (worker(), 0..3usize, run()).prop_map(|(w, t, b)| Step::Store(w, t, b)),
        3 => (worker(), 0..3usize, some()).prop_map(|(w, t, b)| Step::Remove(w, t, b)),
        1 => (worker(), some()).prop_map(|(w, b)| Step::Replace(w, b)),
        1 => worker().prop_map(Step::Clear),
        1 => worker().prop_map(Step::Forget),
        6 => run().prop_map(Step::Find),
    ];
    prop::collection::vec(step, 1..80)
}

proptest! {
    #[test]
    fn the_index_equals_a_naive_one(steps in steps()) {
        let index = PrefixIndex::default();
        let mut naive = Naive::new();
        for step in steps {
            match step {
                Step::Store(worker, tier, blocks) => {
                    index.apply(index.claim(WorkerId(worker)), TIERS[tier], &stored(&blocks));
                    naive.entry(worker).or_default()[tier].extend(blocks);
                }
                Step::Remove(worker, tier, blocks) => {
                    index.apply(index.claim(WorkerId(worker)), TIERS[tier], &removed(&blocks));
                    let held = &mut naive.entry(worker).or_default()[tier];
                    held.retain(|block| !blocks.contains(block));
                }
                Step::Replace(worker, blocks) => {
                    let hashes: Vec<_> = blocks.iter().copied().map(SequenceHash).collect();
                    index.replace(index.claim(WorkerId(worker)), &hashes);
                    let device = blocks.into_iter().collect();
                    naive.insert(worker, [device, BTreeSet::new(), BTreeSet::new()]);
                }
                Step::Clear(worker) => {
                    index.apply(index.claim(WorkerId(worker)), Tier::Device, &KvEvent::Cleared);
                    naive.remove(&worker);
                }
                Step::Forget(worker) => {
                    index.forget(index.claim(WorkerId(worker)));
                    naive.remove(&worker);
                }
                Step::Find(prompt) => {
                    let hashes: Vec<_> = prompt.iter().copied().map(SequenceHash).collect();
                    let matches = index.find(&hashes);
                    for (worker, held) in &naive {
                        let expected = naive_overlap(held, &prompt);
                        prop_assert_eq!(matches.of(WorkerId(*worker)), expected);
                    }
                    prop_assert!(matches.iter().all(|(worker, _)| naive.contains_key(&worker.0)));
                }
            }
            let held: BTreeSet<u64> = naive.values().flatten().flatten().copied().collect();
            prop_assert_eq!(index.blocks(), held.len());
        }
        for worker in 0..70 {
            index.forget(index.claim(WorkerId(worker)));
        }
        prop_assert_eq!((index.blocks(), index.bytes()), (0, 0));
    }
}

#[test]
fn a_worker_and_the_memory_have_limits() {
    let index = PrefixIndex::new(IndexLimits { blocks_per_worker: 3, bytes: 1 << 20 });
    let claim = index.claim(WorkerId(1));
    index.apply(claim, Tier::Device, &stored(&[1, 2]));
    index.apply(claim, Tier::Device, &stored(&[3, 4, 5]));
    assert_eq!((index.blocks(), index.refused()), (3, 2));
    let index = PrefixIndex::new(IndexLimits { bytes: 10_000, ..IndexLimits::default() });
    let blocks: Vec<u64> = (0..1000).collect();
    for worker in 0..4 {
        index.apply(index.claim(WorkerId(worker)), Tier::Device, &stored(&blocks));
    }
    assert!(index.bytes() <= 10_000 + 1_000 && index.refused() > 0, "{}", index.bytes());
    assert!(index.find(&[SequenceHash(0)]).of(WorkerId(3)).device == 1);
}

#[test]
fn an_older_claim_has_no_effect() {
    let index = PrefixIndex::default();
    let worker = WorkerId(1);
    let old = index.claim(worker);
    index.apply(old, Tier::Device, &stored(&[1, 2]));
    let new = index.claim(worker);
    assert_eq!(index.blocks(), 2, "it is known until there is better");
    index.replace(new, &[SequenceHash(3)]);
    index.apply(old, Tier::Device, &KvEvent::Cleared);
    index.replace(old, &[]);
    index.forget(old);
    assert_eq!(index.find(&[SequenceHash(3)]).of(worker).device, 1);
    index.forget(new);
    assert_eq!(index.blocks(), 0);
    index.apply(new, Tier::Device, &stored(&[4]));
    assert_eq!(index.blocks(), 0, "it was forgotten");
}

#[test]
fn memory_is_given_back_after_ten_million_events() {
    let index = PrefixIndex::default();
    let workers: Vec<Claim> = (0..10).map(|worker| index.claim(WorkerId(worker))).collect();
    let capacity = |index: &PrefixIndex| index.read().table.capacity();
    index.apply(workers[0], Tier::Device, &stored(&[1]));
    let start = (index.bytes(), capacity(&index));
    let mut number = 2;
    for round in 0..100 {
        for claim in &workers {
            // 10,000 block events each: stored, and one in two removed again.
            let blocks: Vec<u64> = (number..number + 6_667).collect();
            number += if round % 2 == 0 { 6_667 } else { 0 };
            index.apply(*claim, Tier::Device, &stored(&blocks));
            index.apply(*claim, Tier::Device, &removed(&blocks[..3_333]));
        }
    }
    assert!(index.blocks() > 1_000_000);
    for claim in &workers {
        index.apply(*claim, Tier::Device, &KvEvent::Cleared);
    }
    index.apply(workers[0], Tier::Device, &stored(&[1]));
    assert_eq!(index.bytes(), start.0);
    assert!(capacity(&index) <= SHRUNK.max(start.1), "{} entries", capacity(&index));
}

/// The most entries that an emptied table keeps room for.
const SHRUNK: usize = 8192;
