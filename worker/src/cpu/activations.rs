//! Activations as the integer kernels want them: whole numbers with one scale for each 32.
//!
//! Narrow ones are one digit of 8 bits. Wide ones are two digits to the base 254, which is nearly
//! exact and costs a second multiplication: for matrices whose errors grow in what follows.

use super::isa::dispatched;
use super::vector::LANES;

/// Columns that share one scale.
pub const BLOCK: usize = 32;

/// The base of wide numbers. Digits go from -127 to 127: a product with an 8-bit weight must not
/// overflow 16 bits in pairs, which -128 would.
pub(super) const BASE: i32 = 254;

/// The largest narrow number.
const NARROW_MOST: f32 = 127.0;

/// The largest wide number: one more would round up to a high digit of 128.
const WIDE_MOST: f32 = (127 * BASE + 126) as f32;

/// How exactly activations are held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// One digit.
    #[default]
    Narrow,
    /// Two digits.
    Wide,
}

/// Rows of activations, quantised; the memory is kept between uses.
#[derive(Debug, Default)]
pub struct Activations {
    columns: usize,
    values: Vec<i8>,
    low: Vec<i8>,
    scales: Vec<f32>,
    sums: Vec<f32>,
}

/// Quantised rows to be read.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// Columns of a row.
    pub columns: usize,
    /// The only digit of narrow numbers, the high one of wide ones: `[rows, columns]`.
    pub values: &'a [i8],
    /// The low digit of wide numbers, `[rows, columns]`; nothing for narrow ones.
    pub low: &'a [i8],
    /// `[rows, columns / 32]`
    pub scales: &'a [f32],
    /// The sum of the 32 numbers: `[rows, columns / 32]`.
    pub sums: &'a [f32],
}

/// Quantised rows to be written; `Rows` of different threads do not overlap.
#[derive(Debug)]
pub struct RowsMut<'a> {
    columns: usize,
    values: &'a mut [i8],
    low: &'a mut [i8],
    scales: &'a mut [f32],
    sums: &'a mut [f32],
}

impl Activations {
    /// Makes room for `rows` rows and returns them in parts of `rows_per_part`.
    pub fn parts(
        &mut self,
        (rows, columns): (usize, usize),
        precision: Precision,
        rows_per_part: usize,
    ) -> impl Iterator<Item = RowsMut<'_>> {
        let blocks = columns / BLOCK;
        self.columns = columns;
        self.values.resize(rows * columns, 0);
        let low = if precision == Precision::Wide { rows * columns } else { 0 };
        self.low.resize(low, 0);
        self.scales.resize(rows * blocks, 0.0);
        self.sums.resize(rows * blocks, 0.0);
        let values = self.values.chunks_mut(rows_per_part * columns);
        let mut low = self.low.chunks_mut(rows_per_part * columns);
        let scales = self.scales.chunks_mut(rows_per_part * blocks);
        let sums = self.sums.chunks_mut(rows_per_part * blocks);
        values.zip(scales).zip(sums).map(move |((values, scales), sums)| {
            let low = low.next().unwrap_or_default();
            RowsMut { columns, values, low, scales, sums }
        })
    }

    /// Returns the rows.
    pub fn view(&self) -> View<'_> {
        View {
            columns: self.columns,
            values: &self.values,
            low: &self.low,
            scales: &self.scales,
            sums: &self.sums,
        }
    }
}

impl RowsMut<'_> {
    /// Quantises rows into these.
    pub fn fill(&mut self, isa: super::Isa, rows: &[f32]) {
        debug_assert_eq!(rows.len() % self.columns, 0);
        match self.low.is_empty() {
            true => quantize(isa, rows, self.values, self.scales, self.sums),
            false => quantize_wide(isa, rows, (self.values, self.low), self.scales, self.sums),
        }
    }
}

/// Returns the largest size of 32 numbers.
#[inline(always)]
fn largest(x: &[f32; BLOCK]) -> f32 {
    let mut largest = [0f32; LANES];
    for half in x.as_chunks::<LANES>().0 {
        for (largest, value) in largest.iter_mut().zip(half) {
            *largest = largest.max(value.abs());
        }
    }
    largest.iter().fold(0f32, |a, &b| a.max(b))
}

