//! Activations as the kernels want them: floats, bf16, and whole numbers with one scale for each 32.
//!
//! A block of 32 is one digit of 8 bits for each number. Where its step is coarse beside those of
//! its row, a second digit holds what the first left over: the error of a product is the sum over
//! all blocks, and few blocks have most of it. What a row becomes depends on that row alone.
//!
//! A block with NaN or infinity in it has NaN as its scale: so every product of its row is NaN, on
//! all instruction sets.
//!
//! Four rows lie together in panels, block by block, since a kernel reads the same block of several
//! rows: it walks through memory in order, whatever the width of a row.

use std::sync::{Mutex, PoisonError};

use super::Isa;
use super::linear::Compute;
use super::memory::Lines;

mod quantize;
mod rounded;

#[cfg(target_arch = "x86_64")]
pub(super) use quantize::quantize_rows;
use quantize::quantize_with_best;
pub(super) use rounded::Rounded;
use rounded::round;

/// Columns that share one scale.
pub const BLOCK: usize = 32;

/// Rows of a panel.
pub(super) const PANEL_ROWS: usize = 4;

/// The step of first digits over that of second ones. Digits go from -127 to 127: a product with
/// an 8-bit weight must not overflow 16 bits in pairs, which -128 would.
pub(super) const BASE: f32 = 254.0;

/// The largest digit.
pub(super) const MOST: f32 = 127.0;

/// The most rows at a time that a thread fills in.
const GRAIN: usize = 16;

/// Fewer numbers than this are not worth waking other threads for.
const SHARED_NUMBERS: usize = 4096;

/// What matrices want of activations besides the floats.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Form {
    /// Digits, as exact as this.
    pub digits: Option<Precision>,
    /// Roundings to bf16.
    pub bf16: bool,
}

impl Form {
    /// Returns what both want; of two precisions, this one's.
    pub fn and(self, other: Self) -> Self {
        Self { digits: self.digits.or(other.digits), bf16: self.bf16 || other.bf16 }
    }
}

/// How exactly digits hold activations.
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

/// A block of four rows.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(64))]
pub(super) struct Panel {
    /// First digits.
    pub values: [[i8; BLOCK]; PANEL_ROWS],
    /// What a first digit is worth.
    pub scales: [f32; PANEL_ROWS],
    /// -8 times the sum of the first digits: where a product with codes of 4 bits begins whose centre
    /// is 8.
    pub starts: [i32; PANEL_ROWS],
    /// -16 times the sums of the first and of the second 16 of them.
    pub half_starts: [[i16; 2]; PANEL_ROWS],
}

impl Panel {
    /// Keeps the sums of the two halves of a row's digits.
    #[inline(always)]
    pub(super) fn set_sums(&mut self, row: usize, halves: [i32; 2]) {
        self.starts[row] = -8 * (halves[0] + halves[1]);
        // At most 16 * 16 * 127 of size.
        self.half_starts[row] = halves.map(|half| (-16 * half) as i16);
    }

    /// Returns the sum of a row's digits.
    #[inline(always)]
    pub(super) fn sum(&self, row: usize) -> f32 {
        self.starts[row] as f32 * (-1.0 / 8.0)
    }
}

/// The second digits of a block of one row.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(16))]
pub(super) struct Second {
    /// Second digits.
    pub values: [i8; BLOCK],
    /// What a second digit is worth.
    pub scale: f32,
    /// Which block of the row.
    pub block: u32,
    /// Which row of the panel.
    pub row: u32,
    /// The sums of the first and of the second 16 of them.
    pub half_sums: [i16; 2],
}

impl Second {
    /// Returns the sum of the second digits.
    #[inline(always)]
    pub(super) fn sum(&self) -> i32 {
        i32::from(self.half_sums[0]) + i32::from(self.half_sums[1])
    }
}

/// Rows of activations; the memory is kept between uses.
///
/// Few rows become digits when a thread first reads them, in a copy of its own: that takes less time
/// than waiting for another thread to do it, and for its writes to come over.
#[derive(Debug, Default)]
pub struct Activations {
    rows: usize,
    columns: usize,
    floats: Lines,
    /// The digits of many rows.
    digits: Digits,
    /// Those of few rows, for each thread.
    copies: Vec<Mutex<Own>>,
    /// Counts what was filled in; copies of another count are of what was there before.
    generation: u64,
    rounded: Vec<Rounded>,
    /// What there is of the rows.
    form: Form,
}

