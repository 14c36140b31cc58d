//! How the next token is drawn and when to stop.

use crate::{Error, Result, TokenId};

/// How the next token is drawn from the logits. The default is greedy.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Softmax temperature, at least 0 and `0.0..=2.0` by convention; 0 is greedy.
    pub temperature: f32,
    /// Keeps the `k` most likely tokens; 0 keeps all.
    pub top_k: u32,
    /// Keeps the smallest set of tokens whose probability reaches this, in `(0, 1]`.
    pub top_p: f32,
    /// Drops tokens less likely than this share of the most likely one, in `[0, 1]`.
    pub min_p: f32,
    /// Divides (positive) or multiplies (negative) the logits of tokens seen in the prompt or
    /// the output, in `[0.01, 10]`; 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted from the logits of tokens seen in the output, in `[-2, 2]`.
    pub presence_penalty: f32,
    /// Subtracted once for each time a token was seen in the output, in `[-2, 2]`.
    pub frequency_penalty: f32,
    /// Makes the draw repeatable; without it each request draws its own.
    pub seed: Option<u64>,
    /// Added to the logits of single tokens, in `[-100, 100]`; each token stands here once.
    pub logit_bias: Vec<(TokenId, f32)>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            seed: None,
            logit_bias: Vec::new(),
        }
    }
}

impl Sampling {
    /// Checks that the numbers are in their ranges, temperatures to any height; which tokens there
    /// are is the engine's to know.
    ///
    /// Errors: one that is not, by name.
    pub fn check(&self) -> Result<()> {
        let table = [
            ("temperature", self.temperature, 0.0..=f32::MAX, "of at least 0"),
            ("top_p", self.top_p, f32::MIN_POSITIVE..=1.0, "above 0 and at most 1"),
            ("min_p", self.min_p, 0.0..=1.0, "from 0 to 1"),
            ("repetition_penalty", self.repetition_penalty, 0.01..=10.0, "from 0.01 to 10"),
            ("presence_penalty", self.presence_penalty, -2.0..=2.0, "from -2 to 2"),
            ("frequency_penalty", self.frequency_penalty, -2.0..=2.0, "from -2 to 2"),
        ];
        let biases = self.logit_bias.iter();
        let biases =
            biases.map(|&(_, bias)| ("logit_bias", bias, -100.0..=100.0, "from -100 to 100"));
        for (name, got, range, expected) in table.into_iter().chain(biases) {
            if !range.contains(&got) {
                let text = format!("`{name}`: expected a finite number {expected}, got {got}");
                return Err(Error::invalid(text).with_param(name));
            }
        }
        Ok(())
    }
}

/// When a continuation ends. Stop strings are text and belong to the bridge above.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StopConditions {
    /// The most tokens to draw; at least 1.
    pub max_tokens: u32,
    /// Before this many tokens neither end-of-sequence nor stop tokens are drawn.
    pub min_tokens: u32,
    /// Tokens that end the continuation, besides the model's own.
    pub stop_token_ids: Vec<TokenId>,
    /// Draws on past the model's end-of-sequence tokens.
    pub ignore_eos: bool,
}

impl StopConditions {
    /// Makes conditions that only bound the number of tokens.
    pub fn after(max_tokens: u32) -> Self {
        Self { max_tokens, ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Finds a number.
    type Field = fn(&mut Sampling) -> &mut f32;

    #[test]
    fn numbers_out_of_their_ranges_are_refused_by_name() {
        assert!(Sampling::default().check().is_ok());
        let edges = Sampling {
            temperature: 20.0,
            top_p: f32::MIN_POSITIVE,
            min_p: 1.0,
            repetition_penalty: 0.01,
            logit_bias: vec![(7, -100.0), (8, 100.0)],
            presence_penalty: -2.0,
            frequency_penalty: 2.0,
            ..Sampling::default()
        };
        assert!(edges.check().is_ok());
        let table: [(&str, Field, &[f32]); 6] = [
            ("temperature", |sampling| &mut sampling.temperature, &[-0.1, f32::NAN, f32::INFINITY]),
            ("top_p", |sampling| &mut sampling.top_p, &[0.0, 1.1, f32::NAN]),
            ("min_p", |sampling| &mut sampling.min_p, &[-0.1, 1.1, f32::NAN]),
            (
                "repetition_penalty",
                |sampling| &mut sampling.repetition_penalty,
                &[0.0, 10.1, f32::INFINITY, f32::NAN],
            ),
            ("presence_penalty", |sampling| &mut sampling.presence_penalty, &[2.1, f32::NAN]),
            ("frequency_penalty", |sampling| &mut sampling.frequency_penalty, &[-2.1, f32::NAN]),
        ];
        for (name, field, wrong) in table {
            for &number in wrong {
                let mut sampling = Sampling::default();
                *field(&mut sampling) = number;
                let error = sampling.check().unwrap_err();
                assert!(error.message().starts_with(&format!("`{name}`: expected")), "{error}");
                assert!(error.message().ends_with(&format!("got {number}")), "{error}");
            }
        }
        for bias in [100.1, -100.1, f32::NAN] {
            let sampling =
                Sampling { logit_bias: vec![(1, 0.0), (2, bias)], ..Sampling::default() };
            assert_eq!(sampling.check().unwrap_err().param(), Some("logit_bias"));
        }
    }
}
