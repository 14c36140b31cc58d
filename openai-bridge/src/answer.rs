//! From deltas to the tensors of responses.
//!
//! A streamed answer has one response for each round of deltas; the last one carries the finish
//! reasons. An answer in one response is folded from all of them.

use std::collections::BTreeMap;

use engine::{FinishReason, InferOutput};
use serde_json::{Value as Json, json};
use tensor::Tensor;

use crate::completion::Completion;
use crate::delta::{Delta, Score, Scored, TextOutput};
use crate::parser::Event;
use crate::profile;

/// The outputs of a response.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wanted {
    pub text: bool,
    pub finish_reason: bool,
    pub cumulative_logprob: bool,
    pub logprobs: bool,
    /// Log-probabilities were asked for too; the output is `null` otherwise.
    pub lists_logprobs: bool,
    pub num_input_tokens: bool,
    pub num_output_tokens: bool,
    pub num_cached_tokens: bool,
    pub num_reasoning_tokens: bool,
    pub reasoning_content: bool,
    pub tool_calls: bool,
    pub token_ids: bool,
    pub prompt_logprobs: bool,
}

/// The answer to one tensor request: a state between deltas and responses.
#[derive(Debug)]
pub struct Answer {
    wanted: Wanted,
    is_streaming: bool,
    /// The client named the call, which is then no reason to finish.
    names_a_call: bool,
    choices: usize,
    /// `[prompts, choices]`: the elements of every output.
    continuations: Vec<News>,
}

/// What the next response tells of a continuation.
#[derive(Debug, Default)]
struct News {
    text: String,
    reasoning: String,
    calls: BTreeMap<u32, Call>,
    tokens: u32,
    reasoning_tokens: u32,
    token_ids: Vec<u32>,
    logprobs: Vec<Json>,
    prompt_logprobs: Vec<Json>,
    cached_tokens: u32,
    finish: Option<&'static str>,
    cumulative_logprob: f64,
    has_calls: bool,
}

/// What is new of a call.
#[derive(Debug, Default)]
struct Call {
    id: Option<String>,
    name: Option<String>,
    arguments: String,
}

impl Answer {
    pub(crate) fn new(completion: &Completion, wanted: Wanted, is_streaming: bool) -> Self {
        let continuations =
            std::iter::repeat_with(News::default).take(completion.continuations()).collect();
        let choices = completion.choices.get() as usize;
        let names_a_call = completion.names_a_call();
        Self { wanted, is_streaming, names_a_call, choices, continuations }
    }

    /// Returns whether responses come as the text grows.
    pub fn is_streaming(&self) -> bool {
        self.is_streaming
    }

    /// Takes news and returns the response that they make, if they make one.
    pub fn take(&mut self, output: TextOutput) -> Option<InferOutput> {
        for delta in output.deltas {
            if let Some(news) = self.continuations.get_mut(delta.index as usize) {
                news.take(delta, self.names_a_call);
            }
        }
        (self.is_streaming || output.is_last).then(|| {
            let mut response = self.respond(&output.prompt_tokens);
            response.is_last = output.is_last;
            response.queue_time = output.queue_time;
            response
        })
    }