/// The digits of rows; the memory is kept between uses.
#[derive(Debug, Default)]
struct Digits {
    panels: Vec<Panel>,
    seconds: Vec<Second>,
    counts: Vec<u32>,
}

/// A thread's own digits.
#[derive(Debug, Default)]
struct Own {
    generation: u64,
    digits: Digits,
}

/// Rows to be read.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// Columns of a row.
    pub columns: usize,
    /// The numbers themselves: `[rows, columns]`.
    pub floats: &'a [f32],
    /// First digits: `[rows / 4, columns / 32]`.
    pub(super) panels: &'a [Panel],
    /// Room for second digits, block after block: `[rows / 4, 4 * columns / 32]`.
    seconds: &'a [Second],
    /// How many blocks have any: `[rows / 4]`.
    counts: &'a [u32],
    /// The numbers in bf16, of all rows: `[all rows / 4, columns / 32]`.
    rounded: &'a [Rounded],
}

/// Room for the digits of rows.
pub(super) struct DigitsMut<'a> {
    pub panels: &'a mut [Panel],
    pub seconds: &'a mut [Second],
    pub counts: &'a mut [u32],
}

/// Cuts off the next elements, as many as there are.
fn cut<'a, T>(rest: &mut &'a mut [T], count: usize) -> &'a mut [T] {
    let count = count.min(rest.len());
    rest.split_off_mut(..count).unwrap_or_default()
}

/// Makes a vector at least so long; it keeps its length otherwise, since making it longer again
/// would write it anew.
fn reserve<T: Clone + Default>(numbers: &mut Vec<T>, length: usize) {
    if numbers.len() < length {
        numbers.resize(length, T::default());
    }
}

impl Activations {
    /// Makes room for `rows` rows of `columns` floats, of any content, and returns them.
    pub fn floats(&mut self, rows: usize, columns: usize) -> &mut [f32] {
        (self.rows, self.columns) = (rows, columns);
        self.floats.resize(rows * columns)
    }

    /// Returns the length of a row.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Returns the floats of all rows.
    pub fn rows(&self) -> &[f32] {
        &self.floats
    }

    /// Has `make` write each of the rows that [`floats`](Self::floats) made room for, or leave it
    /// as it is, and gives them this form.
    pub fn fill(&mut self, compute: &Compute, form: Form, make: impl Fn(usize, &mut [f32]) + Sync) {
        let (rows, columns, blocks) = (self.rows, self.columns, self.columns / BLOCK);
        self.form = form;
        self.generation += 1;
        self.copies.resize_with(compute.pool.threads(), Mutex::default);
        let quads = rows.div_ceil(PANEL_ROWS);
        let digits = if self.digits_are_shared() { quads } else { 0 };
        let rounded = if form.bf16 { quads * blocks } else { 0 };
        let mut digits = self.digits.make_room(digits, blocks);
        reserve(&mut self.rounded, rounded);
        let grain = match rows * columns < SHARED_NUMBERS {
            true => rows,
            false => rows.div_ceil(4 * compute.pool.threads()).min(GRAIN),
        };
        let share = grain.div_ceil(PANEL_ROWS);
        let mut floats = &mut self.floats[..];
        let mut rounded = &mut self.rounded[..rounded];
        let parts = (0..quads.div_ceil(share.max(1))).map(|part| {
            let floats = cut(&mut floats, share * PANEL_ROWS * columns);
            let digits = digits.cut(share, blocks);
            (part * share * PANEL_ROWS, floats, digits, cut(&mut rounded, share * blocks))
        });
        compute.pool.each_by_part(parts, |_, (first, floats, digits, rounded)| {
            for (row, floats) in floats.chunks_exact_mut(columns).enumerate() {
                make(first + row, floats);
            }
            if form.bf16 {
                round(compute.isa, floats, rounded, columns);
            }
            if let Some(precision) = form.digits
                && !digits.counts.is_empty()
            {
                quantize_with_best(compute.isa, floats, digits, columns, precision.excess);
            }
        });
    }

    /// Are there digits that all threads read?
    fn digits_are_shared(&self) -> bool {
        self.form.digits.is_some() && self.rows * self.columns >= SHARED_NUMBERS
    }

