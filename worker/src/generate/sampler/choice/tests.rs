//! The sets that are chosen from are those of a full sort.

use super::*;
use crate::generate::heaviest::larger_first;

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

/// Sets a row's weights, and returns those above 0 in order.
fn weigh_row(choice: &mut Choice, row: &[f32]) -> Vec<(f32, TokenId)> {
    let sampling = Sampling { temperature: 1.0, ..Sampling::default() };
    choice.choose(row, top_of(row), &sampling, 0.5).unwrap();
    let mut sorted: Vec<_> = choice.weights.iter().copied().zip(0..).collect();
    sorted.retain(|(weight, _)| *weight > 0.0);
    sorted.sort_by(larger_first);
    sorted
}

#[test]
fn top_p_chooses_from_the_smallest_set_as_the_softmax_does() {
    for isa in Isa::available() {
        for top_p in [0.0, 0.05, 0.5, 0.9, 0.999] {
            rows(40).iter().for_each(|row| check_top_p(isa, row, top_p, 4000, 0.02));
            rows(2 * PART + 77).iter().for_each(|row| check_top_p(isa, row, top_p, 100, 0.15));
        }
    }
}

/// Draws from a row's set again and again; the frequency of each token is `within` what is expected.
fn check_top_p(isa: Isa, row: &[f32], top_p: f32, draws: usize, within: f64) {
    let mut choice = Choice::new(isa);
    let sorted = weigh_row(&mut choice, row);
    let set = smallest_enough(&sorted, top_p);
    let (weights, sums) = (choice.weights.clone(), choice.sums.clone());
    let mut counts = vec![0; row.len()];
    for draw in 0..draws {
        choice.weights.copy_from_slice(&weights);
        choice.sums.copy_from_slice(&sums);
        let random = draw as f64 / draws as f64;
        counts[choice.among_enough(top_p, random).unwrap() as usize] += 1;
    }
    for &(weight, token) in set {
        let expected = f64::from(weight) / sum(set);
        let got = f64::from(std::mem::take(&mut counts[token as usize])) / draws as f64;
        assert!((got - expected).abs() < within, "{isa:?} {top_p}: {got}, not {expected}");
    }
    assert!(counts.iter().all(|&count| count == 0), "{isa:?} {top_p}: chosen outside of the set");
}

#[test]
fn top_p_is_the_share_of_what_top_k_leaves() {
    let mut choice = Choice::new(Isa::best());
    for row in rows(40) {
        let sorted = weigh_row(&mut choice, &row);
        let set = smallest_enough(&sorted[..sorted.len().min(10)], 0.6);
        let sampling = Sampling { temperature: 1.0, top_k: 10, top_p: 0.6, ..Sampling::default() };
        let mut choose = |random| choice.choose(&row, top_of(&row), &sampling, random).unwrap();
        let mut chosen: Vec<_> = (0..5000).map(|draw| choose(f64::from(draw) / 5000.0)).collect();
        chosen.sort_unstable();
        chosen.dedup();
        let mut expected: Vec<_> = set.iter().map(|&(_, token)| token).collect();
        expected.sort_unstable();
        assert_eq!(chosen, expected);
    }
}
