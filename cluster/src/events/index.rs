//! Which prefixes each worker's KV cache holds, as far as its events told.
//!
//! It is a hint: a worker may have given up a block a moment ago.

use std::collections::{BTreeMap, HashSet};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use engine::{KvEvent, SequenceHash};

use crate::instance::InstanceId;

/// The bounds of an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The most prefixes of one worker; of more there is no knowledge.
    pub blocks_per_worker: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { blocks_per_worker: 4 << 20 }
    }
}

/// The prefixes of one model's workers.
#[derive(Debug, Default)]
pub struct Index {
    limits: Limits,
    workers: RwLock<Workers>,
}

#[derive(Debug, Default)]
struct Workers {
    known: BTreeMap<InstanceId, Known>,
    /// How many claims there were.
    claims: u64,
}

/// What is known of a worker.
#[derive(Debug, Default)]
struct Known {
    held: HashSet<SequenceHash>,
    /// The number of the claim that counts.
    claim: u64,
}

/// The right to say what a worker holds: that of who asked last. What others say counts for
/// nothing, so that a listener that ends late takes nothing away from the one that came after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    worker: InstanceId,
    number: u64,
}

impl Claim {
    /// Returns whose prefixes it is about.
    pub fn worker(&self) -> InstanceId {
        self.worker
    }
}

impl Workers {
    /// Returns what is known of a claim's worker; none: another claim counts.
    fn of(&mut self, claim: Claim) -> Option<&mut HashSet<SequenceHash>> {
        let known = self.known.get_mut(&claim.worker)?;
        (known.claim == claim.number).then_some(&mut known.held)
    }
}

impl Index {
    /// Makes the index of no workers.
    pub fn new(limits: Limits) -> Self {
        Self { limits, workers: RwLock::default() }
    }

    fn read(&self) -> RwLockReadGuard<'_, Workers> {
        self.workers.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Workers> {
        self.workers.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the caller, and nobody who asked before, say what a worker holds. What is known of it
    /// stays until then.
    pub fn claim(&self, worker: InstanceId) -> Claim {
        let mut workers = self.write();
        workers.claims += 1;
        let number = workers.claims;
        workers.known.entry(worker).or_default().claim = number;
        Claim { worker, number }
    }

    /// Takes what a worker holds in place of what was known of it.
    pub fn replace(&self, claim: Claim, blocks: &[SequenceHash]) {
        let most = self.limits.blocks_per_worker;
        let now = blocks.iter().copied().take(most).collect();
        if let Some(held) = self.write().of(claim) {
            *held = now;
        }
    }

    /// Takes what became of a worker's blocks.
    pub fn apply(&self, claim: Claim, event: &KvEvent) {
        let mut workers = self.write();
        let Some(held) = workers.of(claim) else { return };
        match event {
            KvEvent::Stored { blocks, .. } => {
                let room = self.limits.blocks_per_worker.saturating_sub(held.len());
                held.extend(blocks.iter().take(room).map(|block| block.sequence));
            }
            KvEvent::Removed { blocks } => {
                for block in blocks {
                    held.remove(block);
                }
            }
            KvEvent::Cleared => held.clear(),
        }
    }

    /// Forgets a worker, unless somebody else says by now what it holds.
    pub fn forget(&self, claim: Claim) {
        let mut workers = self.write();
        if workers.of(claim).is_some() {
            workers.known.remove(&claim.worker);
        }
    }

    /// Returns how many prefixes are known, of all workers together.
    pub fn blocks(&self) -> usize {
        self.read().known.values().map(|known| known.held.len()).sum()
    }

    /// Returns how many of a prompt's first blocks each worker holds; who holds none is left out.
    /// The prompt is [`prefix_hashes`](engine::prefix_hashes) of its tokens.
    pub fn longest_match(&self, prompt: &[SequenceHash]) -> Vec<(InstanceId, usize)> {
        let workers = self.read();
        let counted = workers.known.iter().map(|(worker, known)| {
            (*worker, prompt.iter().take_while(|block| known.held.contains(block)).count())
        });
        counted.filter(|(_, blocks)| *blocks > 0).collect()
    }

    /// Returns what a worker holds, in order.
    #[cfg(test)]
    pub(super) fn held(&self, worker: InstanceId) -> std::collections::BTreeSet<u64> {
        let workers = self.read();
        let known = workers.known.get(&worker).into_iter();
        known.flat_map(|known| &known.held).map(|block| block.0).collect()
    }
}

#[cfg(test)]
mod tests {
    use engine::{BlockHash, StoredBlock};

    use super::*;

    fn stored(numbers: &[u64]) -> KvEvent {
        let blocks = numbers
            .iter()
            .map(|&number| StoredBlock { sequence: SequenceHash(number), block: BlockHash(number) })
            .collect();
        KvEvent::Stored { parent: None, blocks, block_tokens: 16 }
    }

    #[test]
    fn the_longest_prefix_of_each_worker_is_found() {
        let index = Index::default();
        let [a, b, c] = [1, 2, 3].map(|worker| index.claim(InstanceId(worker)));
        let prompt = [1, 2, 3, 4].map(SequenceHash);
        index.apply(a, &stored(&[1, 2, 4]));
        index.apply(b, &stored(&[2, 3]));
        index.replace(c, &prompt);
        assert_eq!(index.longest_match(&prompt), [(a.worker(), 2), (c.worker(), 4)]);
        index.apply(c, &KvEvent::Removed { blocks: vec![SequenceHash(4), SequenceHash(3)] });
        index.apply(a, &KvEvent::Cleared);
        assert_eq!(index.longest_match(&prompt), [(c.worker(), 2)]);
        index.forget(c);
        assert!(index.longest_match(&prompt).is_empty() && index.blocks() == 2);
    }

    #[test]
    fn a_worker_has_a_bound() {
        let index = Index::new(Limits { blocks_per_worker: 3 });
        let claim = index.claim(InstanceId(1));
        index.apply(claim, &stored(&[1, 2]));
        index.apply(claim, &stored(&[3, 4, 5]));
        assert_eq!(index.held(claim.worker()), [1, 2, 3].into());
        index.replace(claim, &[9, 8, 7, 6].map(SequenceHash));
        assert_eq!(index.blocks(), 3);
    }

    #[test]
    fn who_listened_before_takes_nothing_away() {
        let index = Index::default();
        let worker = InstanceId(1);
        let old = index.claim(worker);
        index.apply(old, &stored(&[1, 2]));
        let new = index.claim(worker);
        assert_eq!(index.held(worker), [1, 2].into(), "it is known until there is better");
        index.replace(new, &[3].map(SequenceHash));
        index.apply(old, &KvEvent::Cleared);
        index.replace(old, &[]);
        index.forget(old);
        assert_eq!(index.held(worker), [3].into());
        index.forget(new);
        assert_eq!(index.blocks(), 0);
        index.apply(new, &stored(&[4]));
        assert_eq!(index.blocks(), 0, "it was forgotten");
    }
}
