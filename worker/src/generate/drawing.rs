//! One continuation's draws: its limits, its constraint, its log-probabilities.

use engine::{Error, FinishReason, GenerateRequest, Result, StopConditions, TokenId};
use engine::{TokenLogprobs, Usage};

use super::logprobs::Scorer;
use super::output::Addition;
use super::sampler::{self, Rules, Sampler};
use crate::cpu::Isa;
use crate::guided::{Guide, Progress};

/// Memory that draws of all continuations share.
#[derive(Debug)]
pub(super) struct Scratch {
    sampler: sampler::Scratch,
    scorer: Scorer,
}

impl Default for Scratch {
    fn default() -> Self {
        let isa = Isa::best();
        Self { sampler: sampler::Scratch::new(isa), scorer: Scorer::new(isa) }
    }
}

/// The draws of one continuation.
#[derive(Debug)]
pub(super) struct Drawing {
    /// Which continuation.
    pub index: u32,
    /// Tokens of the prompt that were found and not computed.
    pub cached_tokens: u32,
    prompt_tokens: u32,
    drawn: u32,
    max_tokens: u32,
    stop: StopConditions,
    sampler: Sampler,
    logprobs: Option<u32>,
    guide: Option<Guide>,
    scores: Option<Scores>,
}

/// The log-probabilities of the prompt.
#[derive(Debug)]
struct Scores {
    top: usize,
    entries: Vec<Option<TokenLogprobs>>,
}

impl Scores {
    /// Returns the entries.
    ///
    /// Errors: one of them is no number.
    fn checked(self) -> Result<Vec<Option<TokenLogprobs>>> {
        let mut entries = self.entries.iter().flatten();
        match entries.any(|entry| entry.logprob.is_nan()) {
            true => Err(no_number()),
            false => Ok(self.entries),
        }
    }
}

impl Drawing {
    /// Makes a continuation that may draw up to `room` tokens.
    pub(super) fn new(
        request: &GenerateRequest,
        guide: Option<Guide>,
        index: u32,
        room: usize,
    ) -> Self {
        // One continuation speaks for the prompt that all share.
        let scores = request.prompt_logprobs.filter(|_| index == 0);
        let scores = scores.map(|top| Scores { top: top as usize, entries: vec![None] });
        let (prompt, drawn) = request.split();
        let mut sampler =
            Sampler::new(&request.sampling, prompt, request.choice_offset.wrapping_add(index));
        sampler.resume(drawn);
        Self {
            index,
            cached_tokens: 0,
            prompt_tokens: request.tokens.len() as u32,
            drawn: 0,
            max_tokens: request.stop.max_tokens.min(room as u32),
            stop: request.stop.clone(),
            sampler,
            logprobs: request.logprobs,
            guide,
            scores,
        }
    }

    /// Returns whether it wants the logits after every token of the prompt.
    pub(super) fn scores_prompt(&self) -> bool {
        self.scores.is_some()
    }

    /// Notes how likely a token of the prompt was, if that is not known already: a sequence may
    /// have been computed before.
    pub(super) fn score(
        &mut self,
        logits: &[f32],
        position: usize,
        token: TokenId,
        scratch: &mut Scratch,
    ) {
        if let Some(scores) = &mut self.scores
            && scores.entries.len() == position
        {
            scores.entries.push(Some(scratch.scorer.score(logits, token, scores.top)));
        }
    }

    /// Draws the next token, or ends.
    ///
    /// Errors: the constraint leaves no token, or the model gave what is no number.
    pub(super) fn take(
        &mut self,
        logits: &[f32],
        eos_tokens: &[TokenId],
        scratch: &mut Scratch,
    ) -> Result<Addition> {
        let scores = self.scores.take();
        let prompt_logprobs = scores.map_or(Ok(Vec::new()), Scores::checked)?;
        let ended = |reason| Addition { end: Some((reason, self.usage())), ..Addition::default() };
        let addition = match &self.guide {
            // The worker that had it before did not come to say so.
            Some(guide) if guide.is_complete() => ended(FinishReason::Stop),
            _ if self.max_tokens == 0 => ended(FinishReason::Length),
            _ => self.next(logits, eos_tokens, scratch)?,
        };
        Ok(Addition { prompt_logprobs, ..addition })
    }

