//! From tokens to the tensors of responses.
//!
//! Tokens are pushed as they come and decoded only when a response is taken, so what waits here is
//! bounded by the requests' token limits. A streamed answer has one response for each token that
//! adds text, whatever number of tokens came at once; the last one carries the finish reasons.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use engine::{FinishReason, GenerateOutput, InferOutput, TokenId, TokenLogprobs, Usage};
use serde_json::{Value as Json, json};
use tensor::{Datatype, Tensor};

use crate::completion::{Completion, Prompts};
use crate::profile;
use crate::stop::StopMatcher;
use crate::tokenizer::{Decoder, TokenTable};

/// The answer to one request: a state between token streams and responses.
#[derive(Debug)]
pub struct Answer {
    table: Arc<TokenTable>,
    completion: Completion,
    prompt_tokens: Vec<u32>,
    /// `[prompts, n]`: the elements of every output.
    continuations: Vec<Continuation>,
    /// Prompts whose continuations have all ended, still to be told.
    stopped: Vec<usize>,
    is_done: bool,
}

/// One continuation of one prompt.
#[derive(Debug)]
struct Continuation {
    /// Tokens that are not decoded yet.
    queue: VecDeque<TokenId>,
    logprobs: VecDeque<TokenLogprobs>,
    /// How the engine ended it, to be looked at after the queue.
    end: Option<(FinishReason, Usage)>,
    decoder: Decoder,
    matcher: StopMatcher,
    min_tokens: u32,
    drawn: u32,
    finish: Option<FinishReason>,
    /// What the next response tells.
    news: News,
    cumulative_logprob: f64,
}

#[derive(Debug, Default)]
struct News {
    text: String,
    tokens: u32,
    logprobs: Vec<Json>,
    has_ended: bool,
}

impl Answer {
    pub(crate) fn new(
        table: Arc<TokenTable>,
        completion: Completion,
        prompt_tokens: Vec<u32>,
    ) -> Self {
        let continuation = |row: usize| Continuation {
            queue: VecDeque::new(),
            logprobs: VecDeque::new(),
            end: None,
            decoder: Decoder::default(),
            matcher: StopMatcher::new(completion.stops.clone(), completion.has_stop_in_output),
            min_tokens: completion.rows[row].stop.min_tokens,
            drawn: 0,
            finish: None,
            news: News::default(),
            cumulative_logprob: 0.0,
        };
        let choices = completion.choices.get() as usize;
        let count = completion.rows.len() * choices;
        let continuations = (0..count).map(|index| continuation(index / choices)).collect();
        let stopped = Vec::new();
        Self { table, completion, prompt_tokens, continuations, stopped, is_done: false }
    }

    /// Adds tokens of a prompt's continuation.
    pub fn push(&mut self, row: usize, output: GenerateOutput) {
        let choices = self.completion.choices.get() as usize;
        let index = row * choices + output.index as usize;
        let Some(continuation) = self.continuations.get_mut(index) else {
            return;
        };
        if continuation.finish.is_some() {
            return;
        }
        continuation.queue.extend(output.tokens);
        continuation.logprobs.extend(output.logprobs);
        continuation.end = output.finish.zip(output.usage.or(Some(Usage::default())));
    }

    /// Returns the next response, if what was pushed makes one.
    #[expect(clippy::should_implement_trait, reason = "none means not yet, not the end")]
    pub fn next(&mut self) -> Option<InferOutput> {
        if self.is_done {
            return None;
        }
        loop {
            let mut has_moved = false;
            for index in 0..self.continuations.len() {
                has_moved |= self.advance(index);
            }
            let news = || self.continuations.iter().map(|continuation| &continuation.news);
            let has_news = news().any(|news| news.has_ended || !news.text.is_empty());
            let is_over = self.continuations.iter().all(|c| c.finish.is_some());
            if is_over || has_news && self.completion.is_streaming {
                self.is_done = is_over;
                return Some(self.respond());
            }
            if !has_moved {
                return None;
            }
        }
    }

    /// Returns the prompts whose token streams are needed no longer; each is told once.
    pub fn stopped(&mut self) -> impl Iterator<Item = usize> + use<> {
        std::mem::take(&mut self.stopped).into_iter()
    }

    /// Returns whether the last response was taken.
    pub fn is_done(&self) -> bool {
        self.is_done
    }

    /// Decodes one token of a continuation; returns whether there was something to do.
    fn advance(&mut self, index: usize) -> bool {
        let continuation = &mut self.continuations[index];
        if continuation.finish.is_some() {
            return false;
        }
        let token = continuation.queue.pop_front();
        if let Some(token) = token {
            let bytes = self.table.bytes(token, self.completion.shows_special_tokens);
            continuation.take(token, bytes, &self.table);
        }
        if continuation.queue.is_empty() && continuation.finish.is_none() {
            continuation.end();
        }
        if continuation.finish.is_some() {
            let choices = self.completion.choices.get() as usize;
            let row = index / choices;
            let siblings = &self.continuations[row * choices..][..choices];
            if siblings.iter().all(|sibling| sibling.finish.is_some()) {
                self.stopped.push(row);
            }
            return true;
        }
        token.is_some()
    }

