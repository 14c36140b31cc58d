//! What a worker's KV cache holds, and the events that tell of it.

use std::collections::BTreeSet;

use engine::{BlockHash, KvEvent, KvEventReader, KvEvents, KvSnapshot, SequenceHash, StoredBlock};

/// The events that wait for a slow reader; a few more at once are too many.
const RING: usize = 8;

/// The prefixes that there are.
pub(super) const PREFIXES: u64 = 64;

/// A cache of few prefixes.
pub(super) struct Cache {
    events: KvEvents,
    /// What it holds.
    pub(super) truth: BTreeSet<u64>,
}

impl Default for Cache {
    fn default() -> Self {
        Self { events: KvEvents::new(RING), truth: BTreeSet::new() }
    }
}

impl Cache {
    /// Takes and gives up some prefixes, now and then more at once than the ring takes.
    pub(super) fn act(&mut self, random: &mut fastrand::Rng) {
        let most = if random.u8(..10) == 0 { 2 * RING } else { 3 };
        for _ in 0..random.usize(1..=most) {
            let event = self.change(random);
            self.events.publish(|| event);
        }
    }

    fn change(&mut self, random: &mut fastrand::Rng) -> KvEvent {
        match random.u8(..20) {
            0 => {
                self.truth.clear();
                KvEvent::Cleared
            }
            1..8 => {
                let blocks: Vec<u64> =
                    self.truth.iter().rev().take(random.usize(1..3)).copied().collect();
                self.truth.retain(|block| !blocks.contains(block));
                KvEvent::Removed { blocks: blocks.into_iter().map(SequenceHash).collect() }
            }
            _ => {
                let first = random.u64(..PREFIXES - 3);
                let numbers = first..first + random.u64(1..4);
                self.truth.extend(numbers.clone());
                let stored = |number| StoredBlock {
                    sequence: SequenceHash(number),
                    block: BlockHash(number),
                };
                let blocks = numbers.map(stored).collect();
                KvEvent::Stored { parent: None, blocks, block_tokens: 16 }
            }
        }
    }

    /// Loads the model anew: nothing is held, and events are numbered anew.
    pub(super) fn reload(&mut self) {
        *self = Self::default();
    }

    pub(super) fn snapshot(&self) -> (KvSnapshot, KvEventReader) {
        self.events.snapshot()
    }
}
