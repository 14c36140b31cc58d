//! Draws the next token: constraint, biases, penalties, temperature, min-p, top-k, top-p, in the
//! order of vLLM.
//!
//! With a seed the draws of a continuation depend on the seed, its index and its logits alone.

use std::collections::HashMap;

use engine::{Sampling, TokenId};

use crate::cpu::Isa;
use crate::cpu::vector::{maximum, weigh};

/// Candidates that are sorted first when looking for the top-p set; most sets are smaller.
const FIRST_SORTED: usize = 64;

/// Weights that are summed at once when all tokens are candidates.
const SUMMED: usize = 64;

/// Below this temperature a draw is greedy: the inverse would overflow, and nothing else is left.
const COLDEST: f32 = 1e-5;

/// Memory that draws of all sequences share.
#[derive(Debug)]
pub(super) struct Scratch {
    isa: Isa,
    logits: Vec<f32>,
    sums: Vec<f32>,
    candidates: Vec<(f32, TokenId)>,
}

impl Default for Scratch {
    fn default() -> Self {
        let (logits, sums, candidates) = Default::default();
        Self { isa: Isa::best(), logits, sums, candidates }
    }
}

/// The state of one continuation's draws.
#[derive(Debug)]
pub(super) struct Sampler {
    sampling: Sampling,
    random: fastrand::Rng,
    /// What penalties need to know; none if there are none.
    seen: Option<HashMap<TokenId, Seen>>,
}

/// The tokens that may be drawn.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rules<'a> {
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
    pub(super) fn new(sampling: &Sampling, prompt: &[TokenId], index: u32) -> Self {
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
    /// is no number.
    pub(super) fn draw(
        &mut self,
        logits: &[f32],
        rules: Rules<'_>,
        scratch: &mut Scratch,
    ) -> Option<TokenId> {
        let has_rules =
            rules.allowed.is_some() || rules.barred.iter().any(|tokens| !tokens.is_empty());
        let is_plain = self.seen.is_none() && self.sampling.logit_bias.is_empty() && !has_rules;
        let is_greedy = self.is_greedy();
        if is_plain && is_greedy {
            return largest(scratch.isa, logits);
        }
        scratch.logits.clear();
        scratch.logits.extend_from_slice(logits);
        for &(token, bias) in &self.sampling.logit_bias {
            if let Some(logit) = scratch.logits.get_mut(token as usize) {
                *logit += bias;
            }
        }
        self.penalize(&mut scratch.logits);
        rules.apply(&mut scratch.logits);
        match is_greedy {
            true => largest(scratch.isa, &scratch.logits),
            false => self.choose(scratch),
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

    /// Draws from the softmax of what min-p, top-k and top-p leave.
    fn choose(&mut self, scratch: &mut Scratch) -> Option<TokenId> {
        let Scratch { isa, logits, sums, candidates } = scratch;
        let top = logits[largest(*isa, logits)? as usize];
        weigh(*isa, logits, top, 1.0 / self.sampling.temperature);
        let Sampling { top_k, top_p, min_p, .. } = self.sampling;
        if top_k == 0 && top_p >= 1.0 && min_p <= 0.0 {
            return self.choose_among_all(logits, sums);
        }
        candidates.clear();
        let weighted = logits.iter().zip(0..).filter(|&(&weight, _)| weight > 0.0);
        candidates.extend(weighted.filter(|&(&w, _)| w >= min_p).map(|(&w, token)| (w, token)));
        let top_k = top_k as usize;
        if top_k > 0 && top_k < candidates.len() {
            candidates.select_nth_unstable_by(top_k - 1, likelier);
            candidates.truncate(top_k);
        }
        if top_p < 1.0 {
            keep_top_p(candidates, top_p);
        }
        let total: f64 = candidates.iter().map(|&(weight, _)| f64::from(weight)).sum();
        let mut left = self.random.f64() * total;
        for &(weight, token) in candidates.iter() {
            left -= f64::from(weight);
            if left < 0.0 {
                return Some(token);
            }
        }
        candidates.last().map(|&(_, token)| token)
    }

    /// Draws from all weights: first which 64, then which of them.
    fn choose_among_all(&mut self, weights: &[f32], sums: &mut Vec<f32>) -> Option<TokenId> {
        sums.clear();
        sums.extend(weights.chunks(SUMMED).map(|chunk| chunk.iter().sum::<f32>()));
        let total: f64 = sums.iter().map(|&sum| f64::from(sum)).sum();
        let mut left = self.random.f64() * total;
        let mut last = None;
        for (index, (chunk, &sum)) in weights.chunks(SUMMED).zip(sums.iter()).enumerate() {
            if left >= f64::from(sum) {
                left -= f64::from(sum);
                continue;
            }
            for (offset, &weight) in chunk.iter().enumerate().filter(|(_, weight)| **weight > 0.0) {
                last = Some((index * SUMMED + offset) as TokenId);
                left -= f64::from(weight);
                if left < 0.0 {
                    return last;
                }
            }
        }
        // Rounding can leave a rest behind the last token that has a weight.
        last.or_else(|| weights.iter().rposition(|&w| w > 0.0).map(|token| token as TokenId))
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

/// Orders candidates: heavier first, then lower ids, so that the order is total.
fn likelier(a: &(f32, TokenId), b: &(f32, TokenId)) -> std::cmp::Ordering {
    b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
}

/// Keeps the smallest set of the heaviest candidates that has a share `top_p` of the weight.
fn keep_top_p(candidates: &mut Vec<(f32, TokenId)>, top_p: f32) {
    let total: f64 = candidates.iter().map(|&(weight, _)| f64::from(weight)).sum();
    let enough = total * f64::from(top_p);
    let (mut sorted, mut sum) = (0, 0.0);
    let mut next = FIRST_SORTED;
    while sorted < candidates.len() {
        let end = next.min(candidates.len());
        if end < candidates.len() {
            candidates[sorted..].select_nth_unstable_by(end - sorted - 1, likelier);
        }
        candidates[sorted..end].sort_unstable_by(likelier);
        for (index, &(weight, _)) in candidates.iter().enumerate().take(end).skip(sorted) {
            sum += f64::from(weight);
            if sum >= enough {
                candidates.truncate(index + 1);
                return;
            }
        }
        sorted = end;
        next *= 4;
    }
}

/// Returns the first of the largest logits; none if one is NaN or none can be drawn.
fn largest(isa: Isa, logits: &[f32]) -> Option<TokenId> {
    let mut top = f32::NEG_INFINITY;
    maximum(isa, logits, &mut top);
    if top.is_nan() || top == f32::NEG_INFINITY {
        return None;
    }
    // A chunk is looked at as a whole, which vectorises; the search inside it is short.
    let has_top = |chunk: &[f32]| chunk.iter().fold(false, |found, &logit| found | (logit == top));
    let chunk = logits.chunks(SUMMED).position(has_top)? * SUMMED;
    let offset = logits[chunk..].iter().position(|&logit| logit == top)?;
    Some((chunk + offset) as TokenId)
}

#[cfg(test)]
mod tests;
