//! Row operations of models that normalise after each layer: sums, layer norms and GELU.
//!
//! Sums run over sixteen fixed lanes, so that they vectorise and always add in the same order.

use super::isa::dispatched;
use super::vector::{LANES, exp, multiply_add};

/// A layer norm's weights, each as long as a row.
#[derive(Clone, Debug)]
pub struct LayerNorm {
    /// What a normalised number is multiplied by.
    pub weight: Vec<f32>,
    /// What is added to it then.
    pub bias: Vec<f32>,
    /// Added to the variance before the root.
    pub epsilon: f32,
}

dispatched! {
    /// Adds an update and its bias to rows, and normalises what comes out: mean 0, variance 1.
    /// `rows` and `update` are `[rows, width]`, `bias` is one row.
    pub fn add_and_norm(rows: &mut [f32], update: &[f32], bias: &[f32], norm: &LayerNorm)
        = add_and_norm_body
}

#[inline(always)]
fn add_and_norm_body<const FMA: bool>(
    rows: &mut [f32],
    update: &[f32],
    bias: &[f32],
    norm: &LayerNorm,
) {
    let width = bias.len();
    for (row, update) in rows.chunks_exact_mut(width).zip(update.chunks_exact(width)) {
        for ((sum, update), bias) in row.iter_mut().zip(update).zip(bias) {
            *sum += update + bias;
        }
        normalize::<FMA>(row, norm);
    }
}

dispatched! {
    /// Normalises rows: mean 0, variance 1, then weight and bias.
    pub fn layer_norm(rows: &mut [f32], norm: &LayerNorm) = layer_norm_body
}

#[inline(always)]
fn layer_norm_body<const FMA: bool>(rows: &mut [f32], norm: &LayerNorm) {
    for row in rows.chunks_exact_mut(norm.weight.len()) {
        normalize::<FMA>(row, norm);
    }
}

#[inline(always)]
fn normalize<const FMA: bool>(row: &mut [f32], norm: &LayerNorm) {
    let count = row.len() as f32;
    let mean = sum::<FMA>(row, |value, lane| value + lane) / count;
    let square = |value: f32, lane: f32| {
        let distance = value - mean;
        multiply_add::<FMA>(distance, distance, lane)
    };
    let variance = sum::<FMA>(row, square) / count;
    let scale = (variance + norm.epsilon).sqrt().recip();
    for ((value, weight), bias) in row.iter_mut().zip(&norm.weight).zip(&norm.bias) {
        *value = multiply_add::<FMA>((*value - mean) * scale, *weight, *bias);
    }
}

/// Folds a row over its lanes and adds these up.
#[inline(always)]
fn sum<const FMA: bool>(row: &[f32], fold: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let (chunks, rest) = row.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane = fold(value, *lane);
        }
    }
    for (lane, &value) in lanes.iter_mut().zip(rest) {
        *lane = fold(value, *lane);
    }
    lanes.iter().sum()
}

dispatched! {
    /// Adds a bias to each of the rows.
    pub fn add_bias(rows: &mut [f32], bias: &[f32]) = add_bias_body
}

#[inline(always)]
fn add_bias_body<const FMA: bool>(rows: &mut [f32], bias: &[f32]) {
    for row in rows.chunks_exact_mut(bias.len()) {
        row.iter_mut().zip(bias).for_each(|(value, bias)| *value += bias);
    }
}

dispatched! {
    /// Adds a bias to each of the rows and takes the GELU of the sum, by the error function.
    pub fn add_bias_and_gelu(rows: &mut [f32], bias: &[f32]) = add_bias_and_gelu_body
}

#[inline(always)]
fn add_bias_and_gelu_body<const FMA: bool>(rows: &mut [f32], bias: &[f32]) {
    for row in rows.chunks_exact_mut(bias.len()) {
        for (value, bias) in row.iter_mut().zip(bias) {
            *value = gelu::<FMA>(*value + bias);
        }
    }
}

