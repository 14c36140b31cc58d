//! How the next token is drawn and when to stop.

use crate::TokenId;

/// How the next token is drawn from the logits. The default is greedy.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Softmax temperature, `0.0..=2.0` by convention; 0 is greedy.
    pub temperature: f32,
    /// Keeps the `k` most likely tokens; 0 keeps all.
    pub top_k: u32,
    /// Keeps the smallest set of tokens whose probability reaches this, in `(0, 1]`.
    pub top_p: f32,
    /// Drops tokens less likely than this share of the most likely one, in `[0, 1]`.
    pub min_p: f32,
    /// Divides (positive) or multiplies (negative) the logits of tokens seen in the prompt or
    /// the output; above 0, 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted from the logits of tokens seen in the output, in `[-2, 2]`.
    pub presence_penalty: f32,
    /// Subtracted once for each time a token was seen in the output, in `[-2, 2]`.
    pub frequency_penalty: f32,
    /// Makes the draw repeatable; without it each request draws its own.
    pub seed: Option<u64>,
    /// Added to the logits of single tokens, in `[-100, 100]`; each token stands here once.
    pub logit_bias: Vec<(TokenId, f32)>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            seed: None,
            logit_bias: Vec::new(),
        }
    }
}

/// When a continuation ends. Stop strings are text and belong to the bridge above.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StopConditions {
    /// The most tokens to draw; at least 1.
    pub max_tokens: u32,
    /// Before this many tokens neither end-of-sequence nor stop tokens are drawn.
    pub min_tokens: u32,
    /// Tokens that end the continuation, besides the model's own.
    pub stop_token_ids: Vec<TokenId>,
    /// Draws on past the model's end-of-sequence tokens.
    pub ignore_eos: bool,
}

impl StopConditions {
    /// Makes conditions that only bound the number of tokens.
    pub fn after(max_tokens: u32) -> Self {
        Self { max_tokens, ..Self::default() }
    }
}
