//! The sets that are chosen from are those of a full sort, and each token of them has its share.

use super::*;
use crate::cpu::softmax::PART;

/// Rows of logits: far apart, near each other, and many of them equal.
fn rows(count: usize) -> Vec<Vec<f32>> {
    let mut random = fastrand::Rng::with_seed(3);
    let mut row = |width: f32, step: f32| -> Vec<f32> {
        (0..count).map(|_| (random.f32().powi(3) * width / step).round() * step).collect()
    };
    vec![row(30.0, 1e-4), row(2.0, 1e-4), row(8.0, 1.0), row(3.0, 0.25), row(0.0, 1.0)]
}

fn top_of(row: &[f32]) -> f32 {
    row.iter().copied().fold(f32::NEG_INFINITY, f32::max)
}

fn sum(tokens: &[(f32, TokenId)]) -> f64 {
    tokens.iter().map(|&(weight, _)| f64::from(weight)).sum()
}

/// Returns the first tokens that have a share `top_p` of the weight of all, at least one.
fn smallest_enough(sorted: &[(f32, TokenId)], top_p: f32) -> &[(f32, TokenId)] {
    let enough = sum(sorted) * f64::from(top_p);
    let size = (1..=sorted.len()).find(|&size| sum(&sorted[..size]) >= enough);
    &sorted[..size.unwrap()]
}

/// Returns the tokens of a row that have a weight, the heaviest first.
fn sorted(choice: &mut Choice, row: &[f32]) -> Vec<(f32, TokenId)> {
    let sampling = Sampling { temperature: 1.0, ..Sampling::default() };
    choice.choose(row, top_of(row), &sampling, 0.5).unwrap();
    let mut sorted: Vec<_> = choice.all.each().iter().copied().zip(0..).collect();
    sorted.retain(|(weight, _)| *weight > 0.0);
    // A stable sort leaves equal weights in the order of tokens.
    sorted.sort_by(|a, b| b.0.total_cmp(&a.0));
    sorted
}

/// Chooses from a row again and again. All that is chosen is in the row's set, and as often as its
/// weight says: each token of a short set, and each sixteenth of a long one.
fn check(isa: Isa, row: &[f32], top_k: usize, top_p: f32) {
    let (draws, within) = if row.len() <= 40 { (4000, 0.02) } else { (1000, 0.04) };
    let (mut choice, top) = (Choice::new(isa), top_of(row));
    let sorted = sorted(&mut choice, row);
    let kept = if top_k == 0 { sorted.len() } else { top_k.min(sorted.len()) };
    let set = smallest_enough(&sorted[..kept], top_p);
    let sampling = Sampling { temperature: 1.0, top_k: top_k as u32, top_p, ..Sampling::default() };
    let mut counts = vec![0; row.len()];
    for draw in 0..draws {
        let random = draw as f64 / draws as f64;
        let token = choice.choose(row, top, &sampling, random).unwrap();
        counts[token as usize] += 1;
    }
    let name = format!("{isa:?}, {} logits, top-k {top_k}, top-p {top_p}", row.len());
    let size = if set.len() <= 40 { 1 } else { set.len().div_ceil(16) };
    for group in set.chunks(size) {
        let count = |&(_, token): &(f32, TokenId)| std::mem::take(&mut counts[token as usize]);
        let got = group.iter().map(count).sum::<usize>() as f64 / draws as f64;
        let expected = sum(group) / sum(set);
        assert!((got - expected).abs() < within, "{name}: {got}, not {expected}");
    }
    assert!(counts.iter().all(|&count| count == 0), "{name}: chosen outside of the set");
}

#[test]
fn top_p_chooses_from_the_smallest_set_as_the_softmax_does() {
    for isa in Isa::available() {
        for top_p in [0.0, 0.05, 0.5, 0.9, 0.999] {
            rows(40).iter().for_each(|row| check(isa, row, 0, top_p));
            rows(2 * PART + 77).iter().for_each(|row| check(isa, row, 0, top_p));
        }
    }
}

#[test]
fn top_k_chooses_from_the_heaviest_as_the_softmax_does() {
    for isa in Isa::available() {
        for top_k in [2, 10, 39] {
            rows(40).iter().for_each(|row| check(isa, row, top_k, 1.0));
        }
        for top_k in [10, FEW, FEW + 1, 2 * PART + 76] {
            rows(2 * PART + 77).iter().for_each(|row| check(isa, row, top_k, 1.0));
        }
    }
}

#[test]
fn top_p_is_the_share_of_what_top_k_leaves() {
    for isa in Isa::available() {
        for top_p in [0.3, 0.95] {
            rows(40).iter().for_each(|row| check(isa, row, 10, top_p));
            for top_k in [30, 2 * FEW] {
                rows(2 * PART + 77).iter().for_each(|row| check(isa, row, top_k, top_p));
            }
        }
    }
}