    fn respond(&mut self, prompt_tokens: &[u32]) -> InferOutput {
        let wanted = self.wanted;
        let shape = || vec![self.continuations.len() as i64];
        let texts = |name, text: fn(&News) -> String| {
            Tensor::from_elements(name, shape(), self.continuations.iter().map(text))
        };
        let numbers = |name, number: fn(&News) -> u32| {
            Tensor::from_values(name, shape(), self.continuations.iter().map(number))
        };
        let mut tensors = Vec::with_capacity(2);
        if wanted.text {
            let all = self.continuations.iter().map(|news| &news.text);
            tensors.push(Tensor::from_elements(profile::TEXT_OUTPUT, shape(), all));
        }
        if wanted.finish_reason {
            // vLLM's word where a text goes on.
            let word = |news: &News| news.finish.unwrap_or("None").to_owned();
            tensors.push(texts(profile::FINISH_REASON, word));
        }
        if wanted.cumulative_logprob {
            let sums = self.continuations.iter().map(|news| news.cumulative_logprob as f32);
            tensors.push(Tensor::from_values(profile::CUMULATIVE_LOGPROB, shape(), sums));
        }
        if wanted.logprobs {
            tensors.push(texts(
                profile::LOGPROBS,
                match wanted.lists_logprobs {
                    true => |news| json!(news.logprobs).to_string(),
                    false => |_| "null".to_owned(),
                },
            ));
        }
        if wanted.num_input_tokens {
            let count = |index| prompt_tokens.get(index / self.choices).copied().unwrap_or(0);
            let counts = (0..self.continuations.len()).map(count);
            tensors.push(Tensor::from_values(profile::NUM_INPUT_TOKENS, shape(), counts));
        }
        if wanted.num_output_tokens {
            tensors.push(numbers(profile::NUM_OUTPUT_TOKENS, |news| news.tokens));
        }
        if wanted.num_cached_tokens {
            tensors.push(numbers(profile::NUM_CACHED_TOKENS, |news| news.cached_tokens));
        }
        if wanted.num_reasoning_tokens {
            tensors.push(numbers(profile::NUM_REASONING_TOKENS, |news| news.reasoning_tokens));
        }
        if wanted.reasoning_content {
            tensors.push(texts(profile::REASONING_CONTENT, |news| news.reasoning.clone()));
        }
        if wanted.tool_calls {
            tensors.push(texts(profile::TOOL_CALLS, News::tool_calls));
        }
        if wanted.token_ids {
            tensors.push(texts(profile::TOKEN_IDS, |news| json!(news.token_ids).to_string()));
        }
        if wanted.prompt_logprobs {
            let list = |news: &News| json!(news.prompt_logprobs).to_string();
            tensors.push(texts(profile::PROMPT_LOGPROBS, list));
        }
        self.continuations.iter_mut().for_each(News::forget);
        InferOutput { tensors, ..InferOutput::default() }
    }
}

impl News {
    fn take(&mut self, delta: Delta, names_a_call: bool) {
        for event in delta.events {
            match event {
                // The first piece of a response is most often the only one.
                Event::Content(text) if self.text.is_empty() => self.text = text,
                Event::Content(text) => self.text.push_str(&text),
                Event::Reasoning(text) => self.reasoning.push_str(&text),
                Event::CallBegun { index, id, name } => {
                    let call = self.calls.entry(index).or_default();
                    (call.id, call.name) = (id, Some(name));
                    self.has_calls = true;
                }
                Event::Arguments { index, text } => {
                    self.calls.entry(index).or_default().arguments.push_str(&text);
                }
            }
        }
        self.tokens += delta.tokens;
        self.reasoning_tokens += delta.reasoning_tokens;
        self.token_ids.extend(delta.token_ids);
        for score in delta.logprobs.iter().chain(&delta.end_logprobs) {
            self.cumulative_logprob += f64::from(score.token.logprob);
            self.logprobs.push(describe(score));
        }
        let prompt = delta.prompt_logprobs.iter();
        self.prompt_logprobs.extend(prompt.map(|one| match one.rank {
            0 => Json::Null,
            _ => describe(one),
        }));
        if let Some(finish) = delta.finish {
            self.cached_tokens = finish.cached_tokens;
            self.finish = Some(match finish.reason {
                FinishReason::Stop if self.has_calls && !names_a_call => "tool_calls",
                reason => reason.as_str(),
            });
        }
    }

    /// Writes the calls as the OpenAI API streams them: with their index, and only what is new.
    fn tool_calls(&self) -> String {
        let call = |(index, call): (&u32, &Call)| {
            let mut function = json!({"arguments": call.arguments});
            let mut told = json!({"index": index});
            if let Some(name) = &call.name {
                function["name"] = json!(name);
                told["type"] = json!("function");
            }
            if let Some(id) = &call.id {
                told["id"] = json!(id);
            }
            told["function"] = function;
            told
        };
        Json::Array(self.calls.iter().map(call).collect()).to_string()
    }

    /// Forgets what was told; how it ended, its sums and that it called stay.
    fn forget(&mut self) {
        let Self { finish, cumulative_logprob, has_calls, cached_tokens, .. } = *self;
        *self = Self { finish, cumulative_logprob, has_calls, cached_tokens, ..Self::default() };
    }
}

/// Writes the log-probabilities of one token as vLLM's backend does: by token id.
fn describe(score: &Score) -> Json {
    let entry = |scored: &Scored, rank: u32| {
        let value =
            json!({"logprob": scored.finite(), "rank": rank, "decoded_token": scored.text()});
        (scored.id.to_string(), value)
    };
    let drawn = entry(&score.token, score.rank);
    let top = score.top.iter().zip(1u32..).map(|(scored, rank)| entry(scored, rank));
    Json::Object(top.chain([drawn]).collect())
}

#[cfg(test)]
mod tests;
