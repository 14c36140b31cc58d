//! The weights of a row, and draws from all of them or from the heaviest.
//!
//! What comes first in a row counts as heavier than what weighs the same.

use crate::cpu::Isa;
use crate::cpu::softmax::{PART, Softmax, count_above, cut, sum_from, weigh};

/// Weights from 0 on, and the sum of each part of them.
#[derive(Debug)]
pub(super) struct Weights {
    isa: Isa,
    each: Vec<f32>,
    sums: Vec<f32>,
}

impl Weights {
    /// Makes an empty row.
    pub(super) fn new(isa: Isa) -> Self {
        Self { isa, each: Vec::new(), sums: Vec::new() }
    }

    /// Sets them to those of logits.
    pub(super) fn set(&mut self, softmax: &Softmax, logits: &[f32]) {
        self.each.resize(logits.len(), 0.0);
        self.sums.resize(logits.len().div_ceil(PART), 0.0);
        weigh(self.isa, softmax, logits, &mut self.each, &mut self.sums);
    }

    /// Sets them to given ones.
    pub(super) fn copy(&mut self, weights: impl Iterator<Item = f32>) {
        self.each.clear();
        self.each.extend(weights);
        self.sums.clear();
        self.sums.extend(self.each.chunks(PART).map(|part| part.iter().sum::<f32>()));
    }

    /// Returns each of them.
    pub(super) fn each(&self) -> &[f32] {
        &self.each
    }

    /// Makes all but the `count` heaviest 0; at least one stays.
    pub(super) fn keep(&mut self, count: usize) {
        let count = count.max(1);
        // The lightest that stays is the least number that fewer than `count` weights are above. It
        // is found by bisection, as bits of numbers from 0 on are in the order of the numbers.
        let (mut low, mut high, mut heavier) = (0, f32::INFINITY.to_bits(), 0);
        while low < high {
            let middle = low.midpoint(high);
            let mut above = 0;
            count_above(self.isa, &self.each, f32::from_bits(middle), &mut above);
            match above as usize >= count {
                true => low = middle + 1,
                false => (high, heavier) = (middle, above as usize),
            }
        }
        let least = f32::from_bits(high);
        let mut equal = (0..).zip(&self.each).filter(|&(_, &weight)| weight == least);
        if let Some((last, _)) = equal.nth(count - 1 - heavier) {
            cut(self.isa, &mut self.each, least, last + 1, &mut self.sums);
        }
    }

    /// Draws a place from the smallest set of the heaviest that has a share `top_p` of the weight, by
    /// a random number from 0 to below 1; none if nothing has a weight. It may make weights outside
    /// of the set 0.
    ///
    /// It draws from all and keeps what it has drawn if all that is heavier is not enough yet. If it
    /// is, neither this place nor a lighter one is in the set, and it draws again from the rest. What
    /// is kept is distributed as in the set. This ends: each rejection takes away at least one place,
    /// and never the heaviest. The `n`-th heaviest is rejected only if it is drawn before all heavier
    /// ones, with a probability of `1 / n` at most; so of `V` places no more than `ln V` are rejected
    /// on average.
    pub(super) fn draw(&mut self, top_p: f32, random: f64) -> Option<usize> {
        let mut place = self.draw_any(random)?;
        if top_p >= 1.0 {
            return Some(place);
        }
        // Above 0, so that the heaviest place is always in the set.
        let enough = (self.total() * f64::from(top_p)).max(f64::MIN_POSITIVE);
        let mut more = fastrand::Rng::with_seed(random.to_bits());
        while self.heavier_than(place) >= enough {
            let weight = self.each[place];
            cut(self.isa, &mut self.each, weight, place, &mut self.sums);
            place = self.draw_any(more.f64())?;
        }
        Some(place)
    }

    /// Draws from all: by the sums which part, then which of it.
    fn draw_any(&self, random: f64) -> Option<usize> {
        let mut left = random * self.total();
        let mut last = None;
        for (index, (part, &sum)) in self.each.chunks(PART).zip(&self.sums).enumerate() {
            if left >= f64::from(sum) {
                left -= f64::from(sum);
                continue;
            }
            for (offset, &weight) in part.iter().enumerate().filter(|(_, weight)| **weight > 0.0) {
                last = Some(index * PART + offset);
                left -= f64::from(weight);
                if left < 0.0 {
                    return last;
                }
            }
        }
        // Rounding can leave a rest behind the last place that has a weight.
        last.or_else(|| self.each.iter().rposition(|&weight| weight > 0.0))
    }

    /// Returns the sum of what is heavier than a place.
    fn heavier_than(&self, place: usize) -> f64 {
        let weight = self.each[place];
        let (before, after) = self.each.split_at(place);
        let mut sums = [0.0; 2];
        sum_from(self.isa, before, weight, &mut sums[0]);
        sum_from(self.isa, after, weight.next_up(), &mut sums[1]);
        sums[0] + sums[1]
    }

    fn total(&self) -> f64 {
        self.sums.iter().copied().map(f64::from).sum()
    }
}

#[cfg(test)]
mod tests;
