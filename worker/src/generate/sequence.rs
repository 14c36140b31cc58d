//! One continuation: its prompt, its blocks, what is computed and what was drawn.

use std::sync::Arc;
use std::time::Instant;

use engine::{Error, FinishReason, StopConditions, TokenId, Usage};

use super::logprobs::logprobs;
use super::output::Output;
use super::sampler::{Sampler, Scratch};
use super::waiting::Job;
use crate::runner::{BlockId, Entry, Limits};

/// One continuation of a request, in the batch.
#[derive(Debug)]
pub(super) struct Sequence {
    pub output: Arc<Output>,
    pub blocks: Vec<BlockId>,
    pub deadline: Option<Instant>,
    /// It has ended and only its blocks are left.
    pub is_over: bool,
    /// Tokens of the next forward pass.
    pub planned: usize,
    index: u32,
    prompt: Arc<[TokenId]>,
    /// Tokens of which keys and values are in the cache.
    computed: usize,
    last: [TokenId; 1],
    drawn: u32,
    max_tokens: u32,
    stop: StopConditions,
    sampler: Sampler,
    logprobs: Option<u32>,
}

impl Sequence {
    pub(super) fn new(job: &Job, index: u32, blocks: Vec<BlockId>, limits: &Limits) -> Self {
        let request = &job.request;
        let room = (limits.context_length - request.tokens.len()) as u32;
        Self {
            output: job.output.clone(),
            blocks,
            deadline: job.context.deadline(),
            is_over: false,
            planned: 0,
            index,
            prompt: request.tokens.clone(),
            computed: 0,
            last: [0],
            drawn: 0,
            max_tokens: request.stop.max_tokens.min(room),
            stop: request.stop.clone(),
            sampler: Sampler::new(&request.sampling, &request.tokens, index),
            logprobs: request.logprobs,
        }
    }

    /// Returns whether the whole prompt is computed.
    pub(super) fn is_decoding(&self) -> bool {
        self.computed >= self.prompt.len()
    }

    /// Returns how many tokens of the prompt are not computed.
    pub(super) fn prompt_left(&self) -> usize {
        self.prompt.len().saturating_sub(self.computed)
    }

    /// Returns what this sequence brings to the next forward pass.
    pub(super) fn entry(&self) -> Entry<'_> {
        let start = self.computed;
        let (tokens, wants_logits) = match self.is_decoding() {
            true => (&self.last[..], true),
            false => {
                let end = start + self.planned;
                (&self.prompt[start..end], end == self.prompt.len())
            }
        };
        Entry { tokens, start, blocks: &self.blocks, wants_logits }
    }

    /// Counts the tokens of a forward pass; returns whether logits were asked for.
    pub(super) fn advance(&mut self) -> bool {
        self.computed += self.planned;
        self.is_decoding()
    }

    /// Draws the next token and hands it out.
    pub(super) fn take(&mut self, logits: &[f32], eos_tokens: &[TokenId], scratch: &mut Scratch) {
        let eos = if self.stop.ignore_eos { &[] } else { eos_tokens };
        let ends =
            |token: TokenId| eos.contains(&token) || self.stop.stop_token_ids.contains(&token);
        let is_early = self.drawn < self.stop.min_tokens;
        let barred: &[&[TokenId]] = match is_early {
            true => &[eos, &self.stop.stop_token_ids],
            false => &[],
        };
        let Some(token) = self.sampler.draw(logits, barred, scratch) else {
            return self.fail("the model gave logits that are not numbers");
        };
        self.drawn += 1;
        self.last = [token];
        let (told, end) = if ends(token) {
            (None, Some(FinishReason::Stop))
        } else {
            let details = self.logprobs.map(|top| logprobs(logits, token, top as usize));
            let is_full = self.drawn >= self.max_tokens;
            (Some((token, details)), is_full.then_some(FinishReason::Length))
        };
        self.is_over = end.is_some();
        self.output.push(self.index, told, end.map(|reason| (reason, self.usage())));
    }

    /// Ends the whole request with a fault of ours.
    pub(super) fn fail(&mut self, text: &str) {
        self.output.fail(Error::internal(text));
        self.is_over = true;
    }

    fn usage(&self) -> Usage {
        Usage {
            prompt_tokens: self.prompt.len() as u32,
            completion_tokens: self.drawn,
            cached_tokens: 0,
        }
    }
}
