//! Draws the next token: constraint, biases, penalties, temperature, min-p, top-k, top-p, in the
//! order of vLLM.
//!
//! With a seed the draws of a continuation depend on the seed, its index and its logits alone.

use std::collections::HashMap;

use engine::{Sampling, TokenId};

use crate::cpu::Isa;
use crate::cpu::softmax::maximum;

mod choice;
mod weights;

use choice::Choice;

/// Below this temperature a draw is greedy: the inverse would overflow, and nothing else is left.
const COLDEST: f32 = 1e-5;

/// Logits that are looked at as a whole, which vectorises.
const CHUNK: usize = 1024;

/// Memory that draws of all sequences share.
#[derive(Debug)]
pub(crate) struct Scratch {
    isa: Isa,
    /// Logits of which biases, penalties and rules have taken theirs.
    logits: Vec<f32>,
    choice: Choice,
}

impl Scratch {
    /// Makes it for some instructions.
    pub(crate) fn new(isa: Isa) -> Self {
        Self { isa, logits: Vec::new(), choice: Choice::new(isa) }
    }
}

/// The state of one continuation's draws.
#[derive(Debug)]
pub(crate) struct Sampler {
    sampling: Sampling,
    random: fastrand::Rng,
    /// What penalties need to know; none if there are none.
    seen: Option<HashMap<TokenId, Seen>>,
}

/// The tokens that may be drawn.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rules<'a> {
    /// A bit for each token, the lowest first; none: all may be drawn.
    pub allowed: Option<&'a [u32]>,
    /// Tokens that may not be drawn all the same.
    pub barred: &'a [&'a [TokenId]],
}

#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    /// Times it was drawn.
    drawn: u32,
}

impl Sampler {
    /// Makes the sampler of a continuation.
    pub(crate) fn new(sampling: &Sampling, prompt: &[TokenId], index: u32) -> Self {
        let random = match sampling.seed {
            // An odd multiplier keeps the seeds of continuations apart.
            Some(seed) => fastrand::Rng::with_seed(
                seed ^ u64::from(index).wrapping_mul(0x9E37_79B9_7F4A_7C15),
            ),
            None => fastrand::Rng::new(),
        };
        let has_penalties = sampling.repetition_penalty != 1.0
            || sampling.presence_penalty != 0.0
            || sampling.frequency_penalty != 0.0;
        let in_prompt = || prompt.iter().map(|&token| (token, Seen::default())).collect();
        Self { sampling: sampling.clone(), random, seen: has_penalties.then(in_prompt) }
    }

    /// Goes on behind tokens that were drawn by another sampler of the same kind.
    pub(super) fn resume(&mut self, drawn: &[TokenId]) {
        let is_greedy = self.is_greedy();
        for &token in drawn {
            self.note(token);
            if !is_greedy {
                self.random.f64();
            }
        }
    }

    fn is_greedy(&self) -> bool {
        self.sampling.temperature < COLDEST || self.sampling.top_k == 1
    }

    /// Draws a token that the rules leave in place of one drawn just now. It takes no draw of the
    /// seed for itself, so that each token of a continuation stands for exactly one.
    pub(super) fn draw_instead(
        &mut self,
        logits: &[f32],
        rules: Rules<'_>,
        scratch: &mut Scratch,
    ) -> Option<TokenId> {
        let aside = fastrand::Rng::with_seed(!self.random.get_seed());
        let random = std::mem::replace(&mut self.random, aside);
        let token = self.draw(logits, rules, scratch);
        self.random = random;
        token
    }

    /// Draws a token that the rules leave; none if there is none, or the logit of one that they leave
    /// is NaN or infinity.
    pub(crate) fn draw(
        &mut self,
        logits: &[f32],
        rules: Rules<'_>,
        scratch: &mut Scratch,
    ) -> Option<TokenId> {
        let has_rules =
            rules.allowed.is_some() || rules.barred.iter().any(|tokens| !tokens.is_empty());
        let is_plain = self.seen.is_none() && self.sampling.logit_bias.is_empty() && !has_rules;
        if is_plain {
            return self.draw_from(logits, scratch);
        }
        let mut changed = std::mem::take(&mut scratch.logits);
        changed.clear();
        changed.extend_from_slice(logits);
        for &(token, bias) in &self.sampling.logit_bias {
            if let Some(logit) = changed.get_mut(token as usize) {
                *logit += bias;
            }
        }
        self.penalize(&mut changed);
        rules.apply(&mut changed);
        let token = self.draw_from(&changed, scratch);
        scratch.logits = changed;
        token
    }

    /// Draws by the logits as they are.
    fn draw_from(&mut self, logits: &[f32], scratch: &mut Scratch) -> Option<TokenId> {
        let top = largest(scratch.isa, logits)?;
        match self.is_greedy() {
            true => first(top, logits),
            false => scratch.choice.choose(logits, top, &self.sampling, self.random.f64()),
        }
    }

    /// Notes a token that was drawn and is kept.
    pub(super) fn note(&mut self, token: TokenId) {
        if let Some(seen) = &mut self.seen {
            seen.entry(token).or_default().drawn += 1;
        }
    }

    fn penalize(&self, logits: &mut [f32]) {
        let Sampling { repetition_penalty, presence_penalty, frequency_penalty, .. } =
            self.sampling;
        for (&token, seen) in self.seen.iter().flatten() {
            let Some(logit) = logits.get_mut(token as usize) else {
                continue;
            };
            *logit = match *logit > 0.0 {
                true => *logit / repetition_penalty,
                false => *logit * repetition_penalty,
            };
            if seen.drawn > 0 {
                *logit -= presence_penalty + frequency_penalty * seen.drawn as f32;
            }
        }
    }
}

impl Rules<'_> {
    /// Takes the probability of what may not be drawn.
    fn apply(&self, logits: &mut [f32]) {
        if let Some(allowed) = self.allowed {
            let words = allowed.iter().copied().chain(std::iter::repeat(0));
            for (chunk, word) in logits.chunks_mut(u32::BITS as usize).zip(words) {
                if word == 0 {
                    chunk.fill(f32::NEG_INFINITY);
                    continue;
                }
                for (bit, logit) in chunk.iter_mut().enumerate() {
                    if word >> bit & 1 == 0 {
                        *logit = f32::NEG_INFINITY;
                    }
                }
            }
        }
        for &token in self.barred.iter().copied().flatten() {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
}

/// Returns the largest logit; none if one is NaN or infinity, or none can be drawn.
fn largest(isa: Isa, logits: &[f32]) -> Option<f32> {
    let mut top = f32::NEG_INFINITY;
    maximum(isa, logits, &mut top);
    top.is_finite().then_some(top)
}

/// Returns the first token whose logit is `top`.
fn first(top: f32, logits: &[f32]) -> Option<TokenId> {
    let has_top = |chunk: &[f32]| chunk.iter().fold(false, |found, &logit| found | (logit == top));
    let chunk = logits.chunks(CHUNK).position(has_top)? * CHUNK;
    let offset = logits[chunk..].iter().position(|&logit| logit == top)?;
    Some((chunk + offset) as TokenId)
}

#[cfg(test)]
mod tests;
