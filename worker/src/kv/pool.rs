//! The pool of KV blocks: references, the prefix cache, and what is given up first.
//!
//! A block is free, held (somebody refers to it), or idle (nobody does, and it can be found by
//! the tokens that it holds). Free and idle blocks together are what can be allocated.
//!
//! Who holds a block that can be found holds all blocks in front of it, in the same chain, and
//! lets go of the last one first. So in the order of their release the end of a chain comes
//! before its beginning, no block outlives the one in front of it, and the number of a block's
//! parent is enough to compare chains whole: equal hashes alone never make two prefixes equal.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use engine::{BlockHash, KvEvent, KvEvents, Salt, SequenceHash, StoredBlock, TokenId};

use super::lru::Lru;
use crate::runner::BlockId;

/// How many blocks are in which state; the three are all blocks there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Nothing worth finding is in them.
    pub free: usize,
    /// Nobody refers to them, and they can be found.
    pub idle: usize,
    /// Somebody refers to them.
    pub held: usize,
}

/// What registering a full block came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Registered {
    /// It can be found now.
    Kept,
    /// This block has the same tokens behind the same prefix, and so the same content.
    Twin(BlockId),
    /// Another prefix has the same name; the block cannot be found, nor what comes behind it.
    Collision,
}

/// A block that was given up and whose content nobody has overwritten yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evicted {
    /// The block, which somebody holds by now.
    pub block: BlockId,
    /// The name that it had.
    pub name: SequenceHash,
    /// All tokens of the prefix that ends with it.
    pub tokens: Vec<TokenId>,
    /// Its salt.
    pub salt: Salt,
}

/// What is known of one block.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    references: u32,
    /// Set while it can be found.
    name: Option<Name>,
}

#[derive(Clone, Copy, Debug)]
struct Name {
    hash: SequenceHash,
    parent: Option<BlockId>,
    salt: Salt,
}

/// The blocks of one runner.
#[derive(Debug)]
pub struct BlockPool {
    slots: Vec<Slot>,
    /// Tokens of the blocks that can be found, `[blocks, block_tokens]`.
    tokens: Vec<TokenId>,
    block_tokens: usize,
    free: Vec<BlockId>,
    idle: Lru,
    names: HashMap<SequenceHash, BlockId, BuildHasherDefault<IdentityHasher>>,
    events: KvEvents,
    /// What was evicted, if somebody wants to know.
    evicted: Option<Vec<Evicted>>,
}

/// Takes a hash for what it is.
#[derive(Debug, Default)]
struct IdentityHasher(u64);

impl Hasher for IdentityHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(byte);
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

impl BlockPool {
    /// Makes a pool of `total` free blocks of `block_tokens` each, at least 1.
    pub fn new(total: usize, block_tokens: usize, events: KvEvents) -> Self {
        Self {
            slots: vec![Slot::default(); total],
            tokens: vec![0; total * block_tokens],
            block_tokens: block_tokens.max(1),
            free: (0..total as BlockId).rev().collect(),
            idle: Lru::new(total),
            names: HashMap::default(),
            events,
            evicted: None,
        }
    }

    /// Keeps what is evicted for [`take_evicted`](BlockPool::take_evicted) from now on.
    pub fn keep_evicted(&mut self) {
        self.evicted.get_or_insert_default();
    }

