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
    workers: RwLock<BTreeMap<InstanceId, HashSet<SequenceHash>>>,
}

impl Index {
    /// Makes the index of no workers.
    pub fn new(limits: Limits) -> Self {
        Self { limits, workers: RwLock::default() }
    }

    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<InstanceId, HashSet<SequenceHash>>> {
        self.workers.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<InstanceId, HashSet<SequenceHash>>> {
        self.workers.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what a worker holds in place of what was known of it.
    pub fn replace(&self, worker: InstanceId, blocks: &[SequenceHash]) {
        let most = self.limits.blocks_per_worker;
        let held = blocks.iter().copied().take(most).collect();
        self.write().insert(worker, held);
    }

    /// Takes what became of a worker's blocks.
    pub fn apply(&self, worker: InstanceId, event: &KvEvent) {
        let mut workers = self.write();
        let held = workers.entry(worker).or_default();
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

    /// Forgets a worker.
    pub fn forget(&self, worker: InstanceId) {
        self.write().remove(&worker);
    }

    /// Returns how many prefixes are known, of all workers together.
    pub fn blocks(&self) -> usize {
        self.read().values().map(HashSet::len).sum()
    }

    /// Returns how many of a prompt's first blocks each worker holds; who holds none is left out.
    /// The prompt is [`prefix_hashes`](engine::prefix_hashes) of its tokens.
    pub fn longest_match(&self, prompt: &[SequenceHash]) -> Vec<(InstanceId, usize)> {
        let workers = self.read();
        let counted = workers.iter().map(|(worker, held)| {
            (*worker, prompt.iter().take_while(|block| held.contains(block)).count())
        });
        counted.filter(|(_, blocks)| *blocks > 0).collect()
    }

    /// Returns what a worker holds, in order.
    #[cfg(test)]
    pub(super) fn held(&self, worker: InstanceId) -> std::collections::BTreeSet<u64> {
        self.read().get(&worker).into_iter().flatten().map(|block| block.0).collect()
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
        let [a, b, c] = [1, 2, 3].map(InstanceId);
        let prompt = [1, 2, 3, 4].map(SequenceHash);
        index.apply(a, &stored(&[1, 2, 4]));
        index.apply(b, &stored(&[2, 3]));
        index.replace(c, &prompt);
        assert_eq!(index.longest_match(&prompt), [(a, 2), (c, 4)]);
        index.apply(c, &KvEvent::Removed { blocks: vec![SequenceHash(4), SequenceHash(3)] });
        index.apply(a, &KvEvent::Cleared);
        assert_eq!(index.longest_match(&prompt), [(c, 2)]);
        index.forget(c);
        assert!(index.longest_match(&prompt).is_empty() && index.blocks() == 2);
    }

    #[test]
    fn a_worker_has_a_bound() {
        let index = Index::new(Limits { blocks_per_worker: 3 });
        let worker = InstanceId(1);
        index.apply(worker, &stored(&[1, 2]));
        index.apply(worker, &stored(&[3, 4, 5]));
        assert_eq!(index.held(worker), [1, 2, 3].into());
        index.replace(worker, &[9, 8, 7, 6].map(SequenceHash));
        assert_eq!(index.blocks(), 3);
    }
}