    /// Calls `work` with the rows, as a thread reads them, one of those that they were filled in with.
    pub(super) fn read<R>(&self, isa: Isa, thread: usize, work: impl FnOnce(View<'_>) -> R) -> R {
        let precision = match self.form.digits {
            Some(precision) if !self.digits_are_shared() => precision,
            _ => return work(self.view(&self.digits)),
        };
        let mut own = self.copies[thread].lock().unwrap_or_else(PoisonError::into_inner);
        if own.generation != self.generation {
            let quads = self.rows.div_ceil(PANEL_ROWS);
            let digits = own.digits.make_room(quads, self.columns / BLOCK);
            quantize_with_best(isa, &self.floats, digits, self.columns, precision.excess);
            own.generation = self.generation;
        }
        work(self.view(&own.digits))
    }

    fn view<'a>(&'a self, digits: &'a Digits) -> View<'a> {
        let all = self.rows.div_ceil(PANEL_ROWS);
        let blocks = self.columns / BLOCK;
        let quads = if self.form.digits.is_some() { all } else { 0 };
        let rounded = if self.form.bf16 { all * blocks } else { 0 };
        View {
            columns: self.columns,
            floats: &self.floats,
            panels: &digits.panels[..quads * blocks],
            seconds: &digits.seconds[..quads * PANEL_ROWS * blocks],
            counts: &digits.counts[..quads],
            rounded: &self.rounded[..rounded],
        }
    }
}

impl Digits {
    /// Makes room for panels of four rows, of so many blocks each.
    fn make_room(&mut self, quads: usize, blocks: usize) -> DigitsMut<'_> {
        reserve(&mut self.panels, quads * blocks);
        reserve(&mut self.seconds, quads * PANEL_ROWS * blocks);
        reserve(&mut self.counts, quads);
        DigitsMut {
            panels: &mut self.panels[..quads * blocks],
            seconds: &mut self.seconds[..quads * PANEL_ROWS * blocks],
            counts: &mut self.counts[..quads],
        }
    }
}

impl<'a> DigitsMut<'a> {
    /// Cuts off the room of the next panels of four rows, as much as there is.
    fn cut(&mut self, quads: usize, blocks: usize) -> DigitsMut<'a> {
        DigitsMut {
            panels: cut(&mut self.panels, quads * blocks),
            seconds: cut(&mut self.seconds, quads * PANEL_ROWS * blocks),
            counts: cut(&mut self.counts, quads),
        }
    }
}

