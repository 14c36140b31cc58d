//! A whole answer out of its news.

use std::sync::Arc;

use engine::FinishReason;
use serde_json::{Value as Json, json};

use crate::parser::Event;
use crate::{Delta, Finish, Score, TextOutput};

/// The answer so far: every continuation, `[prompts, choices]`.
#[derive(Clone, Debug, Default)]
pub struct Fold {
    /// The continuations.
    pub told: Vec<Told>,
    /// Tokens of each prompt.
    pub prompt_tokens: Arc<[u32]>,
}

/// All that was told of a continuation.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// The text.
    pub content: String,
    /// What the model thought.
    pub reasoning: String,
    /// What it called.
    pub calls: Vec<ToldCall>,
    /// The log-probabilities of its tokens.
    pub logprobs: Vec<Score>,
    /// The prompt's.
    pub prompt_logprobs: Vec<Score>,
    /// Its tokens, if they were asked for.
    pub token_ids: Vec<u32>,
    /// How many tokens were drawn.
    pub tokens: u32,
    /// How many of them are reasoning.
    pub reasoning_tokens: u32,
    /// How it ended.
    pub finish: Option<Finish>,
}

/// A call.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ToldCall {
    /// The id that the model gave it, if it did.
    pub id: Option<String>,
    /// What is called.
    pub name: String,
    /// JSON text.
    pub arguments: String,
}

impl Fold {
    /// Adds news.
    pub fn push(&mut self, output: TextOutput) {
        self.prompt_tokens = output.prompt_tokens;
        for delta in output.deltas {
            let index = delta.index as usize;
            if self.told.len() <= index {
                self.told.resize_with(index + 1, Told::default);
            }
            self.told[index].push(delta);
        }
    }

    /// Adds what news count, without their texts: for streams, which need no more.
    pub(super) fn count(&mut self, output: &TextOutput) {
        let counts = |delta: &Delta| Delta {
            index: delta.index,
            tokens: delta.tokens,
            reasoning_tokens: delta.reasoning_tokens,
            finish: delta.finish.clone(),
            ..Delta::default()
        };
        self.push(TextOutput {
            deltas: output.deltas.iter().map(counts).collect(),
            prompt_tokens: output.prompt_tokens.clone(),
            ..TextOutput::default()
        });
    }

    /// Returns the tokens of all prompts, of all continuations, of thoughts, and from the cache.
    pub fn usage(&self) -> Usage {
        let sum = |count: fn(&Told) -> u32| self.told.iter().map(count).sum();
        // The choices of one prompt found the same tokens in the cache.
        let choices = self.told.len().checked_div(self.prompt_tokens.len()).unwrap_or(1).max(1);
        let cached = |told: &Told| told.finish.as_ref().map_or(0, |finish| finish.cached_tokens);
        Usage {
            prompt: self.prompt_tokens.iter().sum(),
            completion: sum(|told| told.tokens),
            reasoning: sum(|told| told.reasoning_tokens),
            cached: self.told.iter().step_by(choices).map(cached).sum(),
        }
    }
}

/// What an answer cost, in tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Of the prompts.
    pub prompt: u32,
    /// Of the continuations.
    pub completion: u32,
    /// Of the continuations, while the model thought.
    pub reasoning: u32,
    /// Of the prompts, found in the prefix cache.
    pub cached: u32,
}

impl Usage {
    /// Returns it as chat and completions write it.
    pub(super) fn json(&self) -> Json {
        json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning},
        })
    }
}

impl Told {
    fn push(&mut self, delta: Delta) {
        for event in delta.events {
            match event {
                Event::Content(text) => self.content.push_str(&text),
                Event::Reasoning(text) => self.reasoning.push_str(&text),
                Event::CallBegun { id, name, .. } => {
                    self.calls.push(ToldCall { id, name, arguments: String::new() });
                }
                Event::Arguments { index, text } => {
                    if let Some(call) = self.calls.get_mut(index as usize) {
                        call.arguments.push_str(&text);
                    }
                }
            }
        }
        self.logprobs.extend(delta.logprobs);
        self.prompt_logprobs.extend(delta.prompt_logprobs);
        self.token_ids.extend(delta.token_ids);
        self.tokens += delta.tokens;
        self.reasoning_tokens += delta.reasoning_tokens;
        self.finish = delta.finish.or(self.finish.take());
    }

    /// Returns how it ended, in the words of chat; `forced` says that the client named the call.
    pub(super) fn finish_reason(&self, forced: bool) -> &'static str {
        word(self.finish.as_ref(), !self.calls.is_empty() && !forced)
    }
}

/// Returns the word for an end. A call that was cut off ended by length, and one that the client
/// named is no choice of the model's.
pub(super) fn word(finish: Option<&Finish>, has_calls: bool) -> &'static str {
    match finish.map(|finish| finish.reason) {
        Some(FinishReason::Stop) if has_calls => "tool_calls",
        Some(reason) => reason.as_str(),
        None => "length",
    }
}
