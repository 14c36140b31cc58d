//! Load and KV events as messages.

use engine::{BlockHash, KvEvent, Result, SequenceHash, StoredBlock, WorkerLoad};
use proto::worker as wire;
use wire::kv_event::Event;

use super::equal_lengths;

/// Writes a load.
pub(crate) fn load_to(load: WorkerLoad) -> wire::Load {
    wire::Load {
        waiting_requests: load.waiting_requests,
        running_sequences: load.running_sequences,
        used_blocks: load.used_blocks,
        cached_blocks: load.cached_blocks,
        total_blocks: load.total_blocks,
        block_tokens: load.block_tokens,
    }
}

/// Reads a load.
pub(crate) fn load_of(wire: wire::Load) -> WorkerLoad {
    WorkerLoad {
        waiting_requests: wire.waiting_requests,
        running_sequences: wire.running_sequences,
        used_blocks: wire.used_blocks,
        cached_blocks: wire.cached_blocks,
        total_blocks: wire.total_blocks,
        block_tokens: wire.block_tokens,
    }
}

/// Writes a KV event.
pub(crate) fn event_to(event: KvEvent) -> wire::KvEvent {
    let event = match event {
        KvEvent::Stored { parent, blocks, block_tokens } => Event::Stored(wire::KvStored {
            parent: parent.map(|parent| parent.0),
            sequences: blocks.iter().map(|block| block.sequence.0).collect(),
            blocks: blocks.iter().map(|block| block.block.0).collect(),
            block_tokens,
        }),
        KvEvent::Removed { blocks } => Event::Removed(wire::KvRemoved {
            blocks: blocks.into_iter().map(|block| block.0).collect(),
        }),
        KvEvent::Cleared => Event::Cleared(wire::KvCleared {}),
    };
    wire::KvEvent { event: Some(event) }
}

/// Reads a KV event; none: it is of a kind that is not known here. Errors: lists of two lengths.
pub(crate) fn event_of(wire: wire::KvEvent) -> Result<Option<KvEvent>> {
    Ok(match wire.event {
        Some(Event::Stored(stored)) => {
            equal_lengths("blocks", stored.sequences.len(), stored.blocks.len())?;
            let pairs = stored.sequences.into_iter().zip(stored.blocks);
            let blocks = pairs
                .map(|(sequence, block)| StoredBlock {
                    sequence: SequenceHash(sequence),
                    block: BlockHash(block),
                })
                .collect();
            let parent = stored.parent.map(SequenceHash);
            Some(KvEvent::Stored { parent, blocks, block_tokens: stored.block_tokens })
        }
        Some(Event::Removed(removed)) => {
            let blocks = removed.blocks.into_iter().map(SequenceHash).collect();
            Some(KvEvent::Removed { blocks })
        }
        Some(Event::Cleared(_)) => Some(KvEvent::Cleared),
        None => None,
    })
}
