//! A runner whose answers depend on what really lies in its blocks, so that a block that is
//! shared, copied, restored or given up wrongly changes a token.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use super::*;
use crate::runner::{BlockKind, Wants};

/// Tokens of a block.
pub(super) const SIZE: usize = 16;
const DIMENSIONS: usize = 8;

/// The runner: a block holds the numbers of its tokens.
pub(super) struct Memory {
    vocabulary: usize,
    blocks: Vec<[u64; SIZE]>,
    logits: Vec<f32>,
    hidden: Vec<f32>,
    pace: Duration,
    /// Blocks written since the last forward pass.
    written: usize,
    /// The most of them.
    most_written: Arc<AtomicUsize>,
    /// Bytes of a block that say nothing.
    padding: usize,
    passes: usize,
    /// The number of forward passes before each block that was read.
    reads: Arc<Mutex<Vec<usize>>>,
    /// The number of the last forward pass with a sequence, by the tokens of its prompt.
    last_passes: Arc<Mutex<BTreeMap<usize, usize>>>,
    /// What the first pass over tokens from a place on waits for.
    gate: Option<(usize, Receiver<()>)>,
}

impl Memory {
    pub(super) fn new(blocks: usize) -> Self {
        Self {
            vocabulary: mock::vocabulary().tokens.len(),
            blocks: vec![[u64::MAX; SIZE]; blocks],
            logits: Vec::new(),
            hidden: Vec::new(),
            pace: Duration::ZERO,
            written: 0,
            most_written: Arc::default(),
            padding: 0,
            passes: 0,
            reads: Arc::default(),
            last_passes: Arc::default(),
            gate: None,
        }
    }

    /// Makes each forward pass take some time.
    pub(super) fn slow(blocks: usize, pace: Duration) -> Self {
        Self { pace, ..Self::new(blocks) }
    }

    /// Makes the first forward pass over tokens from a place on wait until it is let go.
    pub(super) fn held_at(self, place: usize) -> (Self, SyncSender<()>) {
        let (go, gate) = sync_channel(1);
        (Self { gate: Some((place, gate)), ..self }, go)
    }

    /// Makes blocks that have so many bytes.
    pub(super) fn with_block_bytes(self, bytes: usize) -> Self {
        Self { padding: bytes - SIZE * 8, ..self }
    }

    /// Returns where the number of forward passes is told before each block that was read.
    pub(super) fn reads(&self) -> Arc<Mutex<Vec<usize>>> {
        self.reads.clone()
    }

    /// Returns where the last forward pass of each sequence is told, by the tokens of its prompt.
    pub(super) fn last_passes(&self) -> Arc<Mutex<BTreeMap<usize, usize>>> {
        self.last_passes.clone()
    }

    /// Returns where the most blocks are told that were written between two forward passes.
    pub(super) fn most_written(&self) -> Arc<AtomicUsize> {
        self.most_written.clone()
    }

    /// Reads what a sequence has in its blocks up to a place.
    fn read(&self, entry: &Entry<'_>, end: usize) -> fastrand::Rng {
        let contents =
            (0..end).map(|place| self.blocks[entry.blocks[place / SIZE] as usize][place % SIZE]);
        let mut hash = 0u64;
        for (place, content) in contents.enumerate() {
            assert_eq!(content >> 32, place as u64, "a block holds other tokens");
            hash = (hash ^ content).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(17);
        }
        fastrand::Rng::with_seed(hash)
    }
}

impl Runner for Memory {
    fn limits(&self) -> Limits {
        Limits {
            vocabulary: self.vocabulary,
            context_length: 1000,
            block_size: SIZE,
            blocks: self.blocks.len(),
            batch_tokens: 512,
            dimensions: DIMENSIONS,
        }
    }

    fn forward(&mut self, batch: &[Entry<'_>]) -> std::result::Result<Outputs<'_>, crate::Error> {
        std::thread::sleep(self.pace);
        let is_there = |place: usize| batch.iter().any(|entry| entry.start >= place);
        if let Some((_, gate)) = self.gate.take_if(|(place, _)| is_there(*place)) {
            // It fails when the test is over.
            let _ = gate.recv();
        }
        self.passes += 1;
        self.most_written.fetch_max(std::mem::take(&mut self.written), Ordering::Relaxed);
        let passes = batch.iter().map(|entry| (entry.prompt, self.passes));
        self.last_passes.lock().unwrap().extend(passes);
        let mut written = BTreeSet::new();
        for entry in batch {
            for (place, &token) in (entry.start..).zip(entry.tokens) {
                let block = entry.blocks[place / SIZE];
                assert!(written.insert((block, place % SIZE)), "two write the same place");
                self.blocks[block as usize][place % SIZE] = (place as u64) << 32 | u64::from(token);
            }
        }
        (self.logits, self.hidden) = Default::default();
        for entry in batch {
            let end = entry.start + entry.tokens.len();
            let rows = match entry.wants {
                Wants::Nothing => end + 1..=end,
                Wants::Last => end..=end,
                Wants::All | Wants::Hidden => entry.start + 1..=end,
            };
            for end in rows {
                let mut random = self.read(entry, end);
                match entry.wants {
                    Wants::Hidden => self.hidden.extend((0..DIMENSIONS).map(|_| random.f32())),
                    _ => self.logits.extend((0..self.vocabulary).map(|_| 6.0 * random.f32())),
                }
            }
        }
        Ok(Outputs {
            logits: &self.logits,
            vocabulary: self.vocabulary,
            hidden: &self.hidden,
            dimensions: DIMENSIONS,
        })
    }

    fn copy_block(&mut self, from: BlockId, to: BlockId) -> std::result::Result<(), crate::Error> {
        self.blocks[to as usize] = self.blocks[from as usize];
        Ok(())
    }

    fn read_block(
        &mut self,
        block: BlockId,
        bytes: &mut Vec<u8>,
    ) -> std::result::Result<(), crate::Error> {
        bytes.extend(self.blocks[block as usize].iter().flat_map(|content| content.to_le_bytes()));
        bytes.resize(bytes.len() + self.padding, 0);
        self.reads.lock().unwrap().push(self.passes);
        Ok(())
    }

    fn write_block(
        &mut self,
        block: BlockId,
        bytes: &[u8],
    ) -> std::result::Result<(), crate::Error> {
        assert_eq!(bytes.len(), SIZE * 8 + self.padding);
        self.written += 1;
        for (content, bytes) in self.blocks[block as usize].iter_mut().zip(bytes.as_chunks().0) {
            *content = u64::from_le_bytes(*bytes);
        }
        Ok(())
    }

    fn block_kind(&self) -> Option<BlockKind> {
        Some(BlockKind { fingerprint: 1, bytes: SIZE * 8 + self.padding })
    }
}

/// Starts an engine on such a runner.
pub(super) fn remembering(runner: Memory, config: SchedulerConfig) -> GenerateEngine {
    let eos = mock::card("memory", &MockConfig::default()).eos_tokens;
    GenerateEngine::start(Box::new(runner), &mock::vocabulary(), eos, config).unwrap()
}
