//! From tokens to deltas: decoding, stop texts and parsing of every continuation of a request.
//!
//! Tokens are pushed as they come and decoded only when deltas are taken, so what waits here is
//! bounded by the request's token limits, and a slow reader still gets a delta for each token.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use engine::{FinishReason, GenerateOutput, TokenId, TokenLogprobs, Usage};

use crate::delta::{Delta, Finish, Score, Scored, TextOutput};
use crate::parser::{Event, OutputParser};
use crate::stop::StopMatcher;
use crate::tokenizer::{Decoder, TokenTable};

/// How texts are read off the tokens of one request.
#[derive(Clone, Debug)]
pub(crate) struct Reading {
    pub table: Arc<TokenTable>,
    /// Tokens that steer are text too.
    pub shows_special_tokens: bool,
    /// Steering tokens that the parser has to see.
    pub markers: Arc<HashSet<TokenId>>,
    pub stops: Vec<String>,
    pub has_stop_in_output: bool,
    pub has_token_ids: bool,
    /// Nothing is told of a prompt's texts before its scores are known.
    pub has_prompt_scores: bool,
    /// Calls after the first are left out.
    pub is_single_call: bool,
    /// The whole text is calls: what is left of one that was cut off is no content.
    pub is_calls_only: bool,
}

/// The continuations of one request: `[prompts, choices]`.
#[derive(Debug)]
pub struct Continuations {
    reading: Reading,
    all: Vec<Continuation>,
    choices: usize,
    prompts: Vec<Arc<[TokenId]>>,
    prompt_tokens: Arc<[u32]>,
    /// Prompts whose continuations have all ended, still to be told.
    stopped: Vec<usize>,
    is_done: bool,
}

/// One prompt, as its continuations begin.
#[derive(Debug)]
pub(crate) struct Beginning {
    pub tokens: Arc<[TokenId]>,
    pub min_tokens: u32,
    /// Told before the text.
    pub echo: Option<String>,
    pub parser: Option<OutputParser>,
}

/// One continuation of one prompt.
#[derive(Debug)]
struct Continuation {
    /// Tokens that are not decoded yet.
    queue: VecDeque<TokenId>,
    logprobs: VecDeque<TokenLogprobs>,
    end_logprobs: Option<Score>,
    prompt_logprobs: Vec<Score>,
    /// How the engine ended it, to be looked at after the queue.
    end: Option<(FinishReason, Usage)>,
    echo: Option<String>,
    decoder: Decoder,
    matcher: StopMatcher,
    parser: Option<OutputParser>,
    min_tokens: u32,
    drawn: u32,
    /// The prompt's scores are there, if they were asked for.
    is_scored: bool,
    is_over: bool,
    /// What the next delta tells.
    news: Delta,
}

impl Continuations {
    pub(crate) fn new(reading: Reading, beginnings: Vec<Beginning>, choices: usize) -> Self {
        let prompt_tokens = beginnings.iter().map(|one| one.tokens.len() as u32).collect();
        let mut all = Vec::with_capacity(beginnings.len() * choices);
        for beginning in &beginnings {
            for _ in 0..choices {
                let index = all.len() as u32;
                all.push(Continuation {
                    queue: VecDeque::new(),
                    logprobs: VecDeque::new(),
                    end_logprobs: None,
                    prompt_logprobs: Vec::new(),
                    end: None,
                    echo: beginning.echo.clone(),
                    decoder: Decoder::default(),
                    matcher: StopMatcher::new(reading.stops.clone(), reading.has_stop_in_output),
                    parser: beginning.parser.clone(),
                    min_tokens: beginning.min_tokens,
                    drawn: 0,
                    is_scored: !reading.has_prompt_scores,
                    is_over: false,
                    news: Delta { index, ..Delta::default() },
                });
            }
        }
        let prompts = beginnings.into_iter().map(|beginning| beginning.tokens).collect();
        let stopped = Vec::new();
        Self { reading, all, choices, prompts, prompt_tokens, stopped, is_done: false }
    }

    /// Adds tokens of a prompt's continuation.
    pub fn push(&mut self, row: usize, output: GenerateOutput) {
        let index = row * self.choices + output.index as usize;
        let Some(continuation) = self.all.get_mut(index) else {
            return;
        };
        if continuation.is_over {
            return;
        }
        let table = &self.reading.table;
        let told = output.prompt_logprobs.iter().zip(self.prompts[row].iter());
        let scores = told.map(|(found, &token)| match found {
            Some(found) => score(token, found, table),
            None => Score { token: scored(token, f32::NAN, table), rank: 0, top: Vec::new() },
        });
        let scores: Vec<Score> = scores.collect();
        continuation.queue.extend(output.tokens);
        continuation.logprobs.extend(output.logprobs);
        continuation.end_logprobs =
            output.end_logprobs.map(|(token, found)| score(token, &found, table));
        continuation.end = output.finish.zip(output.usage.or(Some(Usage::default())));
        if !scores.is_empty() {
            // The first choice brings them for all.
            for sibling in &mut self.all[row * self.choices..][..self.choices] {
                sibling.prompt_logprobs.clone_from(&scores);
                sibling.is_scored = true;
            }
        }
    }

