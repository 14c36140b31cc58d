//! Softmax weights of a row of logits, and what choosing among them and scoring ask of all of them.
//!
//! Sums run over sixteen fixed lanes of fixed parts of a row, so that they vectorise and always add
//! in the same order.

use super::isa::dispatched;
use super::vector::{LANES, exp};

/// The logit distance, after temperature, beyond which a token weighs nothing.
const NEGLIGIBLE: f32 = -80.0;

/// The weights of a part of a row, of which there is a sum; the last part may have fewer.
pub(crate) const PART: usize = 64 * LANES;

/// The groups of a part, which share out all that is in it.
pub(crate) const GROUPS: usize = LANES;

/// How logits become weights: `e^((logit - top) * inverse)`; 0 where the exponent is below -80 or
/// the weight below `floor`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Softmax {
    /// The largest logit, whose weight is 1.
    pub top: f32,
    /// One by the temperature.
    pub inverse: f32,
    /// The least weight that stays.
    pub floor: f32,
}

impl Softmax {
    /// Returns the weight of a logit: 0 if it is too far below `top`, as minus infinity is, and if it
    /// is not a number.
    #[inline(always)]
    fn weight<const FMA: bool>(&self, logit: f32) -> f32 {
        let distance = (logit - self.top) * self.inverse;
        let weight = exp::<FMA>(distance);
        if distance >= NEGLIGIBLE && weight >= self.floor { weight } else { 0.0 }
    }
}

dispatched! {
    /// Writes the weights of logits and the sum of each part of them.
    pub(crate) fn weigh(softmax: &Softmax, logits: &[f32], weights: &mut [f32], sums: &mut [f32])
        = weigh_body
}

#[inline(always)]
fn weigh_body<const FMA: bool>(
    softmax: &Softmax,
    logits: &[f32],
    weights: &mut [f32],
    sums: &mut [f32],
) {
    let softmax = *softmax;
    for ((logits, weights), sum) in logits.chunks(PART).zip(weights.chunks_mut(PART)).zip(sums) {
        let mut lanes = [0f32; LANES];
        let (logits, logits_left) = logits.as_chunks::<LANES>();
        let (weights, weights_left) = weights.as_chunks_mut::<LANES>();
        for (logits, weights) in logits.iter().zip(weights) {
            for ((lane, logit), weight) in lanes.iter_mut().zip(logits).zip(weights) {
                *weight = softmax.weight::<FMA>(*logit);
                *lane += *weight;
            }
        }
        for ((lane, logit), weight) in lanes.iter_mut().zip(logits_left).zip(weights_left) {
            *weight = softmax.weight::<FMA>(*logit);
            *lane += *weight;
        }
        *sum = lanes.iter().sum();
    }
}

dispatched! {
    /// Writes the sum of the weights of logits, and keeps none of them.
    pub(crate) fn sum_weights(softmax: &Softmax, logits: &[f32], out: &mut f64) = sum_weights_body
}

#[inline(always)]
fn sum_weights_body<const FMA: bool>(softmax: &Softmax, logits: &[f32], out: &mut f64) {
    let (mut weights, mut sum) = ([0f32; PART], [0f32]);
    *out = 0.0;
    for logits in logits.chunks(PART) {
        weigh_body::<FMA>(softmax, logits, &mut weights[..logits.len()], &mut sum);
        *out += f64::from(sum[0]);
    }
}

dispatched! {
    /// Makes weights 0 that are below `least`, and those that equal it from place `end` on; writes
    /// the sum of each part of what is left.
    pub(crate) fn cut(weights: &mut [f32], least: f32, end: usize, sums: &mut [f32]) = cut_body
}

#[inline(always)]
fn cut_body<const FMA: bool>(weights: &mut [f32], least: f32, end: usize, sums: &mut [f32]) {
    let above = least.next_up();
    for ((part, sum), first) in weights.chunks_mut(PART).zip(sums).zip((0..).step_by(PART)) {
        let (before, after) = part.split_at_mut(end.saturating_sub(first).min(part.len()));
        for (weights, least) in [(before, least), (after, above)] {
            for weight in weights {
                *weight = if *weight >= least { *weight } else { 0.0 };
            }
        }
        *sum = sum_of_part(part, 0.0);
    }
}

dispatched! {
    /// Writes the sum of the weights that are at least `least`.
    pub(crate) fn sum_from(weights: &[f32], least: f32, out: &mut f64) = sum_from_body
}

#[inline(always)]
fn sum_from_body<const FMA: bool>(weights: &[f32], least: f32, out: &mut f64) {
    *out = 0.0;
    // In a closure it might be compiled without the instructions of its caller.
    for part in weights.chunks(PART) {
        *out += f64::from(sum_of_part(part, least));
    }
}

/// Returns the sum of the weights of a part that are at least `least`.
#[inline(always)]
fn sum_of_part(part: &[f32], least: f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let (whole, left) = part.as_chunks::<LANES>();
    for weights in whole {
        for (lane, weight) in lanes.iter_mut().zip(weights) {
            *lane += if *weight >= least { *weight } else { 0.0 };
        }
    }
    for (lane, weight) in lanes.iter_mut().zip(left) {
        *lane += if *weight >= least { *weight } else { 0.0 };
    }
    lanes.iter().sum()
}

dispatched! {
    /// Writes the largest number of each group of each part: minus infinity if it has none.
    pub(crate) fn maxima(row: &[f32], out: &mut [f32]) = maxima_body
}

#[inline(always)]
fn maxima_body<const FMA: bool>(row: &[f32], out: &mut [f32]) {
    for (part, out) in row.chunks(PART).zip(out.as_chunks_mut::<LANES>().0) {
        let mut lanes = [f32::NEG_INFINITY; LANES];
        let (whole, left) = part.as_chunks::<LANES>();
        for values in whole {
            for (lane, value) in lanes.iter_mut().zip(values) {
                *lane = if *value > *lane { *value } else { *lane };
            }
        }
        for (lane, value) in lanes.iter_mut().zip(left) {
            *lane = if *value > *lane { *value } else { *lane };
        }
        *out = lanes;
    }
}

dispatched! {
    /// Counts the numbers of a row that are above a bound.
    pub(crate) fn count_above(row: &[f32], bound: f32, out: &mut u32) = count_above_body
}

#[inline(always)]
fn count_above_body<const FMA: bool>(row: &[f32], bound: f32, out: &mut u32) {
    *out = row.iter().map(|&value| u32::from(value > bound)).sum();
}

dispatched! {
    /// Writes the largest number of a row to `out`: minus infinity if there is none, and NaN if one
    /// of them is NaN.
    pub(crate) fn maximum(row: &[f32], out: &mut f32) = maximum_body
}

#[inline(always)]
fn maximum_body<const FMA: bool>(row: &[f32], out: &mut f32) {
    let (mut lanes, mut odd) = ([f32::NEG_INFINITY; LANES], [false; LANES]);
    let (chunks, rest) = row.as_chunks::<LANES>();
    for chunk in chunks {
        for ((lane, odd), &value) in lanes.iter_mut().zip(&mut odd).zip(chunk) {
            *lane = if value > *lane { value } else { *lane };
            *odd |= value.is_nan();
        }
    }
    let is_odd = odd.contains(&true) || rest.iter().any(|value| value.is_nan());
    let most = lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |a, &b| a.max(b));
    *out = if is_odd { f32::NAN } else { most };
}

#[cfg(test)]
mod tests;
