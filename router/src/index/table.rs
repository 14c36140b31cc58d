//! The table behind an index: from a prefix to the set of its holders.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use engine::SequenceHash;

use super::holders::{EMPTY, Holders, SetId};
use super::{IndexLimits, Overlap, Tier};
use crate::WorkerId;

/// Names of prefixes are hashes already; one multiplication spreads those of foreign engines.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SpreadHasher(u64);

impl Hasher for SpreadHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0.rotate_left(5) ^ value).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}

/// A map whose keys are hashes or random numbers.
pub(crate) type HashedMap<K, V> = HashMap<K, V, BuildHasherDefault<SpreadHasher>>;

/// Bytes that an entry takes, with the room that a hash table leaves free.
const ENTRY_BYTES: usize = 32;

/// A table with fewer entries than its capacity divided by this gives memory back.
const SHRINK_FACTOR: usize = 8;

/// The smallest capacity that is worth giving back.
const SHRINK_MIN: usize = 4096;

/// How much of a prompt each worker holds.
#[derive(Clone, Debug, Default)]
pub struct Matches {
    of: HashedMap<WorkerId, Overlap>,
}

impl Matches {
    /// Returns how much a worker holds.
    pub fn of(&self, worker: WorkerId) -> Overlap {
        match self.of.is_empty() {
            true => Overlap::default(),
            false => self.of.get(&worker).copied().unwrap_or_default(),
        }
    }

    /// Returns the workers that hold something, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (WorkerId, Overlap)> + '_ {
        self.of.iter().map(|(worker, overlap)| (*worker, *overlap))
    }

    /// Returns whether no worker holds anything.
    pub fn is_empty(&self) -> bool {
        self.of.is_empty()
    }
}

/// A worker's place in the sets.
#[derive(Clone, Copy, Debug)]
struct Slot {
    worker: Option<WorkerId>,
    /// How many blocks it holds in any tier.
    blocks: usize,
}

/// Prefixes and their holders, without a lock.
#[derive(Debug, Default)]
pub(crate) struct Table {
    limits: IndexLimits,
    blocks: HashedMap<SequenceHash, SetId>,
    holders: Holders,
    slots: Vec<Slot>,
    by_worker: HashedMap<WorkerId, usize>,
    refused: u64,
}

impl Table {
    pub(crate) fn new(limits: IndexLimits) -> Self {
        Self { limits, ..Self::default() }
    }

    fn slot(&mut self, worker: WorkerId) -> usize {
        if let Some(slot) = self.by_worker.get(&worker) {
            return *slot;
        }
        let fresh = Slot { worker: Some(worker), blocks: 0 };
        let slot = match self.slots.iter().position(|slot| slot.worker.is_none()) {
            Some(slot) => {
                self.slots[slot] = fresh;
                slot
            }
            None => {
                self.slots.push(fresh);
                self.slots.len() - 1
            }
        };
        self.by_worker.insert(worker, slot);
        slot
    }

    /// Records blocks of a worker.
    pub(crate) fn store(
        &mut self,
        worker: WorkerId,
        tier: Tier,
        blocks: impl Iterator<Item = SequenceHash>,
    ) {
        let slot = self.slot(worker);
        let mut last = (EMPTY, EMPTY);
        for block in blocks {
            let old = self.blocks.get(&block).copied().unwrap_or(EMPTY);
            if last.1 == EMPTY || last.0 != old {
                last = (old, self.holders.changed(old, slot, tier, true));
            }
            let new = last.1;
            if new == old {
                continue;
            }
            if !self.holders.get(old).holds(slot) {
                let is_full = self.slots[slot].blocks >= self.limits.blocks_per_worker;
                if is_full || (old == EMPTY && self.bytes() >= self.limits.bytes) {
                    self.refused += 1;
                    continue;
                }
                self.slots[slot].blocks += 1;
            }
            self.holders.retain(new);
            self.holders.release(old);
            self.blocks.insert(block, new);
        }
        self.holders.collect();
    }

    /// Records that a worker holds blocks no longer in a tier.
    pub(crate) fn remove(
        &mut self,
        worker: WorkerId,
        tier: Tier,
        blocks: impl Iterator<Item = SequenceHash>,
    ) {
        let Some(&slot) = self.by_worker.get(&worker) else { return };
        let mut last = (EMPTY, EMPTY);
        for block in blocks {
            let Some(&old) = self.blocks.get(&block) else { continue };
            if last.0 != old {
                last = (old, self.holders.changed(old, slot, tier, false));
            }
            self.change(block, old, last.1, slot);
        }
        self.holders.collect();
        self.shrink();
    }

    /// Points an entry to a set with fewer holders.
    fn change(&mut self, block: SequenceHash, old: SetId, new: SetId, slot: usize) {
        if new == old {
            return;
        }
        if self.holders.get(old).holds(slot) && !self.holders.get(new).holds(slot) {
            self.slots[slot].blocks -= 1;
        }
        self.holders.retain(new);
        self.holders.release(old);
        match new {
            EMPTY => drop(self.blocks.remove(&block)),
            _ => drop(self.blocks.insert(block, new)),
        }
    }

