//! Where blocks go that the device has no room for: the host's memory, and from there the disk.
//!
//! A tier gives back what it was given or nothing; whoever asks compares the tokens, so that a
//! wrong block is never restored.

mod disk;
mod host;

use std::fmt::Debug;
use std::time::Duration;

use engine::{Salt, SequenceHash, TokenId};

pub use disk::DiskTier;
pub use host::HostTier;

/// A block outside of the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The name of the prefix that ends with it.
    pub name: SequenceHash,
    /// Its salt.
    pub salt: Salt,
    /// All tokens of that prefix: names alone are easily made to meet.
    pub tokens: Vec<TokenId>,
    /// Its keys and values, as the runner gave them.
    pub bytes: Vec<u8>,
}

impl Kept {
    /// Returns the bytes that it takes, without what the tier itself needs.
    pub fn size_bytes(&self) -> usize {
        self.bytes.len() + size_of_val(&self.tokens[..]) + size_of::<Self>()
    }
}

/// What a tier says to a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// The block.
    Here(Kept),
    /// It is being fetched: ask again.
    Coming,
    /// It is not there, or not any more.
    Absent,
}

/// What a tier is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The host's memory.
    Host,
    /// Files.
    Disk,
}

/// One place for blocks, of a bounded size: the least recently used go first.
pub trait Tier: Debug + Send {
    /// Keeps a block if it can, and returns the blocks that had to go for it. Never waits.
    fn put(&mut self, block: Kept) -> Vec<Kept>;

    /// Begins to fetch a block, if it is not at hand; returns whether it is there. Never waits.
    fn fetch(&mut self, name: SequenceHash) -> bool;

    /// Gives a block back, or begins to fetch it. Never waits.
    fn take(&mut self, name: SequenceHash) -> Found;

    /// Waits until something that is being fetched may have come, not longer than `most`.
    fn wait(&mut self, most: Duration);

    /// Returns what it is made of.
    fn kind(&self) -> Kind;

    /// Returns the bytes that its blocks take.
    fn used_bytes(&self) -> usize;
}

/// Tiers, the fastest first: what one gives up goes to the next.
#[derive(Debug, Default)]
pub struct Tiers {
    levels: Vec<Box<dyn Tier>>,
    /// The step that blocks were last given back in, and how many.
    given: (u64, usize),
}

impl Tiers {
    /// Puts tiers below each other.
    pub fn new(levels: Vec<Box<dyn Tier>>) -> Self {
        Self { levels, given: (0, 0) }
    }

    /// Returns whether there is none.
    pub fn is_empty(&self) -> bool {
        self.levels.is_empty()
    }

    /// Returns whether one more block may be given back in a step that takes at most `most`.
    pub fn may_give(&mut self, step: u64, most: usize) -> bool {
        if self.given.0 != step {
            self.given = (step, 0);
        }
        self.given.1 < most.max(1)
    }

    /// Notes that a block was given back.
    pub fn gave(&mut self) {
        self.given.1 += 1;
    }

    /// Keeps a block somewhere, if there is room.
    pub fn put(&mut self, block: Kept) {
        let mut blocks = vec![block];
        for level in &mut self.levels {
            let given = blocks.into_iter();
            blocks = given.flat_map(|block| level.put(block)).collect();
        }
    }

    /// Asks the tiers in order; returns what they say and which one said it.
    pub fn take(&mut self, name: SequenceHash) -> (Kind, Found) {
        for level in &mut self.levels {
            match level.take(name) {
                Found::Absent => {}
                found => return (level.kind(), found),
            }
        }
        (Kind::Host, Found::Absent)
    }

    /// Begins to fetch blocks, up to the first one that is nowhere.
    pub fn fetch(&mut self, names: &[SequenceHash]) {
        let _ = names.iter().all(|&name| self.has(name));
    }

    /// Returns whether a block is anywhere, and begins to fetch it if that takes time.
    pub fn has(&mut self, name: SequenceHash) -> bool {
        self.levels.iter_mut().any(|level| level.fetch(name))
    }

    /// Waits until something that is being fetched may have come, not longer than `most`. Nothing
    /// else was to be done, so as many blocks as in a step may be given back again.
    pub fn wait(&mut self, most: Duration) {
        self.given.1 = 0;
        if let Some(slowest) = self.levels.last_mut() {
            slowest.wait(most);
        }
    }
}

#[cfg(test)]
mod tests;
