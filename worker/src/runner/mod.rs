//! One forward pass of a model over a batch: what the scheduler asks of a device.
//!
//! A runner owns its weights and its KV memory, lives on the scheduler's thread and is told
//! which KV blocks belong to which sequence; it decides nothing. Its promise: a sequence's
//! logits do not depend, to the last bit, on what else is in the batch.

pub mod cpu;
pub mod mock;

use std::slice::ChunksExact;
use std::time::Duration;

use engine::{AdapterId, TokenId};

pub use crate::cpu::attention::BlockId;

use crate::Error;
use crate::turns::PassScheduler;

/// The sizes that the scheduler has to respect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Tokens in the vocabulary: the length of a row of logits.
    pub vocabulary: usize,
    /// The most tokens of one sequence.
    pub context_length: usize,
    /// Tokens of one KV block.
    pub block_size: usize,
    /// KV blocks there are.
    pub blocks: usize,
    /// The most tokens of one forward pass.
    pub batch_tokens: usize,
    /// The length of a hidden state.
    pub dimensions: usize,
}

/// What one sequence brings to a forward pass.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// The tokens to compute: a chunk of the prompt, or the one drawn last.
    pub tokens: &'a [TokenId],
    /// The position of the first of them in the sequence.
    pub start: usize,
    /// The sequence's KV blocks in order, enough for `start + tokens.len()` tokens.
    pub blocks: &'a [BlockId],
    /// How many of the sequence's first tokens were asked and not drawn. What a model computes
    /// does not depend on it.
    pub prompt: usize,
    /// The adapter that its tokens are computed with.
    pub adapter: Option<AdapterId>,
    /// What has to come out.
    pub wants: Wants,
}

/// What an entry of a batch wants to know, besides its keys and values in the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wants {
    /// Nothing: more of the prompt follows.
    Nothing,
    /// The logits after the last token: one row.
    Last,
    /// The logits after each token: a row for each.
    All,
    /// The hidden state of each token, behind the final norm: a row for each.
    Hidden,
}

/// What a forward pass gave, in the order of the batch.
#[derive(Clone, Copy, Debug)]
pub struct Outputs<'a> {
    /// `[rows, vocabulary]`, row-major: of the entries that wanted logits.
    pub logits: &'a [f32],
    /// The length of a row of logits.
    pub vocabulary: usize,
    /// `[rows, dimensions]`, row-major: of the entries that wanted hidden states.
    pub hidden: &'a [f32],
    /// The length of a hidden state.
    pub dimensions: usize,
}

impl<'a> Outputs<'a> {
    /// Returns the rows of logits in order.
    pub fn logits_rows(&self) -> ChunksExact<'a, f32> {
        self.logits.chunks_exact(self.vocabulary.max(1))
    }

    /// Returns the hidden states in order.
    pub fn hidden_rows(&self) -> ChunksExact<'a, f32> {
        self.hidden.chunks_exact(self.dimensions.max(1))
    }
}

/// What a runner's blocks are made of, as far as another process has to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockKind {
    /// Stands for the weights and for how they are computed with, the revision of the code included:
    /// runners in which it is equal make equal blocks of equal tokens, to the last bit.
    pub fingerprint: u64,
    /// Bytes of a block, as [`read_block`](Runner::read_block) gives it.
    pub bytes: usize,
}

/// One model on one device.
pub trait Runner: Send {
    /// Returns the sizes that the scheduler has to respect.
    fn limits(&self) -> Limits;

    /// Computes one forward pass and writes the keys and values of its tokens into their blocks. Who
    /// shares the runner's threads with others calls it in its [turn](Runner::turns).
    ///
    /// Errors: only faults of the device; the batch is the scheduler's and is taken as valid.
    fn forward(&mut self, batch: &[Entry<'_>]) -> Result<Outputs<'_>, Error>;

    /// Returns the turns of those that compute on the same threads; those of one that has them alone,
    /// unless it says otherwise.
    fn turns(&self) -> PassScheduler {
        PassScheduler::default()
    }

    /// Returns how long the last forward pass took for a runner that keeps its own time; none: what the
    /// clock says.
    fn pass_time(&self) -> Option<Duration> {
        None
    }

    /// Copies the keys and values of all tokens of a block to another one.
    ///
    /// Errors: only faults of the device, as of the two below.
    fn copy_block(&mut self, from: BlockId, to: BlockId) -> Result<(), Error>;

    /// Appends the content of a block to `bytes`: always as many, in an order of the runner's
    /// own, the same for all its blocks.
    fn read_block(&mut self, block: BlockId, bytes: &mut Vec<u8>) -> Result<(), Error>;

    /// Puts back what [`read_block`](Runner::read_block) gave, into the same or another block.
    fn write_block(&mut self, block: BlockId, bytes: &[u8]) -> Result<(), Error>;

    /// Returns what its blocks are made of; none: they mean nothing outside of it.
    fn block_kind(&self) -> Option<BlockKind> {
        None
    }
}
