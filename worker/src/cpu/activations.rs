//! Activations as the kernels want them: floats, and whole numbers with one scale for each 32.
//!
//! A block of 32 is one digit of 8 bits for each number. Where its step is coarse beside those of
//! its row, a second digit holds what the first left over: the error of a product is the sum over
//! all blocks, and few blocks have most of it. What a row becomes depends on that row alone.

use std::sync::atomic::{AtomicU16, Ordering};

use super::isa::dispatched;
use super::linear::Compute;
use super::vector::LANES;

/// Columns that share one scale.
pub const BLOCK: usize = 32;

/// Rows that share a word of marks.
pub(super) const MARKED_ROWS: usize = 16;

/// The step of first digits over that of second ones. Digits go from -127 to 127: a product with
/// an 8-bit weight must not overflow 16 bits in pairs, which -128 would.
pub(super) const BASE: f32 = 254.0;

/// The largest digit.
const MOST: f32 = 127.0;

/// The most rows at a time that a thread fills in.
const GRAIN: usize = 16;

/// Fewer numbers than this are not worth waking other threads for.
const SHARED_NUMBERS: usize = 4096;

/// How exactly activations are held.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Precision {
    /// A block has second digits if its squared step is larger than this many times the mean of
    /// its row.
    pub excess: f32,
}

impl Precision {
    /// One digit everywhere.
    pub const NARROW: Self = Self { excess: f32::INFINITY };
    /// Two digits everywhere.
    pub const WIDE: Self = Self { excess: -1.0 };
}

/// Rows of activations; the memory is kept between uses.
#[derive(Debug, Default)]
pub struct Activations {
    rows: usize,
    columns: usize,
    floats: Vec<f32>,
    values: Vec<i8>,
    scales: Vec<f32>,
    sums: Vec<f32>,
    low: Vec<i8>,
    low_sums: Vec<f32>,
    marks: Vec<AtomicU16>,
}

/// Rows to be read.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// Columns of a row.
    pub columns: usize,
    /// The numbers themselves: `[rows, columns]`.
    pub floats: &'a [f32],
    /// First digits: `[rows, columns]`.
    pub values: &'a [i8],
    /// What a first digit is worth: `[rows, columns / 32]`.
    pub scales: &'a [f32],
    /// The sum of the 32 first digits: `[rows, columns / 32]`.
    pub sums: &'a [f32],
    /// Second digits, of marked blocks alone; a 254th of the first in worth: `[rows, columns]`.
    pub low: &'a [i8],
    /// The sum of the 32 second digits: `[rows, columns / 32]`.
    pub low_sums: &'a [f32],
    /// Which blocks have second digits, a bit for each of 16 rows: `[rows / 16, columns / 32]`.
    pub marks: &'a [AtomicU16],
}

/// Quantised rows to be written.
struct RowsMut<'a> {
    first: usize,
    floats: &'a mut [f32],
    values: &'a mut [i8],
    scales: &'a mut [f32],
    sums: &'a mut [f32],
    low: &'a mut [i8],
    low_sums: &'a mut [f32],
}

impl Activations {
    /// Makes room for `rows` rows of `columns` floats, of any content, and returns them.
    pub fn floats(&mut self, rows: usize, columns: usize) -> &mut [f32] {
        (self.rows, self.columns) = (rows, columns);
        self.floats.resize(rows * columns, 0.0);
        &mut self.floats
    }

    /// Has `make` write each of the rows that [`floats`](Self::floats) made room for, or leave it
    /// as it is, and quantises them where there is a precision.
    pub fn fill(
        &mut self,
        compute: &Compute,
        precision: Option<Precision>,
        make: impl Fn(usize, &mut [f32]) + Sync,
    ) {
        let (rows, columns, blocks) = (self.rows, self.columns, self.columns / BLOCK);
        let Some(precision) = precision else {
            let rows = self.floats.chunks_exact_mut(columns).enumerate();
            return compute.pool.each(rows, |_, (row, floats)| make(row, floats));
        };
        self.values.resize(rows * columns, 0);
        self.low.resize(rows * columns, 0);
        self.scales.resize(rows * blocks, 0.0);
        self.sums.resize(rows * blocks, 0.0);
        self.low_sums.resize(rows * blocks, 0.0);
        self.marks.clear();
        self.marks.resize_with(rows.div_ceil(MARKED_ROWS) * blocks, AtomicU16::default);
        let grain = match rows * columns < SHARED_NUMBERS {
            true => rows,
            false => rows.div_ceil(4 * compute.pool.threads()).min(GRAIN),
        };
        let marks = &self.marks;
        let parts = (self.floats.chunks_mut(grain * columns))
            .zip(self.values.chunks_mut(grain * columns))
            .zip(self.low.chunks_mut(grain * columns))
            .zip(self.scales.chunks_mut(grain * blocks))
            .zip(self.sums.chunks_mut(grain * blocks))
            .zip(self.low_sums.chunks_mut(grain * blocks))
            .enumerate();
        compute.pool.each(
            parts,
            |_, (part, (((((floats, values), low), scales), sums), low_sums))| {
                let first = part * grain;
                for (row, floats) in floats.chunks_exact_mut(columns).enumerate() {
                    make(first + row, floats);
                }
                let rows = RowsMut { first, floats, values, scales, sums, low, low_sums };
                quantize(compute.isa, rows, columns, precision.excess, marks);
            },
        );
    }

