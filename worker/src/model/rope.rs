//! Rotary positions: how fast each pair of a head's dimensions turns, and what scaling for long
//! contexts makes of that.

use std::f64::consts::TAU;

/// How fast a head's pairs turn.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Radians a position, one for each pair.
    pub frequencies: Vec<f64>,
    /// What cosine and sine are multiplied by.
    pub magnitude: f64,
}

/// A way to stretch positions to a longer context than a model was trained on first.
#[derive(Clone, Debug, PartialEq)]
pub enum Scaling {
    /// None.
    None,
    /// All frequencies are divided.
    Linear {
        /// By what.
        factor: f64,
    },
    /// Llama 3.1's: slow pairs are slowed down, fast ones are not, those between in part.
    Llama3 {
        /// By what the slow ones are divided.
        factor: f64,
        /// Turns within the original context from which on a pair is not slow.
        low: f64,
        /// Turns within the original context from which on a pair is fast.
        high: f64,
        /// The original context, in tokens.
        original: f64,
    },
    /// YaRN (arXiv 2309.00071): as Llama 3.1's in the index of the pair, and larger attention.
    Yarn {
        /// By what the slow ones are divided.
        factor: f64,
        /// Turns within the original context from which on a pair is fast.
        fast: f64,
        /// Turns within the original context up to which a pair is slow.
        slow: f64,
        /// The original context, in tokens.
        original: f64,
        /// What cosine and sine are multiplied by; none: as the paper has it.
        magnitude: Option<f64>,
    },
    /// One divisor for each pair, as GGUF's `rope_freqs.weight`.
    Factors(Vec<f32>),
}

impl Rope {
    /// Computes the frequencies of heads of `head_dim` dimensions.
    pub fn new(base: f64, head_dim: usize, scaling: &Scaling) -> Self {
        let pairs = head_dim / 2;
        let plain = (0..pairs).map(|pair| base.powf(-(pair as f64) / pairs as f64));
        let mut frequencies: Vec<f64> = plain.collect();
        let mut magnitude = 1.0;
        match scaling {
            Scaling::None => {}
            Scaling::Linear { factor } => frequencies.iter_mut().for_each(|f| *f /= factor),
            Scaling::Llama3 { factor, low, high, original } => {
                for frequency in &mut frequencies {
                    let turns = original * *frequency / TAU;
                    let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                    *frequency *= kept + (1.0 - kept) / factor;
                }
            }
            Scaling::Yarn { factor, fast, slow, original, magnitude: given } => {
                // The pair that turns so many times within the original context.
                let pair = |turns: f64| {
                    head_dim as f64 * (original / (turns * TAU)).ln() / (2.0 * base.ln())
                };
                let first = pair(*fast).floor().max(0.0);
                let last = pair(*slow).ceil().min(head_dim as f64 - 1.0);
                let width = if first == last { 0.001 } else { last - first };
                for (index, frequency) in frequencies.iter_mut().enumerate() {
                    let slowed = ((index as f64 - first) / width).clamp(0.0, 1.0);
                    *frequency *= (1.0 - slowed) + slowed / factor;
                }
                magnitude = given.unwrap_or_else(|| 0.1 * factor.max(1.0).ln() + 1.0);
            }
            Scaling::Factors(divisors) => {
                for (frequency, divisor) in frequencies.iter_mut().zip(divisors) {
                    *frequency /= f64::from(*divisor);
                }
            }
        }
        Self { frequencies, magnitude }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scaling_slows_what_turns_seldom_and_keeps_what_turns_often() {
        let plain = Rope::new(10_000.0, 64, &Scaling::None);
        assert_eq!((plain.frequencies[0], plain.magnitude), (1.0, 1.0));
        assert!((plain.frequencies[16] - 0.01).abs() < 1e-12);
        let llama = Scaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 256.0 };
        let yarn =
            Scaling::Yarn { factor: 8.0, fast: 32.0, slow: 1.0, original: 256.0, magnitude: None };
        for scaling in [llama, yarn] {
            let scaled = Rope::new(10_000.0, 64, &scaling);
            let ratios = plain.frequencies.iter().zip(&scaled.frequencies).map(|(p, s)| p / s);
            let ratios: Vec<f64> = ratios.collect();
            assert_eq!((ratios[0], ratios[31]), (1.0, 8.0), "{scaling:?}");
            assert!(ratios.is_sorted(), "{scaling:?}: {ratios:?}");
            assert!(ratios.iter().any(|ratio| *ratio > 1.01 && *ratio < 7.9), "{scaling:?}");
        }
        let linear = Rope::new(10_000.0, 64, &Scaling::Linear { factor: 4.0 });
        assert!(linear.frequencies.iter().zip(&plain.frequencies).all(|(l, p)| l * 4.0 == *p));
        let factors = Rope::new(10_000.0, 4, &Scaling::Factors(vec![1.0, 2.0]));
        assert_eq!(factors.frequencies, [1.0, 0.005]);
    }
}
