//! The tier in the host's memory.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use engine::SequenceHash;

use super::{Found, Kept, Kind, Tier};

/// Blocks in memory.
#[derive(Debug)]
pub struct HostTier {
    /// The blocks, with when each came.
    blocks: HashMap<SequenceHash, (u64, Kept)>,
    ages: BTreeMap<u64, SequenceHash>,
    clock: u64,
    used_bytes: usize,
    most_bytes: usize,
}

impl HostTier {
    /// Makes an empty tier for so many bytes.
    pub fn new(most_bytes: usize) -> Self {
        let (blocks, ages) = Default::default();
        Self { blocks, ages, clock: 0, used_bytes: 0, most_bytes }
    }

    fn remove(&mut self, name: SequenceHash) -> Option<Kept> {
        let (age, block) = self.blocks.remove(&name)?;
        self.ages.remove(&age);
        self.used_bytes -= block.size_bytes();
        Some(block)
    }
}

impl Tier for HostTier {
    fn put(&mut self, block: Kept) -> Vec<Kept> {
        let size = block.size_bytes();
        if size > self.most_bytes {
            return vec![block];
        }
        // The newer one counts: the same, unless two prefixes have the same name.
        self.remove(block.name);
        let mut given_up = Vec::new();
        while self.used_bytes + size > self.most_bytes {
            let oldest = self.ages.first_key_value().map(|(_, &name)| name);
            given_up.extend(oldest.and_then(|name| self.remove(name)));
        }
        self.clock += 1;
        self.used_bytes += size;
        self.ages.insert(self.clock, block.name);
        self.blocks.insert(block.name, (self.clock, block));
        given_up
    }

    fn fetch(&mut self, name: SequenceHash) -> bool {
        self.blocks.contains_key(&name)
    }

    /// The block goes back to the device and is not kept twice.
    fn take(&mut self, name: SequenceHash) -> Found {
        self.remove(name).map_or(Found::Absent, Found::Here)
    }

    fn wait(&mut self, _: Duration) {}

    fn kind(&self) -> Kind {
        Kind::Host
    }

    fn used_bytes(&self) -> usize {
        self.used_bytes
    }
}
