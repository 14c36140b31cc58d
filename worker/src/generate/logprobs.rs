//! Log-probabilities of a drawn token and of the best alternatives.

use engine::{TokenId, TokenLogprobs};

/// Returns the natural-log probabilities under the softmax of the untouched logits.
pub(super) fn logprobs(logits: &[f32], drawn: TokenId, top: usize) -> TokenLogprobs {
    let largest = logits.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
    let sum: f64 = logits.iter().map(|&logit| f64::from((logit - largest).exp())).sum();
    let normalizer = largest + sum.ln() as f32;
    let mut best: Vec<(TokenId, f32)> = Vec::with_capacity(top + 1);
    for (token, &logit) in logits.iter().enumerate() {
        if best.len() == top && best.last().is_none_or(|&(_, worst)| logit <= worst) {
            continue;
        }
        let place = best.partition_point(|&(_, other)| other >= logit);
        best.insert(place, (token as TokenId, logit));
        best.truncate(top);
    }
    best.iter_mut().for_each(|(_, logit)| *logit -= normalizer);
    let own = logits.get(drawn as usize).copied().unwrap_or(f32::NEG_INFINITY);
    let rank = 1 + logits.iter().filter(|&&logit| logit > own).count() as u32;
    TokenLogprobs { logprob: own - normalizer, rank, top: best }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_come_first_and_probabilities_sum_to_one() {
        let logits = [0.5, 3.0, -1.0, 3.0, 2.0];
        let found = logprobs(&logits, 4, 5);
        let tokens: Vec<TokenId> = found.top.iter().map(|(token, _)| *token).collect();
        assert_eq!(tokens, [1, 3, 4, 0, 2]);
        let sum: f32 = found.top.iter().map(|(_, logprob)| logprob.exp()).sum();
        assert!((sum - 1.0).abs() < 1e-6);
        assert_eq!((found.logprob, found.rank), (found.top[2].1, 3));
        assert!(logprobs(&logits, 0, 0).top.is_empty());
        assert_eq!(logprobs(&logits, 0, 2).top.len(), 2);
    }
}