    /// Returns the next news, if what was pushed makes any: at most a token of each continuation.
    #[expect(clippy::should_implement_trait, reason = "none means not yet, not the end")]
    pub fn next(&mut self) -> Option<TextOutput> {
        if self.is_done {
            return None;
        }
        loop {
            let (mut has_moved, mut deltas) = (false, Vec::new());
            for index in 0..self.all.len() {
                has_moved |= self.advance(index);
                deltas.extend(self.all[index].news());
            }
            let is_last = self.all.iter().all(|continuation| continuation.is_over);
            if !deltas.is_empty() || is_last {
                self.is_done = is_last;
                let prompt_tokens = self.prompt_tokens.clone();
                return Some(TextOutput { deltas, prompt_tokens, is_last, ..Default::default() });
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

    /// Returns whether the last news was taken.
    pub fn is_done(&self) -> bool {
        self.is_done
    }

    /// Decodes one token of a continuation; returns whether there was something to do.
    fn advance(&mut self, index: usize) -> bool {
        let continuation = &mut self.all[index];
        if continuation.is_over || !continuation.is_scored {
            return false;
        }
        let has_output = !continuation.queue.is_empty() || continuation.end.is_some();
        if has_output && let Some(prompt) = continuation.echo.take() {
            continuation.news.events.push(Event::Content(prompt));
        }
        let token = continuation.queue.pop_front();
        if let Some(token) = token {
            continuation.take(token, &self.reading);
        }
        if continuation.queue.is_empty() && !continuation.is_over {
            continuation.end(&self.reading);
        }
        if continuation.is_over {
            let row = index / self.choices;
            let siblings = &self.all[row * self.choices..][..self.choices];
            if siblings.iter().all(|sibling| sibling.is_over) {
                self.stopped.push(row);
            }
            return true;
        }
        token.is_some()
    }
}

impl Continuation {
    /// Takes a token into the text.
    fn take(&mut self, token: TokenId, reading: &Reading) {
        self.drawn += 1;
        self.news.tokens += 1;
        if reading.has_token_ids {
            self.news.token_ids.push(token);
        }
        if let Some(logprobs) = self.logprobs.pop_front() {
            self.news.logprobs.push(score(token, &logprobs, &reading.table));
        }
        let is_shown = reading.shows_special_tokens
            || !reading.markers.is_empty() && reading.markers.contains(&token);
        let mut piece = String::new();
        self.decoder.push(reading.table.bytes(token, is_shown), &mut piece);
        if self.matcher.is_idle() || self.drawn <= self.min_tokens {
            return self.tell(piece, reading);
        }
        let mut safe = String::new();
        let stop = self.matcher.push(&piece, &mut safe);
        self.tell(safe, reading);
        if let Some(stop) = stop {
            let stop = Some(reading.stops[stop].clone());
            let finish = Finish { reason: FinishReason::Stop, stop, cached_tokens: 0 };
            self.finish(finish, reading);
        }
    }

    /// Ends as the engine said, if it did.
    fn end(&mut self, reading: &Reading) {
        let Some((reason, usage)) = self.end.take() else {
            return;
        };
        let (mut rest, mut safe) = (String::new(), String::new());
        self.decoder.finish(&mut rest);
        let is_stopped = self.matcher.push(&rest, &mut safe).is_some();
        self.matcher.flush(&mut safe);
        self.tell(safe, reading);
        // The engine also counts the token that ended the text, which is not in the text.
        self.news.tokens += usage.completion_tokens.saturating_sub(self.drawn);
        self.news.end_logprobs = self.end_logprobs.take();
        let reason = if is_stopped { FinishReason::Stop } else { reason };
        let cached_tokens = usage.cached_tokens;
        self.finish(Finish { reason, stop: None, cached_tokens }, reading);
    }

    /// Adds text to the news.
    fn tell(&mut self, text: String, reading: &Reading) {
        if text.is_empty() {
            return;
        }
        match &mut self.parser {
            None => self.news.events.push(Event::Content(text)),
            Some(parser) => parser.push(&text, &mut self.news.events),
        }
        self.drop_calls(reading);
    }

    /// Leaves out the calls that are too many, and what is left of those that were cut off.
    fn drop_calls(&mut self, reading: &Reading) {
        if reading.is_single_call || reading.is_calls_only {
            self.news.events.retain(|event| match event {
                Event::CallBegun { index, .. } | Event::Arguments { index, .. } => {
                    *index == 0 || !reading.is_single_call
                }
                Event::Content(_) => !reading.is_calls_only,
                Event::Reasoning(_) => true,
            });
        }
    }

    fn finish(&mut self, finish: Finish, reading: &Reading) {
        if let Some(parser) = &mut self.parser {
            parser.finish(&mut self.news.events);
        }
        self.drop_calls(reading);
        self.news.finish = Some(finish);
        self.is_over = true;
        self.queue.clear();
        self.logprobs.clear();
    }

    /// Takes the news, if there are any.
    fn news(&mut self) -> Option<Delta> {
        if self.news.events.is_empty() && self.news.finish.is_none() {
            return None;
        }
        let index = self.news.index;
        let mut news = std::mem::replace(&mut self.news, Delta { index, ..Delta::default() });
        let is_thought = |event: &Event| matches!(event, Event::Reasoning(_));
        if !news.events.is_empty() && news.events.iter().all(is_thought) {
            news.reasoning_tokens = news.tokens;
        }
        news.prompt_logprobs = std::mem::take(&mut self.prompt_logprobs);
        Some(news)
    }
}

fn scored(id: TokenId, logprob: f32, table: &TokenTable) -> Scored {
    Scored { id, bytes: table.bytes(id, true).to_vec(), logprob }
}

fn score(token: TokenId, logprobs: &TokenLogprobs, table: &TokenTable) -> Score {
    Score {
        token: scored(token, logprobs.logprob, table),
        rank: logprobs.rank,
        top: logprobs.top.iter().map(|&(id, logprob)| scored(id, logprob, table)).collect(),
    }
}