    /// Returns the rows.
    pub fn view(&self) -> View<'_> {
        View {
            columns: self.columns,
            floats: &self.floats,
            values: &self.values,
            scales: &self.scales,
            sums: &self.sums,
            low: &self.low,
            low_sums: &self.low_sums,
            marks: &self.marks,
        }
    }
}

impl View<'_> {
    /// Cuts the digits, scales and sums of some rows; the marks stay those of all.
    pub(super) fn rows(self, first: usize, count: usize) -> Self {
        let blocks = self.columns / BLOCK;
        let (numbers, blocks) = (
            first * self.columns..(first + count) * self.columns,
            first * blocks..(first + count) * blocks,
        );
        Self {
            columns: self.columns,
            floats: &self.floats[numbers.clone()],
            values: &self.values[numbers.clone()],
            scales: &self.scales[blocks.clone()],
            sums: &self.sums[blocks.clone()],
            low: &self.low[numbers],
            low_sums: &self.low_sums[blocks],
            marks: self.marks,
        }
    }

    /// Returns which of up to 16 rows from `first` on have second digits in a block; the rows may
    /// not cross a multiple of 16.
    #[inline(always)]
    pub(super) fn marks(&self, first: usize, block: usize) -> u32 {
        let word = first / MARKED_ROWS * (self.columns / BLOCK) + block;
        u32::from(self.marks[word].load(Ordering::Relaxed)) >> (first % MARKED_ROWS)
    }

    /// Returns how many blocks have second digits.
    pub fn wide_blocks(&self) -> usize {
        self.marks.iter().map(|word| word.load(Ordering::Relaxed).count_ones() as usize).sum()
    }
}

/// Returns the largest size of 32 numbers.
#[inline(always)]
fn largest(x: &[f32; BLOCK]) -> f32 {
    let mut lanes = [0f32; LANES];
    let (halves, _) = x.as_chunks::<LANES>();
    for half in halves {
        for (lane, value) in lanes.iter_mut().zip(half) {
            let size = value.abs();
            *lane = if size > *lane { size } else { *lane };
        }
    }
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            let other = lanes[lane + width];
            lanes[lane] = if other > lanes[lane] { other } else { lanes[lane] };
        }
        width /= 2;
    }
    lanes[0]
}

dispatched! {
    /// Quantises rows of `columns` numbers.
    fn quantize(
        rows: RowsMut<'_>,
        columns: usize,
        excess: f32,
        marks: &[AtomicU16],
    ) = quantize_body
}

#[inline(always)]
fn quantize_body<const FMA: bool>(
    rows: RowsMut<'_>,
    columns: usize,
    excess: f32,
    marks: &[AtomicU16],
) {
    let blocks = columns / BLOCK;
    for row in 0..rows.floats.len() / columns {
        let x = rows.floats[row * columns..][..columns].as_chunks::<BLOCK>().0;
        let scales = &mut rows.scales[row * blocks..][..blocks];
        let mut squares = 0.0;
        for (x, scale) in x.iter().zip(scales.iter_mut()) {
            *scale = largest(x) / MOST;
            squares += *scale * *scale;
        }
        let limit = squares / blocks as f32 * excess;
        let values = rows.values[row * columns..][..columns].as_chunks_mut::<BLOCK>().0;
        let low = rows.low[row * columns..][..columns].as_chunks_mut::<BLOCK>().0;
        let sums = &mut rows.sums[row * blocks..][..blocks];
        let low_sums = &mut rows.low_sums[row * blocks..][..blocks];
        for block in 0..blocks {
            let scale = scales[block];
            let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
            sums[block] = digits(&x[block], inverse, &mut values[block]);
            if scale * scale > limit {
                low_sums[block] = low_digits(&x[block], inverse, &mut low[block]);
                let row = rows.first + row;
                let word = &marks[row / MARKED_ROWS * blocks + block];
                word.fetch_or(1 << (row % MARKED_ROWS), Ordering::Relaxed);
            }
        }
    }
}

