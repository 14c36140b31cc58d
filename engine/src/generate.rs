//! Generation: tokens in, tokens out.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use crate::{
    Adapter, Guided, KvHandoff, KvSource, Request, Sampling, StopConditions, TokenId, Usage,
};

/// The most alternatives that a request may ask for beside a token's log-probability: those of a
/// whole prompt are kept until it is computed.
pub const MAX_LOGPROBS: u32 = 20;

/// Most log probabilities that one answer may have: continuations times tokens times one and the
/// alternatives. Each takes some hundred bytes until a whole answer is sent.
pub const MAX_ANSWER_SCORES: u64 = 4_000_000;

/// A prompt and how to continue it.
///
/// ```
/// use engine::{GenerateRequest, StopConditions};
/// let request = GenerateRequest::new(vec![1, 2, 3], StopConditions::after(16));
/// assert_eq!(request.choices.get(), 1);
/// ```
#[derive(Clone, Debug)]
pub struct GenerateRequest {
    /// The prompt; at least one token. What the continuation has so far stands behind it, if
    /// another engine began it.
    pub tokens: Arc<[TokenId]>,
    /// How many of `tokens`, at their end, are not prompt but output of an earlier attempt, fewer
    /// than all; only one continuation is asked for then. They are not given out again, and
    /// penalties, the draws of a seed, the constraint and log-probabilities go on as if nothing
    /// had happened. The limits in `stop` and [`Usage`] take them for prompt.
    pub generated: u32,
    /// How many continuations of the same request are somebody else's and come before the first
    /// of these: each has its own draws of a seed. Outputs are numbered from 0 all the same.
    pub choice_offset: u32,
    /// How many independent continuations are wanted.
    pub choices: NonZeroU32,
    /// How the next token is drawn.
    pub sampling: Sampling,
    /// When a continuation ends.
    pub stop: StopConditions,
    /// Asks for the log-probability of each token drawn, and of this many best alternatives, at most
    /// [`MAX_LOGPROBS`].
    pub logprobs: Option<u32>,
    /// Asks for the log-probability of each prompt token but the first, and of this many best
    /// alternatives, at most [`MAX_LOGPROBS`]; only then `max_tokens` may be 0.
    pub prompt_logprobs: Option<u32>,
    /// What each continuation has to look like.
    pub guided: Option<Guided>,
    /// The adapter that the model is asked with; none: as it is.
    pub adapter: Option<Adapter>,
    /// KV blocks of the tokens that another engine computed. An engine may leave them alone.
    pub handoff: Option<KvHandoff>,
}

impl GenerateRequest {
    /// Makes a greedy request for one continuation.
    pub fn new(tokens: impl Into<Arc<[TokenId]>>, stop: StopConditions) -> Self {
        Self {
            tokens: tokens.into(),
            generated: 0,
            choice_offset: 0,
            choices: NonZeroU32::MIN,
            sampling: Sampling::default(),
            stop,
            logprobs: None,
            prompt_logprobs: None,
            guided: None,
            adapter: None,
            handoff: None,
        }
    }

    /// Splits the tokens into the prompt and the output of an earlier attempt.
    pub fn split(&self) -> (&[TokenId], &[TokenId]) {
        self.tokens.split_at(self.tokens.len().saturating_sub(self.generated as usize))
    }
}

impl Request for GenerateRequest {
    type Output = GenerateOutput;
}

/// Some tokens of one continuation: one, or several when the reader was slower than the model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerateOutput {
    /// Which continuation, from 0 to `choices - 1`.
    pub index: u32,
    /// The tokens drawn since the last output, in order. An end-of-sequence or stop token that
    /// ended the continuation is not among them.
    pub tokens: Vec<TokenId>,
    /// One entry a token of `tokens` when they were asked for, else empty.
    pub logprobs: Vec<TokenLogprobs>,
    /// In the last output of a continuation that a token ended: that token, when log-probabilities
    /// were asked for. [`Usage`] counts it.
    pub end_logprobs: Option<(TokenId, TokenLogprobs)>,
    /// In the first output of continuation 0, when they were asked for: an entry for each prompt
    /// token, none for the first.
    pub prompt_logprobs: Vec<Option<TokenLogprobs>>,
    /// Set in the last output of this continuation.
    pub finish: Option<FinishReason>,
    /// Set in the last output of this continuation.
    pub usage: Option<Usage>,
    /// From the request's acceptance to its first place in a batch.
    pub queue_time: Duration,
    /// In the last output of a worker that computes prompts for others: where the blocks of this
    /// one can be asked for.
    pub kv_source: Option<Arc<KvSource>>,
}

/// The natural-log probabilities at one step, after temperature-free softmax of the logits.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    /// Of the token that was drawn.
    pub logprob: f32,
    /// The place of the token that was drawn; 1 is the most likely.
    pub rank: u32,
    /// Of the best tokens, most likely first.
    pub top: Vec<(TokenId, f32)>,
}

/// Why a continuation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended it, or a stop token or stop string came.
    Stop,
    /// The token budget or the context is used up.
    Length,
}

impl FinishReason {
    /// Returns the word for it in the OpenAI API and in Triton's text outputs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
        }
    }
}