    fn respond(&mut self) -> InferOutput {
        let wanted = self.completion.wanted;
        let count = self.continuations.len();
        let shape = || vec![count as i64];
        let choices = self.completion.choices.get() as usize;
        let mut tensors = Vec::with_capacity(2);
        if wanted.text {
            tensors.push(self.texts(shape()));
        }
        if wanted.finish_reason {
            tensors.push(self.finish_reasons(shape()));
        }
        if wanted.cumulative_logprob {
            let sums = self.continuations.iter().map(|c| c.cumulative_logprob as f32);
            tensors.push(Tensor::from_values(profile::CUMULATIVE_LOGPROB, shape(), sums));
        }
        if wanted.logprobs {
            let continuations = self.continuations.iter_mut();
            let lists = continuations.map(|c| Json::Array(std::mem::take(&mut c.news.logprobs)));
            let lists = lists.map(|list| list.to_string());
            tensors.push(Tensor::from_elements(profile::LOGPROBS, shape(), lists));
        }
        if wanted.num_input_tokens {
            let tokens = &self.prompt_tokens;
            let counts = (0..count).map(|index| tokens.get(index / choices).copied().unwrap_or(0));
            tensors.push(Tensor::from_values(profile::NUM_INPUT_TOKENS, shape(), counts));
        }
        if wanted.num_output_tokens {
            let counts = self.continuations.iter().map(|continuation| continuation.news.tokens);
            tensors.push(Tensor::from_values(profile::NUM_OUTPUT_TOKENS, shape(), counts));
        }
        for continuation in &mut self.continuations {
            continuation.news.text.clear();
            continuation.news.tokens = 0;
            continuation.news.has_ended = false;
        }
        InferOutput { tensors, is_last: self.is_done, ..InferOutput::default() }
    }

    fn texts(&self, shape: Vec<i64>) -> Tensor {
        let continuations = &self.continuations;
        match &self.completion.prompts {
            Prompts::Texts(prompts) if self.completion.has_prompt_in_output => {
                let choices = self.completion.choices.get() as usize;
                let prompts = prompts.iter().flat_map(|text| std::iter::repeat_n(text, choices));
                let texts = prompts.zip(continuations).map(|(p, c)| [p, &*c.news.text].concat());
                Tensor::from_elements(profile::TEXT_OUTPUT, shape, texts)
            }
            _ => {
                let texts = continuations.iter().map(|continuation| &continuation.news.text);
                Tensor::from_elements(profile::TEXT_OUTPUT, shape, texts)
            }
        }
    }

    fn finish_reasons(&self, shape: Vec<i64>) -> Tensor {
        let unfinished = if self.completion.wanted.says_none { "None" } else { "" };
        let word = |c: &Continuation| c.finish.map_or(unfinished, FinishReason::as_str);
        let name = profile::FINISH_REASON;
        match &self.continuations[..] {
            // Nearly every response is this one, and its bytes are always the same.
            [one] if word(one).is_empty() => {
                Tensor::new(name, Datatype::Bytes, shape, Bytes::from_static(&[0; 4]))
            }
            all => Tensor::from_elements(name, shape, all.iter().map(word)),
        }
    }
}

impl Continuation {
    /// Takes a token into the text.
    fn take(&mut self, token: TokenId, bytes: &[u8], table: &TokenTable) {
        self.drawn += 1;
        self.news.tokens += 1;
        if let Some(logprobs) = self.logprobs.pop_front() {
            self.cumulative_logprob += f64::from(logprobs.logprob);
            self.news.logprobs.push(describe(token, &logprobs, table));
        }
        if self.matcher.is_idle() {
            return self.decoder.push(bytes, &mut self.news.text);
        }
        let mut piece = String::new();
        self.decoder.push(bytes, &mut piece);
        if self.drawn <= self.min_tokens {
            self.news.text.push_str(&piece);
        } else if self.matcher.push(&piece, &mut self.news.text) {
            self.finish(FinishReason::Stop);
        }
    }

    /// Ends as the engine said, if it did.
    fn end(&mut self) {
        let Some((reason, usage)) = self.end.take() else {
            return;
        };
        let mut rest = String::new();
        self.decoder.finish(&mut rest);
        let is_stopped = self.matcher.push(&rest, &mut self.news.text);
        self.matcher.flush(&mut self.news.text);
        // The engine also counts the token that ended the text, which is not in the text.
        self.news.tokens += usage.completion_tokens.saturating_sub(self.drawn);
        self.finish(if is_stopped { FinishReason::Stop } else { reason });
    }

    fn finish(&mut self, reason: FinishReason) {
        self.finish = Some(reason);
        self.news.has_ended = true;
        self.queue.clear();
        self.logprobs.clear();
    }
}

/// Writes the log-probabilities of one token as vLLM's backend does: by token id.
fn describe(token: TokenId, logprobs: &TokenLogprobs, table: &TokenTable) -> Json {
    let text = |token| String::from_utf8_lossy(table.bytes(token, true)).into_owned();
    let entry = |token: TokenId, logprob: f32, rank: u32| {
        // JSON has no minus infinity: the least float stands for it.
        let logprob = logprob.max(f32::MIN);
        (token.to_string(), json!({"logprob": logprob, "rank": rank, "decoded_token": text(token)}))
    };
    let drawn = entry(token, logprobs.logprob, logprobs.rank);
    let top = logprobs.top.iter().zip(1u32..);
    let top = top.map(|(&(token, logprob), rank)| entry(token, logprob, rank));
    Json::Object(top.chain([drawn]).collect())
}

#[cfg(test)]
mod tests;