/// Returns `x * (1 + erf(x / sqrt(2))) / 2`, to within 3e-7 of its size or of 1.
#[inline(always)]
fn gelu<const FMA: bool>(x: f32) -> f32 {
    // Abramowitz and Stegun 7.1.26: 1 - erf(z) = t * polynomial(t) * e^(-z^2), t = 1 / (1 + pz).
    const P: f32 = 0.327_591_1;
    const POLYNOMIAL: [f32; 4] = [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6];
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / multiply_add::<FMA>(P, z, 1.0);
    let mut sum = 1.061_405_4;
    for coefficient in POLYNOMIAL {
        sum = multiply_add::<FMA>(sum, t, coefficient);
    }
    let rest = sum * t * exp::<FMA>(-z * z);
    // For x below 0 half of the rest is the answer; above, what is left of 1.
    let half = 0.5 * rest;
    x * if x < 0.0 { half } else { 1.0 - half }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Isa;

    /// The error function by its series, or by its continued fraction where that is slow.
    fn erf(x: f64) -> f64 {
        if x.abs() > 3.0 {
            let z = x.abs();
            let fraction = (1..=60).rev().fold(z, |rest, k| z + f64::from(k) / 2.0 / rest);
            let rest = (-z * z).exp() / fraction / std::f64::consts::PI.sqrt();
            return x.signum() * (1.0 - rest);
        }
        let (mut term, mut sum) = (x, x);
        for n in 1..80 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        sum * 2.0 / std::f64::consts::PI.sqrt()
    }

    #[test]
    fn gelu_is_close_to_the_exact_one() {
        for step in -1200..1200 {
            let x = step as f32 / 100.0;
            let exact = f64::from(x) * (1.0 + erf(f64::from(x) / 2f64.sqrt())) / 2.0;
            for isa in Isa::available() {
                let mut row = vec![x - 0.5; 19];
                add_bias_and_gelu(isa, &mut row, &[0.5; 19]);
                let error = (f64::from(row[18]) - exact).abs() / exact.abs().max(1.0);
                assert!(error < 3e-7, "{isa:?} gelu({x}) = {}, error {error:e}", row[18]);
            }
        }
    }

    #[test]
    fn rows_match_a_float64_reference() {
        let row: Vec<f32> = (0..83).map(|i| (i as f32 * 0.37).sin() * 3.0 + 1.0).collect();
        let update: Vec<f32> = (0..83).map(|i| (i as f32 * 0.11).cos()).collect();
        let bias: Vec<f32> = (0..83).map(|i| i as f32 * 0.01).collect();
        let norm = LayerNorm { weight: update.clone(), bias: bias.clone(), epsilon: 1e-5 };
        let sums: Vec<f64> = (0..83)
            .map(|i| f64::from(row[i]) + f64::from(update[i]) + f64::from(bias[i]))
            .collect();
        let mean = sums.iter().sum::<f64>() / 83.0;
        let variance = sums.iter().map(|sum| (sum - mean).powi(2)).sum::<f64>() / 83.0;
        for isa in Isa::available() {
            let mut both = [row.clone(), row.clone()].concat();
            add_and_norm(isa, &mut both, &[update.clone(), update.clone()].concat(), &bias, &norm);
            let mut steps = row.clone();
            steps.iter_mut().zip(&update).zip(&bias).for_each(|((v, u), b)| *v += u + b);
            layer_norm(isa, &mut steps, &norm);
            for i in 0..83 {
                let scaled = (sums[i] - mean) / (variance + 1e-5).sqrt();
                let exact = scaled * f64::from(update[i]) + f64::from(bias[i]);
                assert!((f64::from(both[83 + i]) - exact).abs() < 2e-6, "{isa:?} {i}");
                assert_eq!((both[i], both[83 + i]), (steps[i], steps[i]), "{isa:?} {i}");
            }
        }
    }
}
