//! What is known of a text model without its weights.

use crate::TokenId;

/// The facts of a text model that other rooms need.
#[derive(Clone, Debug)]
pub struct ModelCard {
    /// The name that clients use.
    pub name: String,
    /// The family of the architecture, as in the model file: `llama`, `qwen2`, `mock`, …
    pub architecture: String,
    /// The most tokens of prompt and continuation together.
    pub context_length: u32,
    /// Tokens of one KV block.
    pub block_size: u32,
    /// Tokens that end a continuation.
    pub eos_tokens: Vec<TokenId>,
}

/// A tokenizer's tables and the chat template, as a model file carries them.
#[derive(Clone, Debug, Default)]
pub struct Vocabulary {
    /// The kind of tokenizer: `gpt2` is byte-level BPE, `llama` SentencePiece BPE.
    pub model: String,
    /// The pre-tokenizer's name: `smollm`, `llama-bpe`, `qwen2`, …
    pub pre_tokenizer: String,
    /// The text of each token, in the tokenizer's own spelling; the index is the id.
    pub tokens: Vec<String>,
    /// The kind of each token; as long as `tokens`, or empty when all are normal.
    pub kinds: Vec<TokenKind>,
    /// The merge rules, best first, two parts separated by a space.
    pub merges: Vec<String>,
    /// How good each token is, for SentencePiece; as long as `tokens`, or empty.
    pub scores: Vec<f32>,
    /// Whether SentencePiece puts a space in front of a text.
    pub add_space_prefix: bool,
    /// The model's own `tokenizer.json`, if its file carries one; it counts more than the tables.
    pub json: Option<String>,
    /// The token that begins a text.
    pub bos: Option<TokenId>,
    /// The token that ends a text.
    pub eos: Option<TokenId>,
    /// Whether a plain prompt starts with `bos`.
    pub add_bos: bool,
    /// The chat template, in Jinja as Hugging Face writes it.
    pub chat_template: Option<String>,
}

/// What a token of the vocabulary is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TokenKind {
    /// Text.
    #[default]
    Normal,
    /// Stands for what cannot be encoded.
    Unknown,
    /// Steers the model and is never shown.
    Control,
    /// Added to the vocabulary by hand; matched as a whole.
    UserDefined,
    /// Not in use.
    Unused,
    /// One raw byte.
    Byte,
}
