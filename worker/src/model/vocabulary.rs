//! The tokenizer's tables: out of a GGUF file, or out of the files of a directory.

mod directory;
mod gguf;

use engine::{TokenId, Vocabulary};

/// A tokenizer's tables and the tokens that end a continuation.
#[derive(Clone, Debug)]
pub struct Tokens {
    /// The tables.
    pub vocabulary: Vocabulary,
    /// The end of the text and the end of a turn, each once.
    pub eos: Vec<TokenId>,
}

#[cfg(test)]
mod tests;
