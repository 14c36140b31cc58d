//! Chooses a token by the softmax weights of a row: min-p, top-k and top-p.
//!
//! Nothing sorts a whole row. Top-p draws from all tokens and keeps what it has drawn if all that is
//! heavier is not enough yet; if it is, neither that token nor a lighter one is in the set, and it
//! draws again from the rest. What is kept is distributed as in the set.

use engine::{Sampling, TokenId};

use crate::cpu::Isa;
use crate::cpu::softmax::{PART, Softmax, cut, sum_from, weigh};
use crate::generate::heaviest::Heaviest;

/// The weights of a row, and memory that choosing needs.
#[derive(Debug)]
pub(super) struct Choice {
    isa: Isa,
    weights: Vec<f32>,
    /// The sum of each part of the weights.
    sums: Vec<f32>,
    /// Sums of parts of some of the weights.
    heavier: Vec<f32>,
    heaviest: Heaviest,
}

impl Choice {
    /// Makes one without weights.
    pub(super) fn new(isa: Isa) -> Self {
        let (weights, sums, heavier) = Default::default();
        Self { isa, weights, sums, heavier, heaviest: Heaviest::new(isa) }
    }

    /// Chooses from the softmax of what min-p, top-k and top-p leave, by a random number from 0 to
    /// below 1; `top` is the largest logit. None if no token has a weight.
    pub(super) fn choose(
        &mut self,
        logits: &[f32],
        top: f32,
        sampling: &Sampling,
        random: f64,
    ) -> Option<TokenId> {
        let &Sampling { temperature, top_k, top_p, min_p, .. } = sampling;
        self.weights.resize(logits.len(), 0.0);
        self.sums.resize(logits.len().div_ceil(PART), 0.0);
        let softmax = Softmax { top, inverse: 1.0 / temperature, floor: min_p };
        weigh(self.isa, &softmax, logits, &mut self.weights, &mut self.sums);
        match top_k as usize {
            top_k if 0 < top_k && top_k < logits.len() => {
                self.heaviest.find(&self.weights, top_k, f32::MIN_POSITIVE);
                among_heaviest(self.heaviest.found(), top_p, random)
            }
            _ if top_p < 1.0 => self.among_enough(top_p, random),
            _ => self.among_all(random),
        }
    }

    /// Chooses from all weights: by the sums which part, then which of it.
    fn among_all(&self, random: f64) -> Option<TokenId> {
        let mut left = random * total(&self.sums);
        let mut last = None;
        for (index, (part, &sum)) in self.weights.chunks(PART).zip(&self.sums).enumerate() {
            if left >= f64::from(sum) {
                left -= f64::from(sum);
                continue;
            }
            for (offset, &weight) in part.iter().enumerate().filter(|(_, weight)| **weight > 0.0) {
                last = Some((index * PART + offset) as TokenId);
                left -= f64::from(weight);
                if left < 0.0 {
                    return last;
                }
            }
        }
        // Rounding can leave a rest behind the last token that has a weight.
        last.or_else(|| self.weights.iter().rposition(|&w| w > 0.0).map(|token| token as TokenId))
    }

    /// Chooses from the smallest set of the heaviest that has a share `top_p` of the weight; of
    /// equally heavy tokens those with lower ids are in it first.
    fn among_enough(&mut self, top_p: f32, random: f64) -> Option<TokenId> {
        // Above 0, so that the heaviest token is always in the set.
        let enough = (total(&self.sums) * f64::from(top_p)).max(f64::MIN_POSITIVE);
        let mut more = fastrand::Rng::with_seed(random.to_bits());
        let mut token = self.among_all(random)?;
        while self.heavier_than(token) >= enough {
            let weight = self.weights[token as usize];
            let (before, after) = self.weights.split_at_mut(token as usize);
            cut(self.isa, before, weight);
            cut(self.isa, after, weight.next_up());
            sum_from(self.isa, &self.weights, 0.0, &mut self.sums);
            token = self.among_all(more.f64())?;
        }
        Some(token)
    }

    /// Returns the weight of all tokens that are in the set before this one.
    fn heavier_than(&mut self, token: TokenId) -> f64 {
        let weight = self.weights[token as usize];
        let (before, after) = self.weights.split_at(token as usize);
        let mut heavier = 0.0;
        for (weights, least) in [(before, weight), (after, weight.next_up())] {
            self.heavier.clear();
            self.heavier.resize(weights.len().div_ceil(PART), 0.0);
            sum_from(self.isa, weights, least, &mut self.heavier);
            heavier += total(&self.heavier);
        }
        heavier
    }
}

/// Chooses from tokens of which the heaviest come first, as far as they have a share `top_p` of their
/// weight.
fn among_heaviest(tokens: &[(f32, TokenId)], top_p: f32, random: f64) -> Option<TokenId> {
    let sum = |tokens: &[(f32, TokenId)]| tokens.iter().map(|t| f64::from(t.0)).sum::<f64>();
    let mut kept = tokens;
    if top_p < 1.0 {
        let mut left = sum(kept) * f64::from(top_p);
        let last = kept.iter().position(|&(weight, _)| {
            left -= f64::from(weight);
            left <= 0.0
        });
        kept = last.map_or(kept, |last| &kept[..=last]);
    }
    let mut left = random * sum(kept);
    let chosen = kept.iter().find(|&&(weight, _)| {
        left -= f64::from(weight);
        left < 0.0
    });
    // Rounding can leave a rest behind the last.
    chosen.or(kept.last()).map(|&(_, token)| token)
}

fn total(sums: &[f32]) -> f64 {
    sums.iter().copied().map(f64::from).sum()
}

#[cfg(test)]
mod tests;
