//! Log-probabilities of a drawn token and of the best alternatives.

use engine::{TokenId, TokenLogprobs};

use super::top_k::TopK;
use crate::cpu::Isa;
use crate::cpu::softmax::{Softmax, count_above, maximum, sum_weights};

/// Computes log-probabilities; holds the memory that this takes.
#[derive(Debug)]
pub(crate) struct Scorer {
    isa: Isa,
    heaviest: TopK,
}

impl Scorer {
    /// Makes one.
    pub(crate) fn new(isa: Isa) -> Self {
        Self { isa, heaviest: TopK::new(isa) }
    }

    /// Returns the natural-log probabilities under the softmax of the untouched logits: NaN if one
    /// of these is NaN or infinity, or all are minus infinity.
    pub(crate) fn score(&mut self, logits: &[f32], drawn: TokenId, top: usize) -> TokenLogprobs {
        let mut largest = f32::NEG_INFINITY;
        maximum(self.isa, logits, &mut largest);
        let softmax = Softmax { top: largest, inverse: 1.0, floor: 0.0 };
        let mut sum = 0.0;
        sum_weights(self.isa, &softmax, logits, &mut sum);
        // The largest goes first: beside a large logit the rest would be lost.
        let logprob = |logit: f32| (f64::from(logit) - f64::from(largest) - sum.ln()) as f32;
        let best = self.heaviest.find(logits, top, f32::NEG_INFINITY);
        let best = best.iter().map(|&(logit, token)| (token, logprob(logit))).collect();
        let own = logits.get(drawn as usize).copied().unwrap_or(f32::NEG_INFINITY);
        let mut better = 0;
        count_above(self.isa, logits, own, &mut better);
        TokenLogprobs { logprob: logprob(own), rank: 1 + better, top: best }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_come_first_and_probabilities_sum_to_one() {
        let logits = [0.5, 3.0, -1.0, 3.0, 2.0];
        let mut scorer = Scorer::new(Isa::best());
        let found = scorer.score(&logits, 4, 5);
        let tokens: Vec<TokenId> = found.top.iter().map(|(token, _)| *token).collect();
        assert_eq!(tokens, [1, 3, 4, 0, 2]);
        let sum: f32 = found.top.iter().map(|(_, logprob)| logprob.exp()).sum();
        assert!((sum - 1.0).abs() < 1e-6);
        assert_eq!((found.logprob, found.rank), (found.top[2].1, 3));
        assert!(scorer.score(&logits, 0, 0).top.is_empty());
        assert_eq!(scorer.score(&logits, 0, 2).top.len(), 2);
    }

    #[test]
    fn probabilities_match_a_float64_reference() {
        let near: Vec<f32> = (0..5000).map(|i| (i as f32 * 0.37).sin() * 20.0).collect();
        let far = near.iter().map(|logit| logit + 1000.0).collect();
        for (isa, logits) in
            Isa::available().into_iter().flat_map(|isa| [(isa, &near), (isa, &far)])
        {
            let largest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            let distance = |token: TokenId| f64::from(logits[token as usize]) - largest;
            let sum: f64 = (0..5000).map(|token| distance(token).exp()).sum();
            for drawn in [0, 17, 4999] {
                let found = Scorer::new(isa).score(logits, drawn, 20);
                let logit = logits[drawn as usize];
                let rank = 1 + logits.iter().filter(|&&other| other > logit).count();
                assert_eq!(found.rank as usize, rank, "{isa:?} {drawn}");
                for (token, logprob) in found.top.into_iter().chain([(drawn, found.logprob)]) {
                    let off = f64::from(logprob) - (distance(token) - sum.ln());
                    assert!(off.abs() < 4e-6, "{isa:?} {token}: {logprob} is {off:e} off");
                }
            }
        }
    }

    #[test]
    fn the_largest_logits_share_their_probability() {
        let mut logits = vec![0.0; 100];
        (logits[4], logits[63]) = (1e30, 1e30);
        for isa in Isa::available() {
            let found = Scorer::new(isa).score(&logits, 63, 3);
            let half = 0.5f32.ln();
            assert_eq!((found.logprob, found.rank), (half, 1), "{isa:?}");
            assert_eq!(found.top, [(4, half), (63, half), (0, -1e30)], "{isa:?}");
        }
    }

    #[test]
    fn logits_that_are_no_numbers_have_no_probability() {
        for odd in [f32::NAN, f32::INFINITY] {
            let mut logits = vec![1.0; 100];
            logits[63] = odd;
            for drawn in [5, 63] {
                let found = Scorer::new(Isa::best()).score(&logits, drawn, 3);
                let all = found.top.iter().map(|&(_, logprob)| logprob).chain([found.logprob]);
                assert!(all.into_iter().all(f32::is_nan), "{odd} {drawn}");
            }
        }
        let nothing = [f32::NEG_INFINITY; 100];
        assert!(Scorer::new(Isa::best()).score(&nothing, 5, 3).logprob.is_nan());
    }
}
