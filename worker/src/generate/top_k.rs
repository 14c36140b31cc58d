//! Finds the largest numbers of a row without sorting it.

use engine::TokenId;

use crate::cpu::Isa;
use crate::cpu::softmax::{GROUPS, PART, maxima};

/// Numbers of a row that are looked at as a whole, which vectorises.
const CHUNK: usize = 16;

/// The largest that were found, and memory for finding them.
#[derive(Debug)]
pub(super) struct TopK {
    isa: Isa,
    maxima: Vec<f32>,
    found: Vec<(f32, TokenId)>,
}

impl TopK {
    /// Makes one that has found nothing.
    pub(super) fn new(isa: Isa) -> Self {
        Self { isa, maxima: Vec::new(), found: Vec::new() }
    }

    /// Finds the `count` largest numbers of a row that are at least `least`, with their tokens: the
    /// largest first, and of equal ones those of lower tokens. What is NaN is not found.
    pub(super) fn find(&mut self, row: &[f32], count: usize, least: f32) -> &[(f32, TokenId)] {
        self.found.clear();
        if count == 0 {
            return &[];
        }
        self.maxima.resize(row.len().div_ceil(PART) * GROUPS, f32::NEG_INFINITY);
        maxima(self.isa, row, &mut self.maxima);
        // At least `count` numbers are as large as the last of that many groups' maxima.
        let least = match count <= self.maxima.len() {
            true => {
                self.maxima.select_nth_unstable_by(count - 1, |a, b| b.total_cmp(a)).1.max(least)
            }
            false => least,
        };
        for (chunk, first) in row.chunks(CHUNK).zip((0..).step_by(CHUNK)) {
            // Most have none.
            if chunk.iter().fold(false, |found, &number| found | (number >= least)) {
                let tokens = chunk.iter().copied().zip(first..);
                self.found.extend(tokens.filter(|&(number, _)| number >= least));
            }
        }
        if count < self.found.len() {
            self.found.select_nth_unstable_by(count - 1, larger_first);
            self.found.truncate(count);
        }
        self.found.sort_unstable_by(larger_first);
        &self.found
    }
}

/// Orders numbers: larger first, then lower tokens, so that the order is total; -0 and 0 are equal.
#[inline]
fn larger_first(a: &(f32, TokenId), b: &(f32, TokenId)) -> std::cmp::Ordering {
    // -0 becomes 0, and nothing else changes.
    (b.0 + 0.0).total_cmp(&(a.0 + 0.0)).then(a.1.cmp(&b.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Finds some numbers of a row in every way; they are the first of a full sort.
    fn check(row: &[f32], least: f32) {
        let mut sorted: Vec<_> = row.iter().copied().zip(0..).collect();
        sorted.retain(|&(number, _)| number >= least);
        // A stable sort leaves equal numbers in the order of tokens.
        sorted.sort_by(|a, b| b.0.partial_cmp(&a.0).unwrap());
        for isa in Isa::available() {
            let mut heaviest = TopK::new(isa);
            for count in [0, 1, 2, 17, 64, 65, 1000, 4000] {
                let found = heaviest.find(row, count, least);
                assert!(found == &sorted[..count.min(sorted.len())], "{isa:?} {count} {least}");
            }
        }
    }

    /// Returns numbers on both sides of 0, whole multiples of a step.
    fn random_row(step: f32) -> Vec<f32> {
        let mut random = fastrand::Rng::with_seed(3);
        let mut number = || ((random.f32() - 0.5) * 7.0 / step).round() * step;
        (0..3 * PART + 77).map(|_| number()).collect()
    }

    #[test]
    fn those_found_are_the_first_of_a_full_sort() {
        // Far apart, near each other, many equal, all equal.
        for row in [1e-4, 0.01, 1.0, 8.0].map(random_row) {
            check(&row, f32::NEG_INFINITY);
            check(&row, 0.5);
        }
    }

    #[test]
    fn minus_infinity_comes_last_and_nan_never() {
        let mut random = fastrand::Rng::with_seed(4);
        // What is left of the last rows are fewer numbers than are looked for.
        for odd in [0.1, 0.9, 0.99] {
            for no_number in [f32::NEG_INFINITY, f32::NAN] {
                let mut row = random_row(0.01);
                row.iter_mut().filter(|_| random.f64() < odd).for_each(|place| *place = no_number);
                // Groups and a part of which nothing is left.
                row.iter_mut().step_by(GROUPS).for_each(|place| *place = no_number);
                row[PART..2 * PART].fill(no_number);
                check(&row, f32::NEG_INFINITY);
                check(&row, f32::MIN);
            }
        }
        let row = [f32::NAN, 1.0, f32::NEG_INFINITY, f32::NAN, 2.0];
        let mut heaviest = TopK::new(Isa::best());
        let expected = [(2.0, 4), (1.0, 1), (f32::NEG_INFINITY, 2)];
        assert_eq!(heaviest.find(&row, 5, f32::NEG_INFINITY), expected);
        assert_eq!(heaviest.find(&row, 5, f32::MIN), &expected[..2]);
        assert_eq!(heaviest.find(&[f32::NAN; 5], 5, f32::NEG_INFINITY), []);
    }

    #[test]
    fn zeros_are_equal_whatever_their_sign() {
        let mut heaviest = TopK::new(Isa::best());
        let row = [-1.0, -0.0, 0.0, -0.0, 0.0, 1.0];
        for (count, expected) in [(3, &[5, 1, 2][..]), (6, &[5, 1, 2, 3, 4, 0])] {
            let found = heaviest.find(&row, count, f32::NEG_INFINITY);
            assert!(
                found.iter().map(|&(_, token)| token).eq(expected.iter().copied()),
                "{found:?}"
            );
        }
        assert_eq!(heaviest.find(&row, 6, 0.0).len(), 5);
        check(&row.repeat(500), f32::NEG_INFINITY);
    }
}
