//! Chooses a token by the softmax weights of a row: min-p, top-k and top-p.
//!
//! Nothing sorts a whole row. How top-p is drawn is told where it is: [`Weights::draw`].

use engine::{Sampling, TokenId};

use super::weights::Weights;
use crate::cpu::Isa;
use crate::cpu::softmax::Softmax;
use crate::generate::top_k::TopK;

/// The most tokens of top-k that are found and make a short row of their own, which is quicker for so
/// few; where they are more, the others are cut out of the row.
const FEW: usize = 512;

/// The weights of a row, and memory that choosing needs.
#[derive(Debug)]
pub(super) struct Choice {
    all: Weights,
    /// Those of the few heaviest.
    few: Weights,
    heaviest: TopK,
}

impl Choice {
    /// Makes one without weights.
    pub(super) fn new(isa: Isa) -> Self {
        Self { all: Weights::new(isa), few: Weights::new(isa), heaviest: TopK::new(isa) }
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
        self.all.set(&Softmax { top, inverse: 1.0 / temperature, floor: min_p }, logits);
        match top_k as usize {
            top_k if top_k == 0 || top_k >= logits.len() => {}
            top_k if top_k <= FEW => {
                let found = self.heaviest.find(self.all.each(), top_k, f32::MIN_POSITIVE);
                self.few.copy(found.iter().map(|&(weight, _)| weight));
                return self.few.draw(top_p, random).map(|place| found[place].1);
            }
            top_k => self.all.keep(top_k),
        }
        self.all.draw(top_p, random).map(|place| place as TokenId)
    }
}

#[cfg(test)]
mod tests;
