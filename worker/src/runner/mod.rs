//! One forward pass of a model over a batch: what the scheduler asks of a device.
//!
//! A runner owns its weights and its KV memory, lives on the scheduler's thread and is told
//! which KV blocks belong to which sequence; it decides nothing. Its promise: a sequence's
//! logits do not depend, to the last bit, on what else is in the batch.

pub mod cpu;
pub mod mock;

use engine::TokenId;

use crate::Error;

/// The number of a KV block in the runner's memory.
pub type BlockId = u32;

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
    /// Whether the logits after the last token are wanted.
    pub wants_logits: bool,
}

/// The logits of the entries that wanted them, in the order of the batch.
#[derive(Clone, Copy, Debug)]
pub struct Logits<'a> {
    /// `[rows, vocabulary]`, row-major.
    pub values: &'a [f32],
    /// The length of a row.
    pub vocabulary: usize,
}

impl<'a> Logits<'a> {
    /// Returns the rows in order.
    pub fn rows(&self) -> impl Iterator<Item = &'a [f32]> + use<'a> {
        self.values.chunks_exact(self.vocabulary)
    }
}

/// One model on one device.
pub trait Runner: Send {
    /// Returns the sizes that the scheduler has to respect.
    fn limits(&self) -> Limits;

    /// Computes one forward pass and writes the keys and values of its tokens into their blocks.
    ///
    /// Errors: only faults of the device; the batch is the scheduler's and is taken as valid.
    fn forward(&mut self, batch: &[Entry<'_>]) -> Result<Logits<'_>, Error>;
}