    /// Forgets all blocks of a worker. Takes time in proportion to the whole table, unless the
    /// worker holds nothing.
    pub(crate) fn clear(&mut self, worker: WorkerId) {
        let Some(&slot) = self.by_worker.get(&worker) else { return };
        if std::mem::take(&mut self.slots[slot].blocks) == 0 {
            return;
        }
        let holders = &mut self.holders;
        let mut last = (EMPTY, EMPTY);
        self.blocks.retain(|_, id| {
            let old = *id;
            if last.0 != old {
                last = (old, holders.without(old, slot));
            }
            if last.1 != old {
                holders.retain(last.1);
                holders.release(old);
                *id = last.1;
            }
            *id != EMPTY
        });
        self.holders.collect();
        self.shrink();
    }

    /// Forgets a worker.
    pub(crate) fn forget(&mut self, worker: WorkerId) {
        self.clear(worker);
        if let Some(slot) = self.by_worker.remove(&worker) {
            self.slots[slot].worker = None;
        }
    }

    fn shrink(&mut self) {
        let capacity = self.blocks.capacity();
        if capacity > SHRINK_MIN && self.blocks.len() < capacity / SHRINK_FACTOR {
            self.blocks.shrink_to(self.blocks.len() * 2);
            self.holders.shrink();
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.blocks.len()
    }

    pub(crate) fn holdings(&self) -> usize {
        self.slots.iter().map(|slot| slot.blocks).sum()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.blocks.len() * ENTRY_BYTES + self.holders.bytes()
    }

    #[cfg(test)]
    pub(crate) fn capacity(&self) -> usize {
        self.blocks.capacity()
    }

    pub(crate) fn refused(&self) -> u64 {
        self.refused
    }

    /// Returns how much of a prompt each worker holds.
    pub(crate) fn find(&self, prompt: &[SequenceHash]) -> Matches {
        let set_of = |block: &SequenceHash| self.blocks.get(block).copied().unwrap_or(EMPTY);
        let Some(first) = prompt.first().map(set_of).filter(|set| *set != EMPTY) else {
            return Matches::default();
        };
        let mut walk = Walk::begin(self, first);
        for (position, block) in prompt.iter().enumerate().skip(1) {
            let set = set_of(block);
            if set != walk.set {
                walk.step(position, set);
                if walk.is_over() {
                    return walk.matches;
                }
            }
        }
        walk.step(prompt.len(), EMPTY);
        walk.matches
    }
}

/// A walk along a prompt's blocks. Only workers that held all blocks so far are on it.
struct Walk<'a> {
    table: &'a Table,
    /// The set of the last block.
    set: SetId,
    /// Those that are still on the walk, by their best tier of the last block.
    tiers: Vec<[u64; 3]>,
    /// Where the run of blocks in a slot's present tier began.
    since: Vec<u32>,
    found: Vec<Overlap>,
    matches: Matches,
}

impl<'a> Walk<'a> {
    /// Begins with the holders of a prompt's first block.
    fn begin(table: &'a Table, set: SetId) -> Self {
        let holders = table.holders.get(set);
        let tiers: Vec<_> = (0..holders.width()).map(|index| holders.best(index)).collect();
        let slots = tiers.len() * u64::BITS as usize;
        let (since, found) = (vec![0; slots], vec![Overlap::default(); slots]);
        Self { table, set, tiers, since, found, matches: Matches::default() }
    }

    fn is_over(&self) -> bool {
        self.tiers.iter().flatten().all(|word| *word == 0)
    }

    /// Goes on to a block with another set of holders.
    fn step(&mut self, position: usize, set: SetId) {
        let holders = self.table.holders.get(set);
        self.set = set;
        for index in 0..self.tiers.len() {
            let before = self.tiers[index];
            let all = before[0] | before[1] | before[2];
            if all == 0 {
                continue;
            }
            let now = holders.best(index).map(|word| word & all);
            let stays = now[0] | now[1] | now[2];
            for (tier, word) in before.into_iter().enumerate() {
                self.leave(index, tier, word & !now[tier], position as u32);
            }
            self.finish(index, all & !stays);
            self.tiers[index] = now;
        }
    }

    /// Counts the run of those that leave a tier.
    fn leave(&mut self, index: usize, tier: usize, mut leaving: u64, position: u32) {
        while leaving != 0 {
            let slot = index * u64::BITS as usize + leaving.trailing_zeros() as usize;
            leaving &= leaving - 1;
            let run = position - std::mem::replace(&mut self.since[slot], position);
            let found = &mut self.found[slot];
            match tier {
                0 => found.device += run,
                1 => found.host += run,
                _ => found.disk += run,
            }
        }
    }

    /// Notes what was found of those that leave the walk.
    fn finish(&mut self, index: usize, mut leaving: u64) {
        self.matches.of.reserve(leaving.count_ones() as usize);
        while leaving != 0 {
            let slot = index * u64::BITS as usize + leaving.trailing_zeros() as usize;
            leaving &= leaving - 1;
            if let Some(worker) = self.table.slots[slot].worker {
                self.matches.of.insert(worker, self.found[slot]);
            }
        }
    }
}
