//! One sequence's blocks, in the order of its tokens.

use engine::{BlockHash, Salt, SequenceHash, TokenId};

use super::pool::{BlockPool, Registered};
use crate::runner::BlockId;

/// A block that has to be copied before the next write: the whole of `from` to `to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockCopy {
    /// The block that others hold too.
    pub from: BlockId,
    /// The sequence's own one.
    pub to: BlockId,
}

/// The blocks of one sequence. It has to be [released](Table::release) to the pool that they are
/// of.
#[derive(Debug, Default)]
pub struct Table {
    blocks: Vec<BlockId>,
    /// The names of its prefixes, as far as they are known.
    names: Vec<SequenceHash>,
    /// How many of the first blocks can be found.
    registered: usize,
    /// None: its blocks are not to be found by others, nor theirs by it.
    salt: Option<Salt>,
}

impl Table {
    /// Makes the empty table of a sequence whose first prefixes have these names, of none or
    /// some of its full blocks. Without a salt it neither finds nor leaves anything.
    pub fn new(names: Vec<SequenceHash>, salt: Option<Salt>) -> Self {
        Self { names, salt, ..Self::default() }
    }

    /// Returns the blocks in order.
    pub fn blocks(&self) -> &[BlockId] {
        &self.blocks
    }

    /// Returns the known names of its prefixes.
    pub fn names(&self) -> &[SequenceHash] {
        &self.names
    }

    /// Returns the salt, if its blocks can be found.
    pub fn salt(&self) -> Option<Salt> {
        self.salt
    }

    /// Adds the block behind those that it has, if it can be found, and returns whether it was.
    /// All blocks that it has are full and can be found; `tokens` are those of the next block.
    pub fn extend(&mut self, pool: &mut BlockPool, tokens: &[TokenId]) -> bool {
        let place = self.blocks.len();
        let Some((salt, name)) = self.salt.zip(self.name(place, tokens)) else {
            return false;
        };
        if self.registered != place {
            return false;
        }
        let found = pool.find(name, self.blocks.last().copied(), tokens, salt);
        if let Some(block) = found {
            pool.retain(block);
            self.blocks.push(block);
            self.registered += 1;
        }
        found.is_some()
    }

    /// Returns the name of the prefix that ends with the block at `place`, whose tokens these
    /// are; the names before it are known.
    fn name(&mut self, place: usize, tokens: &[TokenId]) -> Option<SequenceHash> {
        if place == self.names.len() {
            let salt = self.salt?;
            let parent = self.names.last().copied();
            self.names.push(SequenceHash::new(parent, BlockHash::of(tokens, salt)));
        }
        self.names.get(place).copied()
    }

    /// Returns how many more blocks are needed to write tokens from `start` up to `end`.
    pub fn missing(&self, pool: &BlockPool, start: usize, end: usize) -> usize {
        let size = pool.block_tokens();
        let is_shared = self.blocks.get(start / size).is_some_and(|&block| pool.is_shared(block));
        end.div_ceil(size).saturating_sub(self.blocks.len()) + usize::from(is_shared)
    }

    /// Returns how many tokens from `start` on can be written with the blocks there are.
    pub fn room(&self, pool: &BlockPool, start: usize) -> usize {
        let own = self.blocks.len() + pool.available();
        let copied = self.missing(pool, start, start);
        (own.saturating_sub(copied) * pool.block_tokens()).saturating_sub(start)
    }

    /// Makes the places of the tokens from `start` up to `end` writable by this sequence alone.
    /// The blocks before `start` are full or partly this sequence's own. Returns the block to be
    /// copied first, if others hold the one that `start` is in.
    ///
    /// Errors: the blocks that were missing, if there are too few; nothing has changed then.
    pub fn grow(
        &mut self,
        pool: &mut BlockPool,
        start: usize,
        end: usize,
    ) -> Result<Option<BlockCopy>, usize> {
        let size = pool.block_tokens();
        let place = start / size;
        let mut copy = None;
        let missing = self.missing(pool, start, end);
        if missing == 0 {
            return Ok(None);
        }
        if missing > pool.available() {
            return Err(missing);
        }
        if let Some(&from) = self.blocks.get(place)
            && pool.is_shared(from)
            && let Some(to) = pool.allocate()
        {
            self.blocks[place] = to;
            pool.release(from);
            copy = Some(BlockCopy { from, to });
        }
        while self.blocks.len() < end.div_ceil(size)
            && let Some(block) = pool.allocate()
        {
            self.blocks.push(block);
        }
        Ok(copy)
    }

    /// Makes the blocks that the first `computed` of the sequence's tokens fill findable. Where
    /// an equal one is there already, that one is held from now on instead.
    pub fn commit(&mut self, pool: &mut BlockPool, tokens: &[TokenId], computed: usize) {
        let size = pool.block_tokens();
        while (self.registered + 1) * size <= computed {
            let Some(salt) = self.salt else {
                return;
            };
            let place = self.registered;
            let own = &tokens[place * size..][..size];
            let Some(name) = self.name(place, own) else {
                return;
            };
            let parent = place.checked_sub(1).map(|before| self.blocks[before]);
            match pool.register(self.blocks[place], name, parent, own, salt) {
                Registered::Kept => {}
                Registered::Twin(twin) if twin == self.blocks[place] => {}
                Registered::Twin(twin) => {
                    pool.retain(twin);
                    pool.release(self.blocks[place]);
                    self.blocks[place] = twin;
                }
                Registered::Collision => {
                    self.salt = None;
                    return;
                }
            }
            self.registered += 1;
        }
    }

    /// Returns a table with the blocks of the first `computed` tokens, which both hold from now
    /// on: whoever writes next copies the last one, if it is not full.
    pub fn fork(&self, pool: &mut BlockPool, computed: usize) -> Self {
        let blocks = &self.blocks[..computed.div_ceil(pool.block_tokens())];
        for &block in blocks {
            pool.retain(block);
        }
        Self {
            blocks: blocks.to_vec(),
            names: self.names.clone(),
            registered: self.registered,
            salt: self.salt,
        }
    }

    /// Lets go of all blocks, the last one first; the names stay.
    pub fn release(&mut self, pool: &mut BlockPool) {
        for block in self.blocks.drain(..).rev() {
            pool.release(block);
        }
        self.registered = 0;
    }
}
