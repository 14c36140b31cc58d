//! Softmax weights of a row of logits, and what choosing among them and scoring ask of all of them.
//!
//! Sums run over sixteen fixed lanes of fixed parts of a row, so that they vectorise and always add
//! in the same order.

use super::isa::dispatched;
use super::vector::{LANES, exp};

/// The logit distance, after temperature, from which on a token weighs nothing.
const NEGLIGIBLE: f32 = -80.0;

/// The weights of a part of a row, of which there is a sum; the last part may have fewer.
pub const PART: usize = 64 * LANES;

/// How logits become weights: `e^((logit - top) * inverse)`, 0 below `floor`.
#[derive(Clone, Copy, Debug)]
pub struct Softmax {
    /// The largest logit, whose weight is 1.
    pub top: f32,
    /// One by the temperature.
    pub inverse: f32,
    /// The least weight that stays.
    pub floor: f32,
}

impl Softmax {
    /// Returns the weight of a logit; 0 for minus infinity and for what is not a number.
    #[inline(always)]
    fn weight<const FMA: bool>(&self, logit: f32) -> f32 {
        let distance = (logit - self.top) * self.inverse;
        let weight = exp::<FMA>(distance);
        if distance >= NEGLIGIBLE && weight >= self.floor { weight } else { 0.0 }
    }
}

dispatched! {
    /// Writes the weights of logits and the sum of each part of them.
    pub fn weigh(softmax: &Softmax, logits: &[f32], weights: &mut [f32], sums: &mut [f32])
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
    /// Makes weights below `least` 0.
    pub fn cut(weights: &mut [f32], least: f32) = cut_body
}

#[inline(always)]
fn cut_body<const FMA: bool>(weights: &mut [f32], least: f32) {
    for weight in weights {
        *weight = if *weight >= least { *weight } else { 0.0 };
    }
}

dispatched! {
    /// Writes the sum of the weights of each part that are at least `least`.
    pub fn sum_from(weights: &[f32], least: f32, sums: &mut [f32]) = sum_from_body
}

#[inline(always)]
fn sum_from_body<const FMA: bool>(weights: &[f32], least: f32, sums: &mut [f32]) {
    for (weights, sum) in weights.chunks(PART).zip(sums) {
        let mut lanes = [0f32; LANES];
        let (whole, left) = weights.as_chunks::<LANES>();
        for weights in whole {
            for (lane, weight) in lanes.iter_mut().zip(weights) {
                *lane += if *weight >= least { *weight } else { 0.0 };
            }
        }
        for (lane, weight) in lanes.iter_mut().zip(left) {
            *lane += if *weight >= least { *weight } else { 0.0 };
        }
        *sum = lanes.iter().sum();
    }
}

/// The groups of a part, which share out all that is in it.
pub const GROUPS: usize = LANES;

dispatched! {
    /// Writes the largest number of each group of each part: minus infinity if it has none.
    pub fn maxima(row: &[f32], out: &mut [f32]) = maxima_body
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
    pub fn count_above(row: &[f32], bound: f32, out: &mut u32) = count_above_body
}

#[inline(always)]
fn count_above_body<const FMA: bool>(row: &[f32], bound: f32, out: &mut u32) {
    *out = row.iter().map(|&value| u32::from(value > bound)).sum();
}

dispatched! {
    /// Writes the largest number of a row to `out`: minus infinity if there is none, and NaN if one
    /// of them is NaN.
    pub fn maximum(row: &[f32], out: &mut f32) = maximum_body
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
mod tests {
    use super::*;
    use crate::cpu::Isa;

    #[test]
    fn the_largest_number_is_none_where_one_is_none() {
        for isa in Isa::available() {
            let largest = |row: &[f32]| {
                let mut out = 0.0;
                maximum(isa, row, &mut out);
                out
            };
            let mut row: Vec<f32> = (0..83).map(|i| -(i as f32 - 40.0).abs()).collect();
            row[3] = f32::NEG_INFINITY;
            assert_eq!((largest(&row), largest(&[])), (0.0, f32::NEG_INFINITY));
            for place in [0, 31, 82] {
                let mut row = row.clone();
                row[place] = f32::NAN;
                assert!(largest(&row).is_nan(), "{isa:?} {place}");
            }
        }
    }

    #[test]
    fn weights_and_their_sums_match_a_float64_reference() {
        const COUNT: usize = 2 * PART + 301;
        let logits: Vec<f32> = (0..COUNT).map(|i| (i as f32 * 0.37).sin() * 60.0).collect();
        let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        for (isa, floor) in Isa::available().into_iter().flat_map(|isa| [(isa, 0.0), (isa, 0.05)]) {
            let (mut weights, mut sums) = (vec![7.0; COUNT], [7.0; 3]);
            let softmax = Softmax { top, inverse: 0.8, floor };
            weigh(isa, &softmax, &logits, &mut weights, &mut sums);
            for (logit, &weight) in logits.iter().zip(&weights) {
                let distance = f64::from(logit - top) * f64::from(softmax.inverse);
                let exact = if distance < -80.0 { 0.0 } else { distance.exp() };
                let (weight, floor) = (f64::from(weight), f64::from(floor));
                if weight == 0.0 {
                    assert!(exact < 1e-30 || exact < floor * 1.001, "{isa:?}: {exact} is cut");
                    continue;
                }
                assert!((weight - exact).abs() <= 2e-5 * exact, "{isa:?}: {weight}, not {exact}");
                assert!(weight >= floor, "{isa:?}: {weight} is below the floor");
            }
            let exact_sums = |least: f32| {
                let part = |part: &[f32]| -> f64 {
                    part.iter().filter(|weight| **weight >= least).copied().map(f64::from).sum()
                };
                weights.chunks(PART).map(part).collect::<Vec<_>>()
            };
            let close = |sums: [f32; 3], exact: Vec<f64>| {
                let far = |(sum, exact): (f32, f64)| (f64::from(sum) - exact).abs() > 1e-6 * exact;
                assert!(!sums.into_iter().zip(exact).any(far), "{isa:?} {sums:?}");
            };
            close(sums, exact_sums(0.0));
            let before = sums;
            sum_from(isa, &weights, 0.0, &mut sums);
            assert_eq!(sums, before, "{isa:?}: both add up in the same order");
            sum_from(isa, &weights, 0.5, &mut sums);
            close(sums, exact_sums(0.5));
            let (mut largest, mut left) = ([7.0; 3 * LANES], weights.clone());
            maxima(isa, &weights, &mut largest);
            let group = |group: usize| (group / LANES * PART + group % LANES..COUNT).step_by(LANES);
            for (at, largest) in largest.into_iter().enumerate() {
                let group = group(at).take(PART / LANES).map(|token| weights[token]);
                assert_eq!(largest, group.fold(0.0, f32::max), "{isa:?} {at}");
            }
            let mut above = 0;
            count_above(isa, &weights, 0.5, &mut above);
            let heavy = weights.iter().filter(|weight| **weight > 0.5);
            assert_eq!(above as usize, heavy.count(), "{isa:?}");
            cut(isa, &mut left, 0.5);
            let kept = |&weight: &f32| if weight >= 0.5 { weight } else { 0.0 };
            assert!(left == weights.iter().map(kept).collect::<Vec<_>>(), "{isa:?}");
        }
    }
}
