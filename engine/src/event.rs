//! What becomes of KV blocks, told to whoever routes by prefixes.
//!
//! Events go through a ring of a fixed length: who reads too slowly is told how many events it
//! missed, and has to ask anew what is held; nobody is waited for.

use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use crate::{BlockHash, SequenceHash};

/// A block that can be found again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredBlock {
    /// The name of the prefix that ends with it.
    pub sequence: SequenceHash,
    /// The hash of its own tokens.
    pub block: BlockHash,
}

/// What happened to blocks of one worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KvEvent {
    /// Blocks can be found from now on, each behind the one before.
    Stored {
        /// The prefix in front of the first of them; none: they begin a sequence.
        parent: Option<SequenceHash>,
        /// The blocks in order.
        blocks: Vec<StoredBlock>,
        /// Tokens of each block.
        block_tokens: u32,
    },
    /// Prefixes cannot be found any more.
    Removed {
        /// Their names, longer ones before shorter ones.
        blocks: Vec<SequenceHash>,
    },
    /// No prefix can be found any more.
    Cleared,
}

/// What a reader of events gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KvNews {
    /// The next event.
    Event(KvEvent),
    /// This many events were missed; what is known is out of date.
    Missed(u64),
}

/// The writer's side: clones write to the same readers.
///
/// ```
/// use engine::{KvEvent, KvEvents, KvNews};
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let events = KvEvents::new(2);
/// let mut reader = events.subscribe();
/// for _ in 0..5 {
///     events.publish(|| KvEvent::Cleared);
/// }
/// assert_eq!(reader.next().await, Some(KvNews::Missed(3)));
/// assert_eq!(reader.next().await, Some(KvNews::Event(KvEvent::Cleared)));
/// # });
/// ```
#[derive(Clone, Debug)]
pub struct KvEvents {
    sender: broadcast::Sender<KvEvent>,
}

impl KvEvents {
    /// Makes a ring for at least `capacity` events, at least one; the length is a power of two.
    pub fn new(capacity: usize) -> Self {
        Self { sender: broadcast::Sender::new(capacity.clamp(1, 1 << 20)) }
    }

    /// Tells all readers what happened. Nothing is made when there is none.
    pub fn publish(&self, event: impl FnOnce() -> KvEvent) {
        if self.sender.receiver_count() > 0 {
            // The last reader may have left between the two; then nobody misses it.
            let _ = self.sender.send(event());
        }
    }

    /// Returns a reader of what happens from now on.
    pub fn subscribe(&self) -> KvEventReader {
        KvEventReader { receiver: self.sender.subscribe() }
    }
}

/// The reader's side.
#[derive(Debug)]
pub struct KvEventReader {
    receiver: broadcast::Receiver<KvEvent>,
}

impl KvEventReader {
    /// Waits for what comes next; none: the worker is gone. Cancelling loses nothing.
    pub async fn next(&mut self) -> Option<KvNews> {
        match self.receiver.recv().await {
            Ok(event) => Some(KvNews::Event(event)),
            Err(RecvError::Lagged(count)) => Some(KvNews::Missed(count)),
            Err(RecvError::Closed) => None,
        }
    }
}
