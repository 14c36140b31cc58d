//! The order in which unreferenced blocks are given up: a list through an array, the oldest first.

use crate::runner::BlockId;

/// No block.
const NONE: BlockId = BlockId::MAX;

/// A list of some of the blocks; all operations take constant time.
#[derive(Debug)]
pub(super) struct Lru {
    links: Vec<Link>,
    oldest: BlockId,
    newest: BlockId,
    len: usize,
}

#[derive(Clone, Copy, Debug)]
struct Link {
    older: BlockId,
    newer: BlockId,
}

impl Lru {
    /// Makes an empty list for blocks below `total`.
    pub(super) fn new(total: usize) -> Self {
        let links = vec![Link { older: NONE, newer: NONE }; total];
        Self { links, oldest: NONE, newest: NONE, len: 0 }
    }

    /// Returns how many blocks are in the list.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Adds a block that is not in the list as the newest.
    pub(super) fn push(&mut self, block: BlockId) {
        self.links[block as usize] = Link { older: self.newest, newer: NONE };
        match self.newest {
            NONE => self.oldest = block,
            newest => self.links[newest as usize].newer = block,
        }
        self.newest = block;
        self.len += 1;
    }

    /// Takes a block out that is in the list.
    pub(super) fn remove(&mut self, block: BlockId) {
        let Link { older, newer } = self.links[block as usize];
        match older {
            NONE => self.oldest = newer,
            older => self.links[older as usize].newer = newer,
        }
        match newer {
            NONE => self.newest = older,
            newer => self.links[newer as usize].older = older,
        }
        self.len -= 1;
    }

    /// Takes the oldest block out.
    pub(super) fn pop(&mut self) -> Option<BlockId> {
        let oldest = Some(self.oldest).filter(|&oldest| oldest != NONE)?;
        self.remove(oldest);
        Some(oldest)
    }
}