    fn next(
        &mut self,
        logits: &[f32],
        eos_tokens: &[TokenId],
        scratch: &mut Scratch,
    ) -> Result<Addition> {
        let token = self.draw(logits, eos_tokens, &mut scratch.sampler)?;
        self.sampler.note(token);
        self.drawn += 1;
        // A constraint lets an end-of-sequence token through only where the text may end.
        let scorer = &mut scratch.scorer;
        let details = self.logprobs.map(|top| scorer.score(logits, token, top as usize));
        let is_eos = (!self.stop.ignore_eos || self.guide.is_some()) && eos_tokens.contains(&token);
        if is_eos || self.stop.stop_token_ids.contains(&token) {
            return Ok(Addition {
                end_logprobs: details.map(|details| (token, details)),
                end: Some((FinishReason::Stop, self.usage())),
                ..Addition::default()
            });
        }
        let progress = match &mut self.guide {
            Some(guide) => guide.accept(token)?,
            None => Progress::Open,
        };
        let end = match progress {
            Progress::Complete => Some(FinishReason::Stop),
            Progress::Open => (self.drawn >= self.max_tokens).then_some(FinishReason::Length),
        };
        let end = end.map(|reason| (reason, self.usage()));
        Ok(Addition { token: Some((token, details)), end, ..Addition::default() })
    }

    fn draw(
        &mut self,
        logits: &[f32],
        eos_tokens: &[TokenId],
        scratch: &mut sampler::Scratch,
    ) -> Result<TokenId> {
        let is_early = self.drawn < self.stop.min_tokens;
        let stop_tokens: &[TokenId] = if is_early { &self.stop.stop_token_ids } else { &[] };
        let Some(guide) = &mut self.guide else {
            let eos = if is_early && !self.stop.ignore_eos { eos_tokens } else { &[] };
            let rules = Rules { allowed: None, barred: &[eos, stop_tokens] };
            let token = self.sampler.draw(logits, rules, scratch);
            return token.ok_or_else(no_number);
        };
        // What is still waited for has to come before the end.
        let bars_eos = is_early || self.stop.ignore_eos || !guide.holds();
        let barred = &[if bars_eos { eos_tokens } else { &[] }, stop_tokens];
        let allowed = guide.allowed()?;
        let allowed = allowed.as_ref().map(|allowed| allowed.words());
        let rules = Rules { allowed, barred };
        // The constraint is stronger: what it leaves is drawn even if it ends too early.
        let mut token = self.sampler.draw(logits, rules, scratch);
        if token.is_none() {
            token = self.sampler.draw(logits, Rules { barred: &[], ..rules }, scratch);
        }
        if let Some(others) = token.and_then(|token| guide.instead_of(token)) {
            let rules = Rules { allowed: Some(others.words()), barred };
            token = self.sampler.draw_instead(logits, rules, scratch);
        }
        token.ok_or_else(no_number)
    }

    /// Returns how many tokens it may draw yet.
    pub(super) fn left(&self) -> usize {
        self.max_tokens.saturating_sub(self.drawn) as usize
    }

    /// Ends for want of memory, with what was drawn.
    pub(super) fn exhaust(&self) -> Addition {
        let end = Some((FinishReason::Length, self.usage()));
        Addition { end, ..Addition::default() }
    }

    fn usage(&self) -> Usage {
        Usage {
            prompt_tokens: self.prompt_tokens,
            completion_tokens: self.drawn,
            cached_tokens: self.cached_tokens,
        }
    }
}

fn no_number() -> Error {
    Error::internal("the model gave logits that are not numbers")
}
