//! The vector of a text: the mean of its tokens' hidden states, scaled to length 1.

use engine::{Embedding, Error, Result};

/// The sum of the hidden states so far.
#[derive(Debug, Default)]
pub(super) struct Pooling {
    sum: Vec<f64>,
    /// Tokens that are in it.
    tokens: usize,
}

impl Pooling {
    /// Adds the hidden state of the token at `position`, unless it is there already: a text may
    /// have been computed before. The order is that of the text, so the sum does not depend on
    /// how the text was cut.
    pub(super) fn add(&mut self, position: usize, hidden: &[f32]) {
        if position != self.tokens {
            return;
        }
        self.tokens += 1;
        self.sum.resize(hidden.len(), 0.0);
        for (sum, &value) in self.sum.iter_mut().zip(hidden) {
            *sum += f64::from(value);
        }
    }

    /// Returns the vector; zeros stay zeros. The number of tokens has no part in the direction.
    ///
    /// Errors: the model gave what is no number.
    pub(super) fn finish(&self) -> Result<Embedding> {
        let length = self.sum.iter().map(|value| value * value).sum::<f64>().sqrt();
        if !length.is_finite() {
            return Err(Error::internal("the model gave a vector of what are not numbers"));
        }
        let scale = if length > 0.0 { length.recip() } else { 0.0 };
        Ok(Embedding { values: self.sum.iter().map(|value| (value * scale) as f32).collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_has_length_one() {
        let mut pooling = Pooling::default();
        pooling.add(0, &[6.0, 0.0]);
        pooling.add(0, &[6.0, 0.0]);
        pooling.add(1, &[0.0, 8.0]);
        assert_eq!(pooling.finish().unwrap().values, [0.6, 0.8]);
        pooling = Pooling::default();
        pooling.add(0, &[0.0, 0.0]);
        assert_eq!(pooling.finish().unwrap().values, [0.0, 0.0]);
        pooling.add(1, &[f32::INFINITY, 0.0]);
        assert!(pooling.finish().is_err());
    }
}
