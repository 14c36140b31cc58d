//! What is told of a text as it grows: the steps of one answer, whatever door it leaves by.

use std::sync::Arc;
use std::time::Duration;

use engine::{FinishReason, TokenId};

use crate::Completion;
use crate::parser::Event;

/// What a log-probability takes while an answer is made of it: as it is, as JSON values, and in the
/// text. Measured for answers with 20 of them a token.
const SCORED_BYTES: usize = 256;

/// How often a text is there while an answer is made of it.
const COPIES: usize = 3;

/// What the id of a token takes while an answer is made of it.
const ID_BYTES: usize = 48;

impl engine::Request for Completion {
    type Output = TextOutput;
}

/// Some news of a request's continuations, in order.
#[derive(Clone, Debug, Default)]
pub struct TextOutput {
    /// At most one for each continuation.
    pub deltas: Vec<Delta>,
    /// Tokens of each prompt.
    pub prompt_tokens: Arc<[u32]>,
    /// Every continuation has ended.
    pub is_last: bool,
    /// How long the request waited for its place in the batch.
    pub queue_time: Duration,
}

impl TextOutput {
    /// Returns about how many bytes a whole answer takes for these news while it is made.
    pub fn answer_bytes(&self) -> usize {
        let scores =
            |scores: &[Score]| scores.iter().map(|score| 1 + score.top.len()).sum::<usize>();
        let of = |delta: &Delta| {
            COPIES * delta.events.iter().map(Event::size).sum::<usize>()
                + ID_BYTES * delta.token_ids.len()
                + SCORED_BYTES * (scores(&delta.logprobs) + scores(&delta.prompt_logprobs))
        };
        self.deltas.iter().map(of).sum()
    }
}

/// What is new in one continuation.
#[derive(Clone, Debug, Default)]
pub struct Delta {
    /// Which continuation: prompt times choices plus choice.
    pub index: u32,
    /// What the text turned out to be.
    pub events: Vec<Event>,
    /// Tokens drawn since the last delta.
    pub tokens: u32,
    /// How many of them are reasoning.
    pub reasoning_tokens: u32,
    /// Their ids, if they were asked for.
    pub token_ids: Vec<TokenId>,
    /// Their log-probabilities, if they were asked for.
    pub logprobs: Vec<Score>,
    /// That of the token that ended the text and is no part of it, if they were asked for.
    pub end_logprobs: Option<Score>,
    /// The prompt's, if they were asked for; the first token has rank 0 and no probability.
    pub prompt_logprobs: Vec<Score>,
    /// The continuation has ended.
    pub finish: Option<Finish>,
}

/// A token with its probability and the alternatives it had.
#[derive(Clone, Debug, PartialEq)]
pub struct Score {
    /// The token.
    pub token: Scored,
    /// Its place; 1 is the most likely, 0 says that nothing is known.
    pub rank: u32,
    /// The best tokens, most likely first.
    pub top: Vec<Scored>,
}

/// A token and its natural-log probability.
#[derive(Clone, Debug, PartialEq)]
pub struct Scored {
    /// The id.
    pub id: TokenId,
    /// What it stands for, which may be a part of a character.
    pub bytes: Vec<u8>,
    /// The log-probability.
    pub logprob: f32,
}

impl Scored {
    /// Returns the token's text; what is no UTF-8 becomes U+FFFD.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }

    /// Returns the log-probability as JSON can hold it: the least float stands for minus
    /// infinity, none for what is not known.
    pub fn finite(&self) -> Option<f32> {
        (!self.logprob.is_nan()).then(|| self.logprob.max(f32::MIN))
    }
}

/// How a continuation ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Finish {
    /// Why.
    pub reason: FinishReason,
    /// The stop text that ended it.
    pub stop: Option<String>,
    /// Tokens of its prompt that were in the prefix cache.
    pub cached_tokens: u32,
}
