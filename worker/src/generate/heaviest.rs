//! Finds the largest numbers of a row without sorting it.

use engine::TokenId;

use crate::cpu::Isa;
use crate::cpu::softmax::{GROUPS, PART, maxima};

/// Numbers that are looked at as a whole, which vectorises.
const CHUNK: usize = 16;

/// The largest that were found, and memory for finding them.
#[derive(Debug)]
pub(super) struct Heaviest {
    isa: Isa,
    maxima: Vec<f32>,
    found: Vec<(f32, TokenId)>,
}

impl Heaviest {
    /// Makes one that has found nothing.
    pub(super) fn new(isa: Isa) -> Self {
        Self { isa, maxima: Vec::new(), found: Vec::new() }
    }

    /// Returns those of the last search.
    pub(super) fn found(&self) -> &[(f32, TokenId)] {
        &self.found
    }

    /// Finds the `count` largest numbers of a row that are at least `least`, with their tokens: the
    /// largest first, and of equal ones those of lower tokens.
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

/// Orders numbers: larger first, then lower tokens, so that the order is total.
pub(super) fn larger_first(a: &(f32, TokenId), b: &(f32, TokenId)) -> std::cmp::Ordering {
    b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_found_are_the_first_of_a_full_sort() {
        let mut random = fastrand::Rng::with_seed(3);
        // Far apart, near each other, many equal, all equal.
        let rows = [1e-4f32, 0.01, 1.0, 8.0].map(|step| -> Vec<f32> {
            let mut number = || ((random.f32() - 0.5) * 7.0 / step).round() * step;
            (0..3 * PART + 77).map(|_| number()).collect()
        });
        for (row, least) in rows.iter().flat_map(|row| [(row, f32::NEG_INFINITY), (row, 0.5)]) {
            let mut sorted: Vec<_> = row.iter().copied().zip(0..).collect();
            sorted.retain(|&(number, _)| number >= least);
            sorted.sort_by(larger_first);
            for isa in Isa::available() {
                let mut heaviest = Heaviest::new(isa);
                for count in [0, 1, 2, 17, 64, 65, 1000, 4000] {
                    let found = heaviest.find(row, count, least);
                    assert!(found == &sorted[..count.min(sorted.len())], "{isa:?} {count} {least}");
                }
            }
        }
    }
}
