//! Activations as the integer kernels want them: 8-bit numbers with one scale for each 32.

use super::isa::dispatched;
use super::vector::LANES;

/// Columns that share one scale.
pub const BLOCK: usize = 32;

/// Rows of activations, quantised; the memory is kept between uses.
#[derive(Debug, Default)]
pub struct Activations {
    columns: usize,
    values: Vec<i8>,
    scales: Vec<f32>,
    sums: Vec<f32>,
}

/// Quantised rows to be read.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// Columns of a row.
    pub columns: usize,
    /// `[rows, columns]`
    pub values: &'a [i8],
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
    scales: &'a mut [f32],
    sums: &'a mut [f32],
}

impl Activations {
    /// Makes room for `rows` rows and returns them in parts of `rows_per_part`.
    pub fn parts(
        &mut self,
        rows: usize,
        columns: usize,
        rows_per_part: usize,
    ) -> impl Iterator<Item = RowsMut<'_>> {
        let blocks = columns / BLOCK;
        self.columns = columns;
        self.values.resize(rows * columns, 0);
        self.scales.resize(rows * blocks, 0.0);
        self.sums.resize(rows * blocks, 0.0);
        let values = self.values.chunks_mut(rows_per_part * columns);
        let scales = self.scales.chunks_mut(rows_per_part * blocks);
        let sums = self.sums.chunks_mut(rows_per_part * blocks);
        values.zip(scales).zip(sums).map(move |((values, scales), sums)| RowsMut {
            columns,
            values,
            scales,
            sums,
        })
    }

    /// Returns the rows.
    pub fn view(&self) -> View<'_> {
        View { columns: self.columns, values: &self.values, scales: &self.scales, sums: &self.sums }
    }
}

impl RowsMut<'_> {
    /// Quantises rows into these.
    pub fn fill(&mut self, isa: super::Isa, rows: &[f32]) {
        debug_assert_eq!(rows.len() % self.columns, 0);
        quantize(isa, rows, self.values, self.scales, self.sums);
    }
}

dispatched! {
    /// Quantises blocks of 32 numbers.
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
        let mut largest = [0f32; LANES];
        for half in x.as_chunks::<LANES>().0 {
            for (largest, value) in largest.iter_mut().zip(half) {
                *largest = largest.max(value.abs());
            }
        }
        let largest = largest.iter().fold(0f32, |a, &b| a.max(b));
        let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
        let mut total = 0i32;
        for (value, x) in values.iter_mut().zip(x) {
            let number = (x * inverse).round_ties_even() as i32;
            *value = number as i8;
            total += number;
        }
        *scale = largest / 127.0;
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
        for isa in Isa::available() {
            let mut activations = Activations::default();
            activations.parts(2, 64, 1).enumerate().for_each(|(row, mut part)| {
                part.fill(isa, &x[row * 64..][..64]);
            });
            let view = activations.view();
            for (i, &x) in x.iter().enumerate() {
                let scale = view.scales[i / BLOCK];
                let back = f32::from(view.values[i]) * scale;
                assert!((back - x).abs() <= scale * 0.501, "{isa:?}: {x} became {back}");
            }
            for (block, sum) in view.sums.iter().enumerate() {
                let values = &view.values[block * BLOCK..][..BLOCK];
                let total: i32 = values.iter().map(|&v| i32::from(v)).sum();
                assert_eq!(*sum, total as f32);
            }
        }
    }
}