dispatched! {
    /// Quantises blocks of 32 numbers to one digit each.
    pub fn quantize(x: &[f32], values: &mut [i8], scales: &mut [f32], sums: &mut [f32]) =
        quantize_body
}

#[inline(always)]
fn quantize_body<const FMA: bool>(
    x: &[f32],
    values: &mut [i8],
    scales: &mut [f32],
    sums: &mut [f32],
) {
    let blocks = x.as_chunks::<BLOCK>().0.iter().zip(values.as_chunks_mut::<BLOCK>().0);
    for ((x, values), (scale, sum)) in blocks.zip(scales.iter_mut().zip(sums)) {
        let largest = largest(x);
        let inverse = if largest > 0.0 { NARROW_MOST / largest } else { 0.0 };
        let mut total = 0i32;
        for (value, x) in values.iter_mut().zip(x) {
            let number = (x * inverse).round_ties_even() as i32;
            *value = number as i8;
            total += number;
        }
        *scale = largest / NARROW_MOST;
        *sum = total as f32;
    }
}

dispatched! {
    /// Quantises blocks of 32 numbers to a high and a low digit each.
    pub fn quantize_wide(
        x: &[f32],
        digits: (&mut [i8], &mut [i8]),
        scales: &mut [f32],
        sums: &mut [f32],
    ) = quantize_wide_body
}

#[inline(always)]
fn quantize_wide_body<const FMA: bool>(
    x: &[f32],
    (high, low): (&mut [i8], &mut [i8]),
    scales: &mut [f32],
    sums: &mut [f32],
) {
    let digits = high.as_chunks_mut::<BLOCK>().0.iter_mut().zip(low.as_chunks_mut::<BLOCK>().0);
    let blocks = x.as_chunks::<BLOCK>().0.iter().zip(digits);
    for ((x, (high, low)), (scale, sum)) in blocks.zip(scales.iter_mut().zip(sums)) {
        let largest = largest(x);
        let inverse = if largest > 0.0 { WIDE_MOST / largest } else { 0.0 };
        let mut total = 0i32;
        for ((high, low), x) in high.iter_mut().zip(low).zip(x) {
            let number = (x * inverse).round_ties_even();
            let upper = (number / BASE as f32).round_ties_even();
            *high = upper as i32 as i8;
            *low = (number - upper * BASE as f32) as i32 as i8;
            total += number as i32;
        }
        *scale = largest / WIDE_MOST;
        *sum = total as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Isa;

    #[test]
    fn numbers_come_back_within_half_a_step() {
        let x: Vec<f32> = (0..128).map(|i| (i as f32 * 1.7).sin() * (i / 32) as f32).collect();
        for (isa, precision) in Isa::available()
            .into_iter()
            .flat_map(|isa| [(isa, Precision::Narrow), (isa, Precision::Wide)])
        {
            let mut activations = Activations::default();
            activations.parts((2, 64), precision, 1).enumerate().for_each(|(row, mut part)| {
                part.fill(isa, &x[row * 64..][..64]);
            });
            let view = activations.view();
            let number = |i: usize| match precision {
                Precision::Narrow => i32::from(view.values[i]),
                Precision::Wide => i32::from(view.values[i]) * BASE + i32::from(view.low[i]),
            };
            for (i, &x) in x.iter().enumerate() {
                let scale = view.scales[i / BLOCK];
                let back = number(i) as f32 * scale;
                assert!((back - x).abs() <= scale * 0.51, "{isa:?}: {x} became {back}");
                assert!(view.values[i] > i8::MIN && view.low.get(i) != Some(&i8::MIN));
            }
            for (block, sum) in view.sums.iter().enumerate() {
                let total: i32 = (block * BLOCK..(block + 1) * BLOCK).map(number).sum();
                assert_eq!(*sum, total as f32);
            }
        }
    }
}
