//! What becomes of KV blocks, told to whoever routes by prefixes.
//!
//! Events go through a ring of a fixed length: who reads too slowly is told how many events it
//! missed, and has to ask anew what is held; nobody is waited for. Events are numbered from 1 on,
//! and what is held after an event can be asked for at any time, together with its number.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::broadcast;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};

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
    ledger: Arc<Mutex<Ledger>>,
    epoch: u64,
}

/// What the events so far come to; as many names as the cache has blocks.
#[derive(Debug, Default)]
struct Ledger {
    sequence: u64,
    held: HashSet<SequenceHash>,
}

/// What can be found after some event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KvSnapshot {
    /// Which numbering it is: each writer has its own, of two in a process the later one's is
    /// higher.
    pub epoch: u64,
    /// The number of the last event that it contains; 0: none.
    pub sequence: u64,
    /// The names of the prefixes that can be found, in no order.
    pub blocks: Vec<SequenceHash>,
}

impl KvEvents {
    /// Makes a ring for at least `capacity` events, at least one; the length is a power of two.
    pub fn new(capacity: usize) -> Self {
        static EPOCHS: AtomicU64 = AtomicU64::new(1);
        let sender = broadcast::Sender::new(capacity.clamp(1, 1 << 20));
        Self { sender, ledger: Arc::default(), epoch: EPOCHS.fetch_add(1, Relaxed) }
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns which numbering it is, as [`KvSnapshot::epoch`] has it.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Tells all readers what happened.
    pub fn publish(&self, event: impl FnOnce() -> KvEvent) {
        let event = event();
        let mut ledger = self.ledger();
        ledger.sequence += 1;
        ledger.apply(&event);
        // It fails when there is no reader. The lock keeps events and their numbers in one order.
        let _ = self.sender.send(event);
    }

    /// Returns a reader of what happens from now on.
    pub fn subscribe(&self) -> KvEventReader {
        let ledger = self.ledger();
        let (receiver, sequence) = (self.sender.subscribe(), ledger.sequence);
        KvEventReader { receiver, epoch: self.epoch, sequence }
    }

    /// Returns what can be found now, and a reader of what happens behind that.
    ///
    /// ```
    /// use engine::{BlockHash, KvEvent, KvEvents, KvNews, SequenceHash, StoredBlock};
    /// let events = KvEvents::new(8);
    /// let stored = StoredBlock { sequence: SequenceHash(7), block: BlockHash(7) };
    /// let event = KvEvent::Stored { parent: None, blocks: vec![stored], block_tokens: 16 };
    /// events.publish(|| event);
    /// let (held, mut reader) = events.snapshot();
    /// assert_eq!((held.sequence, held.blocks), (1, vec![SequenceHash(7)]));
    /// events.publish(|| KvEvent::Cleared);
    /// assert_eq!(reader.try_next(), Some(KvNews::Event(KvEvent::Cleared)));
    /// assert_eq!(reader.sequence(), 2);
    /// assert_eq!(reader.try_next(), None);
    /// ```
    pub fn snapshot(&self) -> (KvSnapshot, KvEventReader) {
        let (epoch, ledger) = (self.epoch, self.ledger());
        let (receiver, sequence) = (self.sender.subscribe(), ledger.sequence);
        let blocks = ledger.held.iter().copied().collect();
        (KvSnapshot { epoch, sequence, blocks }, KvEventReader { receiver, epoch, sequence })
    }
}

impl Ledger {
    fn apply(&mut self, event: &KvEvent) {
        match event {
            KvEvent::Stored { blocks, .. } => {
                self.held.extend(blocks.iter().map(|block| block.sequence));
            }
            KvEvent::Removed { blocks } => {
                for block in blocks {
                    self.held.remove(block);
                }
            }
            KvEvent::Cleared => self.held.clear(),
        }
    }
}

/// The reader's side.
#[derive(Debug)]
pub struct KvEventReader {
    receiver: broadcast::Receiver<KvEvent>,
    epoch: u64,
    sequence: u64,
}

impl KvEventReader {
    /// Waits for what comes next; none: the worker is gone. Cancelling loses nothing.
    pub async fn next(&mut self) -> Option<KvNews> {
        match self.receiver.recv().await {
            Ok(event) => Some(self.told(event)),
            Err(RecvError::Lagged(count)) => Some(self.missed(count)),
            Err(RecvError::Closed) => None,
        }
    }

    /// Returns what comes next if it is there.
    pub fn try_next(&mut self) -> Option<KvNews> {
        match self.receiver.try_recv() {
            Ok(event) => Some(self.told(event)),
            Err(TryRecvError::Lagged(count)) => Some(self.missed(count)),
            Err(TryRecvError::Empty | TryRecvError::Closed) => None,
        }
    }

    fn told(&mut self, event: KvEvent) -> KvNews {
        self.sequence += 1;
        KvNews::Event(event)
    }

    fn missed(&mut self, count: u64) -> KvNews {
        self.sequence += count;
        KvNews::Missed(count)
    }

    /// Returns which numbering it is, as [`KvSnapshot::epoch`] has it.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Returns the number of the last event that was told or missed.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }
}