/// Adding this to a number of at most 2^22 rounds it to a whole one, ties to even, whose low byte
/// is then the lowest of the bits.
const ROUNDING: f32 = 12_582_912.0;

/// Writes first digits and returns their sum.
#[inline(always)]
fn digits(x: &[f32; BLOCK], inverse: f32, out: &mut [i8; BLOCK]) -> f32 {
    let mut sums = [0f32; LANES];
    let halves = x.as_chunks::<LANES>().0.iter().zip(out.as_chunks_mut::<LANES>().0);
    for (x, out) in halves {
        let rounded = x.map(|x| x * inverse + ROUNDING);
        *out = rounded.map(|rounded| rounded.to_bits() as i8);
        for (sum, rounded) in sums.iter_mut().zip(rounded) {
            *sum += rounded - ROUNDING;
        }
    }
    total(sums)
}

/// Writes the digits of what first digits left over, and returns their sum.
#[inline(always)]
fn low_digits(x: &[f32; BLOCK], inverse: f32, out: &mut [i8; BLOCK]) -> f32 {
    let mut sums = [0f32; LANES];
    let halves = x.as_chunks::<LANES>().0.iter().zip(out.as_chunks_mut::<LANES>().0);
    for (x, out) in halves {
        let rounded = x.map(|x| {
            let first = (x * inverse + ROUNDING) - ROUNDING;
            ((x * inverse - first) * BASE).clamp(-MOST, MOST) + ROUNDING
        });
        *out = rounded.map(|rounded| rounded.to_bits() as i8);
        for (sum, rounded) in sums.iter_mut().zip(rounded) {
            *sum += rounded - ROUNDING;
        }
    }
    total(sums)
}

/// Returns the sum of whole numbers, which is exact in any order.
#[inline(always)]
fn total(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
        width /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Isa;
    use crate::cpu::pool::Pool;

    #[test]
    fn numbers_come_back_within_half_a_step() {
        const COLUMNS: usize = 96;
        let x: Vec<f32> =
            (0..40 * COLUMNS).map(|i| (i as f32 * 1.7).sin() * (i / 32 % 7) as f32).collect();
        for (isa, precision) in Isa::available().into_iter().flat_map(|isa| {
            let some = Precision { excess: 1.5 };
            [(isa, Precision::NARROW), (isa, Precision::WIDE), (isa, some)]
        }) {
            let compute = Compute { pool: Pool::start(2).unwrap(), isa };
            let mut activations = Activations::default();
            activations.floats(40, COLUMNS);
            activations.fill(&compute, Some(precision), |row, out| {
                out.copy_from_slice(&x[row * COLUMNS..][..COLUMNS]);
            });
            let view = activations.view();
            assert_eq!(view.floats, x);
            for (block, x) in x.as_chunks::<BLOCK>().0.iter().enumerate() {
                let (row, column) = (block / 3, block % 3);
                let is_wide = view.marks(row, column) & 1 == 1;
                let steps = &view.scales[row * 3..][..3];
                let mean = steps.iter().map(|step| step * step).sum::<f32>() / 3.0;
                let step = view.scales[block];
                assert_eq!(is_wide, step * step > mean * precision.excess);
                let (mut sum, mut low_sum) = (0.0, 0.0);
                for (offset, x) in x.iter().enumerate() {
                    let at = block * BLOCK + offset;
                    let low = if is_wide { f32::from(view.low[at]) } else { 0.0 };
                    let back = (f32::from(view.values[at]) + low / BASE) * step;
                    let allowed = if is_wide { step / BASE * 0.6 } else { step * 0.501 };
                    assert!((back - x).abs() <= allowed, "{isa:?}: {x} became {back}");
                    assert!(view.values[at] > i8::MIN && view.low[at] > i8::MIN);
                    sum += f32::from(view.values[at]);
                    low_sum += low;
                }
                assert_eq!(view.sums[block], sum);
                assert!(!is_wide || view.low_sums[block] == low_sum);
            }
        }
    }
}
