//! Which worker holds which prefix, as the workers' KV events told.
//!
//! A prefix is named by the chained hash of its last block ([`SequenceHash`]), so a flat table of
//! hashes has the same content as a radix tree of blocks: walking a prompt's hashes walks one path
//! of that tree. Each entry points to an interned set of workers. Neighbouring blocks nearly always
//! share their set, so a lookup only does work where the set changes.
//!
//! The index is a hint: a worker may have evicted a block a moment ago.

mod holders;
mod table;

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use engine::{KvEvent, SequenceHash};

use crate::{Overlap, WorkerId};
pub use table::Matches;
pub(crate) use table::{HashedMap, Table};

/// Where a worker keeps a block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Tier {
    /// The memory of the device that computes.
    #[default]
    Device,
    /// The host's memory.
    Host,
    /// A file.
    Disk,
}

/// The bounds of an index. What would exceed them is not recorded, which makes routing less sharp
/// and nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexLimits {
    /// The most blocks that are recorded of one worker.
    pub blocks_per_worker: usize,
    /// The most memory, in bytes.
    pub bytes: usize,
}

impl Default for IndexLimits {
    fn default() -> Self {
        Self { blocks_per_worker: 4 << 20, bytes: 1 << 30 }
    }
}

/// The right to say what a worker holds. The newest claim of a worker counts and the others have
/// no effect, so a listener that ends late takes nothing away from its successor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    worker: WorkerId,
    number: u64,
}

impl Claim {
    /// Returns whose blocks it is about.
    pub fn worker(&self) -> WorkerId {
        self.worker
    }
}

/// The prefixes that the workers of one model hold. It is shared by threads: lookups run beside
/// one another, and an update excludes them for the time that its event takes.
///
/// ```
/// use engine::SequenceHash;
/// use router::{IndexLimits, PrefixIndex, WorkerId};
/// let index = PrefixIndex::new(IndexLimits::default());
/// let claim = index.claim(WorkerId(1));
/// index.replace(claim, &[SequenceHash(11), SequenceHash(12)]);
/// let matches = index.find(&[11, 12, 13].map(SequenceHash));
/// assert_eq!(matches.of(WorkerId(1)).device, 2);
/// assert_eq!(matches.of(WorkerId(2)).device, 0);
/// ```
#[derive(Debug, Default)]
pub struct PrefixIndex {
    state: RwLock<State>,
}

#[derive(Debug, Default)]
struct State {
    table: Table,
    claims: HashMap<WorkerId, u64>,
    /// How many claims there were.
    last_claim: u64,
}

impl State {
    fn counts(&self, claim: Claim) -> bool {
        self.claims.get(&claim.worker) == Some(&claim.number)
    }
}

impl PrefixIndex {
    /// Makes an index of no workers.
    pub fn new(limits: IndexLimits) -> Self {
        let state = State { table: Table::new(limits), ..State::default() };
        Self { state: RwLock::new(state) }
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the caller, and nobody who claimed it before, say what a worker holds. What is known of
    /// the worker stays until then.
    pub fn claim(&self, worker: WorkerId) -> Claim {
        let mut state = self.write();
        state.last_claim += 1;
        let number = state.last_claim;
        state.claims.insert(worker, number);
        Claim { worker, number }
    }

    /// Records these blocks of the device's memory in place of all that is known of a worker.
    pub fn replace(&self, claim: Claim, blocks: &[SequenceHash]) {
        let mut state = self.write();
        if state.counts(claim) {
            state.table.clear(claim.worker);
            state.table.store(claim.worker, Tier::Device, blocks.iter().copied());
        }
    }

    /// Records what became of a worker's blocks in one tier.
    pub fn apply(&self, claim: Claim, tier: Tier, event: &KvEvent) {
        let mut state = self.write();
        if !state.counts(claim) {
            return;
        }
        match event {
            KvEvent::Stored { blocks, .. } => {
                let blocks = blocks.iter().map(|block| block.sequence);
                state.table.store(claim.worker, tier, blocks);
            }
            KvEvent::Removed { blocks } => {
                state.table.remove(claim.worker, tier, blocks.iter().copied());
            }
            KvEvent::Cleared => state.table.clear(claim.worker),
        }
    }

    /// Forgets a worker, unless another claim counts.
    pub fn forget(&self, claim: Claim) {
        let mut state = self.write();
        if state.counts(claim) {
            state.claims.remove(&claim.worker);
            state.table.forget(claim.worker);
        }
    }

    /// Returns how much of a prompt each worker holds. The prompt is
    /// [`prefix_hashes`](engine::prefix_hashes) of its tokens.
    pub fn find(&self, prompt: &[SequenceHash]) -> Matches {
        self.read().table.find(prompt)
    }

    /// Returns how many blocks are recorded; one that several workers hold counts once.
    pub fn blocks(&self) -> usize {
        self.read().table.len()
    }

    /// Returns how many blocks are recorded, counted for each worker that holds one.
    pub fn holdings(&self) -> usize {
        self.read().table.holdings()
    }

    /// Returns about how many bytes the index takes.
    pub fn bytes(&self) -> usize {
        self.read().table.bytes()
    }

    /// Returns how many blocks were not recorded because of the limits.
    pub fn refused(&self) -> u64 {
        self.read().table.refused()
    }
}

#[cfg(test)]
mod tests;