    /// Returns what was evicted since the last call; it has to be read before the next write.
    pub fn take_evicted(&mut self) -> Vec<Evicted> {
        self.evicted.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Returns how many blocks there are.
    pub fn total(&self) -> usize {
        self.slots.len()
    }

    /// Returns the tokens of a block.
    pub fn block_tokens(&self) -> usize {
        self.block_tokens
    }

    /// Returns how many blocks can be allocated.
    pub fn available(&self) -> usize {
        self.free.len() + self.idle.len()
    }

    /// Returns how many blocks are in which state.
    pub fn counts(&self) -> Counts {
        let (free, idle) = (self.free.len(), self.idle.len());
        Counts { free, idle, held: self.slots.len() - free - idle }
    }

    /// Allocates a block with one reference; none if all are held. An idle block is given up
    /// if none is free.
    pub fn allocate(&mut self) -> Option<BlockId> {
        let block = match self.free.pop() {
            Some(block) => block,
            None => {
                let block = self.idle.pop()?;
                self.forget(block);
                block
            }
        };
        self.slots[block as usize].references = 1;
        Some(block)
    }

    /// Adds a reference to a block that is held or idle.
    pub fn retain(&mut self, block: BlockId) {
        let slot = &mut self.slots[block as usize];
        debug_assert!(slot.references > 0 || slot.name.is_some(), "a free block was retained");
        if slot.references == 0 {
            self.idle.remove(block);
        }
        slot.references += 1;
    }

    /// Panics unless every block is in exactly one state, every parent can be found, and the
    /// references are as expected.
    #[cfg(test)]
    pub(super) fn check(&self, references: &[u32]) {
        let mut free = vec![false; self.total()];
        for &block in &self.free {
            assert!(!std::mem::replace(&mut free[block as usize], true), "{block} is free twice");
        }
        let mut idle = 0;
        for (block, slot) in self.slots.iter().enumerate() {
            assert_eq!(slot.references, references[block], "block {block}");
            let is_idle = slot.references == 0 && slot.name.is_some();
            assert_eq!(free[block], slot.references == 0 && !is_idle, "block {block}");
            idle += usize::from(is_idle);
            let Some(name) = slot.name else { continue };
            assert_eq!(self.names[&name.hash] as usize, block);
            if let Some(parent) = name.parent {
                let parent = &self.slots[parent as usize];
                assert!(parent.name.is_some() && parent.references >= slot.references);
            }
        }
        assert_eq!(idle, self.idle.len());
        assert_eq!(self.names.len(), self.slots.iter().filter(|slot| slot.name.is_some()).count());
    }

    /// Takes a reference back. The last one leaves the block idle if it can be found, else free.
    pub fn release(&mut self, block: BlockId) {
        let slot = &mut self.slots[block as usize];
        debug_assert!(slot.references > 0, "a block was released twice");
        slot.references -= 1;
        match (slot.references, slot.name) {
            (0, Some(_)) => self.idle.push(block),
            (0, None) => self.free.push(block),
            _ => {}
        }
    }

    /// Returns whether more than one refer to a block.
    pub fn is_shared(&self, block: BlockId) -> bool {
        self.slots[block as usize].references > 1
    }

    /// Returns the block that holds `tokens` behind the chain that ends with `parent`.
    pub fn find(
        &self,
        name: SequenceHash,
        parent: Option<BlockId>,
        tokens: &[TokenId],
        salt: Salt,
    ) -> Option<BlockId> {
        let block = *self.names.get(&name)?;
        self.is_same(block, parent, tokens, salt).then_some(block)
    }

    /// Returns how many of the first blocks of a sequence can be found, and how many of those
    /// nobody holds. The last token is never looked for: somebody has to compute it.
    pub fn prefix(&self, names: &[SequenceHash], tokens: &[TokenId], salt: Salt) -> (usize, usize) {
        let (mut parent, mut idle, mut found) = (None, 0, 0);
        let blocks = tokens[..tokens.len().saturating_sub(1)].chunks_exact(self.block_tokens);
        for (&name, tokens) in names.iter().zip(blocks) {
            let Some(block) = self.find(name, parent, tokens, salt) else {
                break;
            };
            parent = Some(block);
            found += 1;
            idle += usize::from(self.slots[block as usize].references == 0);
        }
        (found, idle)
    }

    /// Returns the first blocks of a sequence that can be found, in order.
    pub fn chain(&self, names: &[SequenceHash], tokens: &[TokenId], salt: Salt) -> Vec<BlockId> {
        let mut chain = Vec::new();
        for (&name, tokens) in names.iter().zip(tokens.chunks_exact(self.block_tokens)) {
            match self.find(name, chain.last().copied(), tokens, salt) {
                Some(block) => chain.push(block),
                None => break,
            }
        }
        chain
    }

    fn is_same(
        &self,
        block: BlockId,
        parent: Option<BlockId>,
        tokens: &[TokenId],
        salt: Salt,
    ) -> bool {
        let place = block as usize * self.block_tokens;
        self.slots[block as usize].name.is_some_and(|n| n.parent == parent && n.salt == salt)
            && self.tokens[place..place + self.block_tokens] == *tokens
    }

    /// Makes a full block findable by its tokens behind the chain that ends with `parent`, which
    /// can be found itself and which the caller holds.
    pub fn register(
        &mut self,
        block: BlockId,
        name: SequenceHash,
        parent: Option<BlockId>,
        tokens: &[TokenId],
        salt: Salt,
    ) -> Registered {
        if let Some(&other) = self.names.get(&name) {
            return match self.is_same(other, parent, tokens, salt) {
                true => Registered::Twin(other),
                false => Registered::Collision,
            };
        }
        self.names.insert(name, block);
        self.slots[block as usize].name = Some(Name { hash: name, parent, salt });
        let place = block as usize * self.block_tokens;
        self.tokens[place..place + self.block_tokens].copy_from_slice(tokens);
        let parent = self.name(parent);
        let block_tokens = self.block_tokens as u32;
        self.events.publish(|| {
            let stored = StoredBlock { sequence: name, block: BlockHash::of(tokens, salt) };
            KvEvent::Stored { parent, blocks: vec![stored], block_tokens }
        });
        Registered::Kept
    }

    /// Gives up all idle blocks.
    pub fn clear(&mut self) {
        while let Some(block) = self.idle.pop() {
            self.forget(block);
            self.free.push(block);
        }
        if let Some(evicted) = &mut self.evicted {
            evicted.clear();
        }
        if self.names.is_empty() {
            self.events.publish(|| KvEvent::Cleared);
        }
    }

    fn name(&self, block: Option<BlockId>) -> Option<SequenceHash> {
        Some(self.slots[block? as usize].name?.hash)
    }

    /// Makes a block unfindable.
    fn forget(&mut self, block: BlockId) {
        let Some(Name { hash, parent, salt }) = self.slots[block as usize].name.take() else {
            return;
        };
        self.names.remove(&hash);
        self.events.publish(|| KvEvent::Removed { blocks: vec![hash] });
        if let Some(mut evicted) = self.evicted.take() {
            let tokens = self.prefix_tokens(block, parent);
            evicted.push(Evicted { block, name: hash, tokens, salt });
            self.evicted = Some(evicted);
        }
    }

    /// Returns all tokens up to the end of a block; what is in front of it can still be found.
    fn prefix_tokens(&self, block: BlockId, parent: Option<BlockId>) -> Vec<TokenId> {
        let above = |block: &BlockId| self.slots[*block as usize].name.and_then(|name| name.parent);
        let mut chain: Vec<BlockId> = std::iter::successors(parent, above).collect();
        chain.reverse();
        chain.push(block);
        let place = |block: BlockId| block as usize * self.block_tokens;
        chain
            .iter()
            .flat_map(|&block| &self.tokens[place(block)..][..self.block_tokens])
            .copied()
            .collect()
    }
}
