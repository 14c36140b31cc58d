//! What each kernel gives is what plain code in float64 gives, for every instruction set.

use super::*;
use crate::cpu::Isa;

/// Lengths of rows: without and with a rest behind whole lanes and whole parts.
const LENGTHS: [usize; 7] = [0, 1, LANES, LANES + 3, PART, PART + 3, 2 * PART + 301];

/// Every instruction set with rows of every length, of numbers from -60 to 60.
fn cases() -> impl Iterator<Item = (Isa, Vec<f32>)> {
    let row = |length| (0..length).map(|i| (i as f32 * 0.37).sin() * 60.0).collect();
    Isa::available().into_iter().flat_map(move |isa| LENGTHS.map(|length| (isa, row(length))))
}

fn softmax_of(logits: &[f32], floor: f32) -> Softmax {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    Softmax { top, inverse: 0.8, floor }
}

/// Returns the weights of logits and the sum of each part.
fn weighed(isa: Isa, softmax: &Softmax, logits: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let mut weights = vec![7.0; logits.len()];
    let mut sums = vec![7.0; logits.len().div_ceil(PART)];
    weigh(isa, softmax, logits, &mut weights, &mut sums);
    (weights, sums)
}

fn exact_sum(weights: &[f32]) -> f64 {
    weights.iter().copied().map(f64::from).sum()
}

fn assert_close(sum: f64, exact: f64) {
    assert!((sum - exact).abs() <= 1e-6 * exact, "{sum}, not {exact}");
}

fn assert_sums_of_parts(sums: &[f32], weights: &[f32]) {
    assert_eq!(sums.len(), weights.len().div_ceil(PART));
    for (&sum, part) in sums.iter().zip(weights.chunks(PART)) {
        assert_close(f64::from(sum), exact_sum(part));
    }
}

#[test]
fn weights_match_a_float64_reference() {
    for ((isa, logits), floor) in cases().flat_map(|case| [(case.clone(), 0.0), (case, 0.05)]) {
        let softmax = softmax_of(&logits, floor);
        let (weights, sums) = weighed(isa, &softmax, &logits);
        for (logit, &weight) in logits.iter().zip(&weights) {
            let exact = (f64::from(logit - softmax.top) * f64::from(softmax.inverse)).exp();
            if weight == 0.0 {
                let is_cut = exact < 1e-34 || exact < f64::from(floor) * 1.001;
                assert!(is_cut, "{isa:?}: {exact} is cut");
                continue;
            }
            let error = (f64::from(weight) - exact).abs() / exact;
            assert!(error <= 2e-5, "{isa:?}: {weight}, not {exact}");
            assert!(weight >= floor, "{isa:?}: {weight} is below the floor");
        }
        assert_sums_of_parts(&sums, &weights);
    }
}

#[test]
fn what_is_more_than_80_below_the_largest_weighs_nothing() {
    const NONE: f32 = f32::NEG_INFINITY;
    let beyond = (-80f32).next_down();
    for isa in Isa::available() {
        for (inverse, step) in [(1.0, 1.0), (0.5, 2.0), (2.0, 0.5)] {
            let softmax = Softmax { top: 0.0, inverse, floor: 0.0 };
            // As many as fill the lanes once, and a rest.
            let row = [0.0, -79.0, -80.0, beyond, -81.0, -1e30, NONE, f32::NAN];
            let logits: Vec<f32> = row.repeat(3)[..20].iter().map(|logit| logit * step).collect();
            let (weights, _) = weighed(isa, &softmax, &logits);
            for (weight, distance) in weights.into_iter().zip(row.repeat(3)) {
                assert_eq!(weight > 0.0, distance >= -80.0, "{isa:?} {distance}: {weight}");
            }
        }
    }
}

#[test]
fn weights_that_are_not_kept_have_the_same_sum() {
    for (isa, logits) in cases() {
        let softmax = softmax_of(&logits, 0.0);
        let mut sum = 7.0;
        sum_weights(isa, &softmax, &logits, &mut sum);
        let (_, sums) = weighed(isa, &softmax, &logits);
        assert_eq!(sum, exact_sum(&sums), "{isa:?} {}", logits.len());
    }
}

#[test]
fn a_cut_leaves_what_is_heavier_and_of_equals_the_first() {
    for (isa, mut weights) in cases() {
        let length = weights.len();
        // Many are equal.
        weights.iter_mut().for_each(|weight| *weight = (*weight / 10.0).round().abs());
        for end in [0, 1, PART / 2, PART, PART + 1, length / 2, length, length + 1] {
            let (mut left, mut sums) = (weights.clone(), vec![7.0; length.div_ceil(PART)]);
            cut(isa, &mut left, 3.0, end, &mut sums);
            let is_left = |(place, &weight): (usize, &f32)| {
                if weight > 3.0 || weight == 3.0 && place < end { weight } else { 0.0 }
            };
            let expected: Vec<f32> = weights.iter().enumerate().map(is_left).collect();
            assert!(left == expected, "{isa:?} {length} {end}");
            assert_sums_of_parts(&sums, &left);
        }
    }
}

#[test]
fn a_cut_that_takes_nothing_leaves_the_sums_to_the_last_bit() {
    for (isa, logits) in cases() {
        let (mut weights, sums) = weighed(isa, &softmax_of(&logits, 0.0), &logits);
        let (before, mut again) = (weights.clone(), vec![7.0; sums.len()]);
        cut(isa, &mut weights, 0.0, logits.len(), &mut again);
        assert_eq!((weights, again), (before, sums), "{isa:?} {}", logits.len());
    }
}

#[test]
fn heavy_weights_are_summed_and_counted() {
    for (isa, logits) in cases() {
        let (weights, _) = weighed(isa, &softmax_of(&logits, 0.0), &logits);
        for bound in [0.0, weights.first().copied().unwrap_or(0.5), 0.5] {
            let (mut sum, mut above) = (7.0, 7);
            sum_from(isa, &weights, bound, &mut sum);
            let heavy: Vec<f32> = weights.iter().copied().filter(|&w| w >= bound).collect();
            assert_close(sum, exact_sum(&heavy));
            count_above(isa, &weights, bound, &mut above);
            let heavier = weights.iter().filter(|&&weight| weight > bound).count();
            assert_eq!(above as usize, heavier, "{isa:?} {bound}");
        }
    }
}

#[test]
fn each_group_has_its_largest_number() {
    for (isa, row) in cases() {
        let mut largest = vec![7.0; row.len().div_ceil(PART) * GROUPS];
        maxima(isa, &row, &mut largest);
        for (part, largest) in row.chunks(PART).zip(largest.chunks(GROUPS)) {
            for (group, &largest) in largest.iter().enumerate() {
                let group = part.iter().skip(group).step_by(GROUPS).copied();
                assert_eq!(largest, group.fold(f32::NEG_INFINITY, f32::max), "{isa:?}");
            }
        }
    }
}

#[test]
fn the_largest_number_is_nan_where_one_is_nan() {
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