impl<'a> View<'a> {
    /// Returns the panels in bf16 of some of all rows, which are as for [`rows`](Self::rows).
    #[inline(always)]
    #[cfg_attr(
        not(target_arch = "x86_64"),
        expect(dead_code, reason = "only x86-64 has kernels for it")
    )]
    pub(super) fn rounded(self, first: usize, count: usize) -> &'a [Rounded] {
        let blocks = self.columns / BLOCK;
        &self.rounded[first / PANEL_ROWS * blocks..(first + count).div_ceil(PANEL_ROWS) * blocks]
    }

    /// Cuts the panels of some rows; these may not begin inside a panel and end in another one.
    #[inline(always)]
    pub(super) fn rows(self, first: usize, count: usize) -> Self {
        debug_assert!(first.is_multiple_of(PANEL_ROWS) || first % PANEL_ROWS + count <= PANEL_ROWS);
        let blocks = self.columns / BLOCK;
        let quads = first / PANEL_ROWS..(first + count).div_ceil(PANEL_ROWS);
        let each = blocks * PANEL_ROWS;
        Self {
            columns: self.columns,
            floats: &self.floats[first * self.columns..(first + count) * self.columns],
            panels: &self.panels[quads.start * blocks..quads.end * blocks],
            seconds: &self.seconds[quads.start * each..quads.end * each],
            counts: &self.counts[quads],
            rounded: self.rounded,
        }
    }

    /// Returns the second digits of each panel's rows.
    #[inline(always)]
    pub(super) fn seconds(&self) -> impl Iterator<Item = &[Second]> {
        let rooms = self.seconds.chunks_exact(self.columns / BLOCK * PANEL_ROWS);
        rooms.zip(self.counts).map(|(seconds, &count)| &seconds[..count as usize])
    }

    /// Returns what quantisation made of a number.
    #[cfg(test)]
    pub(super) fn number(&self, row: usize, column: usize) -> f64 {
        let (row_of_all, block_of_row) = (row, column / BLOCK);
        let panel = row / PANEL_ROWS * (self.columns / BLOCK) + block_of_row;
        let (row, column) = (row % PANEL_ROWS, column % BLOCK);
        let first = f64::from(self.panels[panel].values[row][column]);
        let worth = f64::from(self.panels[panel].scales[row]);
        let second = self
            .second(row_of_all, block_of_row)
            .map_or(0.0, |second| f64::from(second.values[column]) * f64::from(second.scale));
        first * worth + second
    }

    /// Returns the second digits of a block of a row.
    #[cfg(test)]
    fn second(&self, row: usize, block: usize) -> Option<&Second> {
        let row_of_panel = (row % PANEL_ROWS) as u32;
        let mut seconds = self.seconds().nth(row / PANEL_ROWS)?.iter();
        seconds.find(|second| (second.row, second.block) == (row_of_panel, block as u32))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Isa;
    use crate::cpu::pool::Pool;

    /// Columns of the rows below.
    const COLUMNS: usize = 96;

    #[test]
    fn numbers_come_back_within_half_a_step() {
        let all: Vec<f32> =
            (0..50 * COLUMNS).map(|i| (i as f32 * 1.7).sin() * (i / 32 % 7) as f32).collect();
        for (isa, precision) in Isa::available().into_iter().flat_map(|isa| {
            let some = Precision { excess: 1.5 };
            [(isa, Precision::NARROW), (isa, Precision::WIDE), (isa, some)]
        }) {
            let compute = Compute { pool: Pool::start(2).unwrap(), isa };
            let mut activations = Activations::default();
            // Digits of few rows are each thread's own, and anew whenever rows are filled in.
            for (rows, offset) in [(50, 0), (5, 0), (5, 7), (40, 3)] {
                let x = &all[offset * COLUMNS..][..rows * COLUMNS];
                activations.floats(rows, COLUMNS);
                let form = Form { digits: Some(precision), bf16: true };
                activations.fill(&compute, form, |row, out| {
                    out.copy_from_slice(&x[row * COLUMNS..][..COLUMNS]);
                });
                assert_eq!(activations.digits_are_shared(), rows == 50);
                for thread in [1, 0, 1] {
                    activations.read(isa, thread, |view| assert_near(view, x, isa, precision));
                }
            }
        }
    }

    fn assert_near(view: View<'_>, x: &[f32], isa: Isa, precision: Precision) {
        assert_eq!(view.floats, x);
        for (block, x) in x.as_chunks::<BLOCK>().0.iter().enumerate() {
            let (row, column) = (block / 3, block % 3);
            let (panels, lane) = (row / PANEL_ROWS * 3, row % PANEL_ROWS);
            let second = view.second(row, column);
            let is_wide = second.is_some();
            let steps = [0, 1, 2].map(|column| view.panels[panels + column].scales[lane]);
            let mean = steps.iter().map(|step| step * step).sum::<f32>() / 3.0;
            let step = steps[column];
            assert_eq!(is_wide, step * step > mean * precision.excess);
            for (offset, x) in x.iter().enumerate() {
                let back = view.number(row, column * BLOCK + offset) as f32;
                let allowed = if is_wide { step / BASE * 0.6 } else { step * 0.501 };
                assert!((back - x).abs() <= allowed, "{isa:?}: {x} became {back}");
            }
            let digits = view.panels[panels + column].values[lane];
            let sum = |digits: &[i8]| digits.iter().map(|&digit| i32::from(digit)).sum::<i32>();
            assert!(digits.iter().all(|&digit| digit > i8::MIN));
            let panel = view.panels[panels + column];
            assert_eq!(panel.sum(lane), sum(&digits) as f32);
            assert_eq!(panel.starts[lane], -8 * sum(&digits));
            let halves = [&digits[..BLOCK / 2], &digits[BLOCK / 2..]].map(sum);
            assert_eq!(panel.half_starts[lane].map(i32::from), halves.map(|sum| -16 * sum));
            if let Some(second) = second {
                assert!(second.values.iter().all(|&digit| digit > i8::MIN));
                assert_eq!(second.sum(), sum(&second.values));
            }
        }
    }
}
