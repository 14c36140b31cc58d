//! An index that assumes what workers hold from the router's own decisions.
//!
//! Some engines publish no KV events. Their workers have just computed the prompts that were routed
//! to them, so those prompts count as cached for a fixed time after each use.

use std::collections::VecDeque;
use std::time::Duration;

use engine::SequenceHash;

use crate::index::{HashedMap, Matches, Table, Tier};
use crate::{IndexLimits, WorkerId};

/// Prompts that were routed to workers and are assumed to be cached. Time is the time since any
/// moment that the caller chooses, and never goes back.
///
/// ```
/// use std::time::Duration;
/// use engine::SequenceHash;
/// use router::{IndexLimits, PredictedIndex, WorkerId};
/// let ttl = Duration::from_secs(120);
/// let mut index = PredictedIndex::new(ttl, IndexLimits::default());
/// let (prompt, start) = ([11, 12].map(SequenceHash), Duration::ZERO);
/// index.routed(WorkerId(1), &prompt, start);
/// assert_eq!(index.find(&prompt, start + ttl / 2).of(WorkerId(1)).device, 2);
/// assert!(index.find(&prompt, start + ttl).is_empty());
/// ```
#[derive(Debug)]
pub struct PredictedIndex {
    ttl: Duration,
    /// The most blocks that uses refer to.
    most: usize,
    table: Table,
    /// How many uses there are of a block on a worker.
    uses: HashedMap<(WorkerId, SequenceHash), u32>,
    /// The oldest use first.
    queue: VecDeque<Use>,
    queued: usize,
}

/// A prompt that was routed.
#[derive(Debug)]
struct Use {
    expires: Duration,
    worker: WorkerId,
    blocks: Box<[SequenceHash]>,
}

/// Bytes that a block takes in the table, in the counts and in the queue.
const BLOCK_BYTES: usize = 128;

impl PredictedIndex {
    /// Makes an index whose entries live for `ttl` after their last use.
    pub fn new(ttl: Duration, limits: IndexLimits) -> Self {
        Self {
            ttl,
            most: limits.bytes / BLOCK_BYTES,
            table: Table::new(limits),
            uses: HashedMap::default(),
            queue: VecDeque::new(),
            queued: 0,
        }
    }

    /// Records that a prompt was routed to a worker. When the memory is full, the oldest prompts
    /// are forgotten before their time.
    pub fn routed(&mut self, worker: WorkerId, prompt: &[SequenceHash], now: Duration) {
        self.expire(now);
        let prompt = &prompt[..prompt.len().min(self.most)];
        while self.queued + prompt.len() > self.most {
            self.forget_oldest();
        }
        for block in prompt {
            *self.uses.entry((worker, *block)).or_default() += 1;
        }
        self.table.store(worker, Tier::Device, prompt.iter().copied());
        self.queued += prompt.len();
        self.queue.push_back(Use { expires: now + self.ttl, worker, blocks: prompt.into() });
    }

    /// Returns how much of a prompt each worker is assumed to hold.
    pub fn find(&mut self, prompt: &[SequenceHash], now: Duration) -> Matches {
        self.expire(now);
        self.table.find(prompt)
    }

    /// Forgets a worker.
    pub fn forget(&mut self, worker: WorkerId) {
        self.table.forget(worker);
        self.uses.retain(|(of, _), _| *of != worker);
        self.queue.retain(|one| one.worker != worker);
        self.queued = self.queue.iter().map(|one| one.blocks.len()).sum();
    }

    /// Returns how many blocks are recorded; one that several workers hold counts once.
    pub fn blocks(&self) -> usize {
        self.table.len()
    }

    fn expire(&mut self, now: Duration) {
        while self.queue.front().is_some_and(|oldest| oldest.expires <= now) {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        let Some(Use { worker, blocks, .. }) = self.queue.pop_front() else { return };
        self.queued -= blocks.len();
        let uses = &mut self.uses;
        let unused = blocks.iter().copied().filter(|block| {
            let Some(count) = uses.get_mut(&(worker, *block)) else { return false };
            *count -= 1;
            let is_unused = *count == 0;
            if is_unused {
                uses.remove(&(worker, *block));
            }
            is_unused
        });
        self.table.remove(worker, Tier::Device, unused);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_use_prolongs_what_is_assumed() {
        let mut index = PredictedIndex::new(10 * SECOND, IndexLimits::default());
        let prompt = [1, 2, 3].map(SequenceHash);
        index.routed(WorkerId(1), &prompt, Duration::ZERO);
        index.routed(WorkerId(1), &prompt[..2], 5 * SECOND);
        let mut held = |seconds: u32| index.find(&prompt, seconds * SECOND).of(WorkerId(1)).device;
        assert_eq!([9, 10, 14, 15].map(&mut held), [3, 2, 2, 0]);
        assert!(index.blocks() == 0 && index.uses.is_empty() && index.queue.is_empty());
    }

    #[test]
    fn memory_is_bounded_and_the_oldest_goes_first() {
        let limits = IndexLimits { bytes: 4 * BLOCK_BYTES, ..IndexLimits::default() };
        let mut index = PredictedIndex::new(SECOND, limits);
        let long: Vec<_> = (0..10).map(SequenceHash).collect();
        index.routed(WorkerId(1), &long, Duration::ZERO);
        assert_eq!(index.blocks(), 4);
        index.routed(WorkerId(1), &[SequenceHash(77)], Duration::ZERO);
        assert_eq!(index.blocks(), 1);
        index.forget(WorkerId(1));
        assert_eq!((index.blocks(), index.queued), (0, 0));
    }
}
