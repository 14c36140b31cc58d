//! The engine's names of blocks, and ours.

use std::collections::HashMap;

use engine::{BlockHash, KvEvent, Salt, SequenceHash, StoredBlock};

use super::batch::{Foreign, Stored, Told};

/// Most blocks that are known at once; an engine with more is not followed any further.
const MAX_BLOCKS: usize = 8 << 20;

/// Gives blocks the names that routers compute.
#[derive(Debug, Default)]
pub(super) struct Names {
    known: HashMap<Foreign, Known>,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    name: SequenceHash,
    salt: Salt,
}

impl Names {
    /// Translates an event; none: it says nothing that can be told.
    pub(super) fn translate(&mut self, told: Told) -> Option<KvEvent> {
        match told {
            Told::Stored(stored) => self.store(stored),
            Told::Removed(blocks) => {
                let names = blocks.iter().filter_map(|block| self.known.remove(block));
                let blocks: Vec<SequenceHash> = names.map(|known| known.name).collect();
                (!blocks.is_empty()).then_some(KvEvent::Removed { blocks })
            }
            Told::Cleared => Some(self.clear()),
        }
    }

    /// Forgets all blocks.
    pub(super) fn clear(&mut self) -> KvEvent {
        self.known.clear();
        KvEvent::Cleared
    }

    fn store(&mut self, stored: Stored) -> Option<KvEvent> {
        let Stored { blocks, parent, tokens, block_tokens, adapter, plain } = stored;
        let has_tokens =
            block_tokens > 0 && tokens.len() == blocks.len().checked_mul(block_tokens)?;
        if !has_tokens || self.known.len() + blocks.len() > MAX_BLOCKS {
            return None;
        }
        // Behind a block that is not known nothing can be named.
        let parent = match parent {
            None => None,
            Some(parent) => Some(*self.known.get(&parent)?),
        };
        let salt = match (adapter, parent) {
            (Some(adapter), _) => Salt::of(&adapter),
            (None, Some(parent)) => parent.salt,
            (None, None) => Salt::default(),
        };
        let parent = parent.map(|parent| parent.name);
        let (mut before, mut named) = (parent, Vec::with_capacity(blocks.len()));
        for (block, tokens) in blocks.into_iter().zip(tokens.chunks_exact(block_tokens)).take(plain)
        {
            let own = BlockHash::of(tokens, salt);
            let name = SequenceHash::new(before, own);
            self.known.insert(block, Known { name, salt });
            named.push(StoredBlock { sequence: name, block: own });
            before = Some(name);
        }
        let block_tokens = u32::try_from(block_tokens).ok()?;
        (!named.is_empty()).then_some(KvEvent::Stored { parent, blocks: named, block_tokens })
    }
}

#[cfg(test)]
mod tests {
    use engine::prefix_hashes;

    use super::*;

    fn name(number: u8) -> Foreign {
        [number].into()
    }

    fn stored(blocks: &[u8], parent: Option<u8>, tokens: std::ops::Range<u32>) -> Told {
        Told::Stored(Stored {
            blocks: blocks.iter().copied().map(name).collect(),
            parent: parent.map(name),
            tokens: tokens.collect(),
            block_tokens: 4,
            adapter: None,
            plain: blocks.len(),
        })
    }

    #[test]
    fn blocks_get_the_names_that_routers_compute() {
        let mut names = Names::default();
        let tokens: Vec<u32> = (0..12).collect();
        let ours: Vec<SequenceHash> = prefix_hashes(&tokens, 4, Salt::default()).collect();
        let Some(KvEvent::Stored { parent: None, blocks, block_tokens: 4 }) =
            names.translate(stored(&[1, 2], None, 0..8))
        else {
            panic!("not stored")
        };
        assert_eq!(blocks.iter().map(|block| block.sequence).collect::<Vec<_>>(), ours[..2]);
        let Some(KvEvent::Stored { parent, blocks, .. }) =
            names.translate(stored(&[3], Some(2), 8..12))
        else {
            panic!("not stored")
        };
        assert_eq!((parent, blocks[0].sequence), (Some(ours[1]), ours[2]));
        let removed = names.translate(Told::Removed(vec![name(3), name(9)]));
        assert_eq!(removed, Some(KvEvent::Removed { blocks: vec![ours[2]] }));
        assert_eq!(names.translate(Told::Removed(vec![name(3)])), None);
        assert_eq!(names.translate(Told::Cleared), Some(KvEvent::Cleared));
        assert_eq!(names.translate(stored(&[3], Some(2), 8..12)), None, "its parent is gone");
    }

    #[test]
    fn what_is_not_made_of_tokens_alone_is_left_out() {
        let mut names = Names::default();
        let mut picture = Stored {
            blocks: vec![name(1), name(2)],
            tokens: (0..8).collect(),
            block_tokens: 4,
            plain: 1,
            ..Stored::default()
        };
        let Some(KvEvent::Stored { blocks, .. }) = names.translate(Told::Stored(picture.clone()))
        else {
            panic!("not stored")
        };
        assert_eq!(blocks.len(), 1);
        picture.plain = 2;
        picture.adapter = Some("a".into());
        let Some(KvEvent::Stored { blocks: adapted, .. }) =
            names.translate(Told::Stored(picture.clone()))
        else {
            panic!("not stored")
        };
        assert_ne!(adapted[0], blocks[0]);
        picture.tokens.pop();
        assert_eq!(names.translate(Told::Stored(picture)), None);
    }
}
