//! The pool of KV blocks: a sequence takes what it may need and gives all of it back.

use crate::runner::BlockId;

/// The free blocks. Every block is either here or with one sequence.
#[derive(Debug)]
pub struct BlockPool {
    free: Vec<BlockId>,
    total: usize,
}

impl BlockPool {
    /// Makes a pool of `total` free blocks.
    pub fn new(total: usize) -> Self {
        Self { free: (0..total as BlockId).rev().collect(), total }
    }

    /// Takes blocks out of the pool; none if there are too few.
    pub fn take(&mut self, count: usize) -> Option<Vec<BlockId>> {
        let rest = self.free.len().checked_sub(count)?;
        Some(self.free.split_off(rest))
    }

    /// Puts back what [`take`](BlockPool::take) gave.
    pub fn give_back(&mut self, blocks: Vec<BlockId>) {
        self.free.extend(blocks);
        debug_assert!(self.free.len() <= self.total, "a block was given back twice");
    }

    /// Returns how many blocks are free.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Returns how many blocks there are.
    pub fn total(&self) -> usize {
        self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_block_is_lost_or_given_twice() {
        let mut pool = BlockPool::new(50);
        let mut random = fastrand::Rng::with_seed(1);
        let mut held: Vec<Vec<BlockId>> = Vec::new();
        for _ in 0..20_000 {
            if random.bool() && !held.is_empty() {
                let index = random.usize(..held.len());
                pool.give_back(held.swap_remove(index));
            } else {
                let wanted = random.usize(..12);
                let free = pool.free();
                match pool.take(wanted) {
                    Some(blocks) => held.push(blocks),
                    None => assert!(wanted > free),
                }
            }
            let out: BTreeSet<BlockId> = held.iter().flatten().copied().collect();
            assert_eq!(out.len() + pool.free(), pool.total());
        }
    }
}
