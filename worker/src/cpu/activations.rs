//! Activations as the kernels want them: floats, bf16, and whole numbers with one scale for each 32.
//!
//! A block of 32 is one digit of 8 bits for each number. Where its step is coarse beside those of
//! its row, a second digit holds what the first left over: the error of a product is the sum over
//! all blocks, and few blocks have most of it. What a row becomes depends on that row alone.
//!
//! A block with NaN or infinity in it has NaN as its scale: so every product of its row is NaN, on
//! all instruction sets.
//!
//! Four rows lie together in panels, 16 where an instruction takes whole tiles, block by block, since a
//! kernel reads the same block of several rows: it walks through memory in order, whatever the width of
//! a row.

use std::sync::{Mutex, PoisonError};

use super::Isa;
use super::linear::Compute;
use super::memory::Lines;

mod digits;
mod quantize;
mod rounded;

use digits::{Digits, cut, reserve};
pub(super) use digits::{DigitsMut, Panel, Second};
use quantize::quantize_either;
#[cfg(target_arch = "x86_64")]
pub(super) use quantize::quantize_rows;
pub(super) use rounded::Rounded;
use rounded::round;

/// Columns that share one scale.
pub const BLOCK: usize = 32;

/// Rows of a panel of which instructions take one at a time.
pub(super) const PANEL_ROWS: usize = 4;

/// Rows of a panel of which an instruction takes all at once.
pub(super) const TILE_ROWS: usize = 16;

/// The step of first digits over that of second ones. Digits go from -127 to 127: a product with
/// an 8-bit weight must not overflow 16 bits in pairs, which -128 would.
pub(super) const BASE: f32 = 254.0;

/// The largest digit.
pub(super) const MOST: f32 = 127.0;

/// The most rows at a time that a thread fills in.
const GRAIN: usize = 16;

/// Fewer rows than this are no work for instructions that take whole tiles.
pub(super) const LEAST_TILED: usize = 12;

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

/// Rows of activations; the memory is kept between uses.
///
/// Few rows become digits when a thread first reads them, in a copy of its own: that takes less time
/// than waiting for another thread to do it, and for its writes to come over.
#[derive(Debug, Default)]
pub struct Activations {
    rows: usize,
    columns: usize,
    floats: Lines,
    /// The digits of many rows, in panels that suit the instructions.
    digits: Digits,
    tiles: Digits<TILE_ROWS>,
    /// Those of few rows, for each thread.
    copies: Vec<Mutex<Own>>,
    /// Counts what was filled in; copies of another count are of what was there before.
    generation: u64,
    rounded: Vec<Rounded>,
    /// How many rows of these lie together.
    rounded_rows: usize,
    /// Are the digits for instructions that take whole tiles?
    are_tiled: bool,
    /// What there is of the rows.
    form: Form,
}

/// A thread's own digits.
#[derive(Debug, Default)]
struct Own {
    generation: u64,
    digits: Digits,
    tiles: Digits<TILE_ROWS>,
}

/// Rows to be read.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// Columns of a row.
    pub columns: usize,
    /// The numbers themselves: `[rows, columns]`.
    pub floats: &'a [f32],
    /// First digits: `[rows / 4, columns / 32]`; nothing if they are in `tiles`.
    pub(super) panels: &'a [Panel],
    /// First digits for instructions that take whole tiles: `[rows / 16, columns / 32]`.
    pub(super) tiles: &'a [Panel<TILE_ROWS>],
    /// Room for second digits, block after block: `[rows / N, N * columns / 32]`, where `N` is the
    /// number of rows of those panels.
    seconds: &'a [Second],
    /// How many blocks have any: `[rows / N]`.
    counts: &'a [u32],
    /// The numbers in bf16, of all rows: `[all rows / N, columns / 32, N]`, where `N` is 16 for
    /// instructions that take whole tiles, and 4 for others.
    rounded: &'a [Rounded],
    /// That number.
    pub(super) rounded_rows: usize,
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
        self.are_tiled = form.digits.is_some() && compute.isa.has_tiles() && rows >= LEAST_TILED;
        self.rounded_rows = if compute.isa.has_tiles() { TILE_ROWS } else { PANEL_ROWS };
        let shared = if self.digits_are_shared() { rows } else { 0 };
        let (plain, tiled) = if self.are_tiled { (0, shared) } else { (shared, 0) };
        let mut digits = self.digits.make_room(plain, blocks);
        let mut tiles = self.tiles.make_room(tiled, blocks);
        let rounded_rows = self.rounded_rows;
        let rounded = if form.bf16 { rows.next_multiple_of(rounded_rows) * blocks } else { 0 };
        reserve(&mut self.rounded, rounded);
        let grain = match rows * columns < SHARED_NUMBERS {
            true => rows,
            false => rows.div_ceil(4 * compute.pool.threads()).min(GRAIN),
        };
        // Each part has whole panels of both.
        let is_tiled = self.are_tiled || form.bf16 && rounded_rows == TILE_ROWS;
        let share = grain.next_multiple_of(if is_tiled { TILE_ROWS } else { PANEL_ROWS });
        let mut floats = &mut self.floats[..];
        let mut rounded = &mut self.rounded[..rounded];
        let parts = (0..rows.div_ceil(share.max(1))).map(|part| {
            let floats = cut(&mut floats, share * columns);
            let digits = (digits.cut(share, blocks), tiles.cut(share, blocks));
            (part * share, floats, digits, cut(&mut rounded, share * blocks))
        });
        compute.pool.each_by_part(parts, |_, (first, floats, digits, rounded)| {
            for (row, floats) in floats.chunks_exact_mut(columns).enumerate() {
                make(first + row, floats);
            }
            if form.bf16 {
                round(compute.isa, floats, rounded, columns, rounded_rows);
            }
            if let Some(precision) = form.digits {
                quantize_either(compute.isa, floats, digits, (columns, precision.excess));
            }
        });
    }

    /// Are they read by instructions that multiply whole tiles?
    #[cfg(target_arch = "x86_64")]
    pub(super) fn are_for_tiles(&self) -> bool {
        self.are_tiled || self.form.bf16 && self.rounded_rows == TILE_ROWS
    }

    /// Are there digits that all threads read?
    fn digits_are_shared(&self) -> bool {
        self.form.digits.is_some() && self.rows * self.columns >= SHARED_NUMBERS
    }

    /// Calls `work` with the rows, as a thread reads them, one of those that they were filled in with.
    pub(super) fn read<R>(&self, isa: Isa, thread: usize, work: impl FnOnce(View<'_>) -> R) -> R {
        let precision = match self.form.digits {
            Some(precision) if !self.digits_are_shared() => precision,
            _ => return work(self.view(&self.digits, &self.tiles)),
        };
        let mut own = self.copies[thread].lock().unwrap_or_else(PoisonError::into_inner);
        let own = &mut *own;
        if own.generation != self.generation {
            let (plain, tiled) = if self.are_tiled { (0, self.rows) } else { (self.rows, 0) };
            let blocks = self.columns / BLOCK;
            let digits = (own.digits.make_room(plain, blocks), own.tiles.make_room(tiled, blocks));
            quantize_either(isa, &self.floats, digits, (self.columns, precision.excess));
            own.generation = self.generation;
        }
        work(self.view(&own.digits, &own.tiles))
    }

    fn view<'a>(&'a self, digits: &'a Digits, tiles: &'a Digits<TILE_ROWS>) -> View<'a> {
        let rows = if self.form.digits.is_some() { self.rows } else { 0 };
        let (plain, tiled) = if self.are_tiled { (0, rows) } else { (rows, 0) };
        let blocks = self.columns / BLOCK;
        let (panels, seconds, counts) = digits.get(plain, blocks);
        let (tiles, seconds_of_tiles, counts_of_tiles) = tiles.get(tiled, blocks);
        let (seconds, counts) = match self.are_tiled {
            true => (seconds_of_tiles, counts_of_tiles),
            false => (seconds, counts),
        };
        let rounded = self.rows.next_multiple_of(self.rounded_rows.max(1)) * blocks;
        let rounded = if self.form.bf16 { rounded } else { 0 };
        View {
            columns: self.columns,
            floats: &self.floats,
            panels,
            tiles,
            seconds,
            counts,
            rounded: &self.rounded[..rounded],
            rounded_rows: self.rounded_rows,
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
        let (rows, blocks) = (self.rounded_rows, self.columns / BLOCK);
        let each = rows * blocks;
        &self.rounded[first / rows * each..(first + count).div_ceil(rows) * each]
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
            tiles: &[],
            seconds: &self.seconds[quads.start * each..quads.end * each],
            counts: &self.counts[quads],
            rounded: self.rounded,
            rounded_rows: self.rounded_rows,
        }
    }

    /// Returns what instructions for whole tiles read of 16 rows: their first digits, and the
    /// second ones.
    #[inline(always)]
    #[cfg_attr(
        not(target_arch = "x86_64"),
        expect(dead_code, reason = "only x86-64 has kernels for it")
    )]
    pub(super) fn tile(&self, index: usize) -> (&'a [Panel<TILE_ROWS>], &'a [Second]) {
        let blocks = self.columns / BLOCK;
        let seconds = &self.seconds[index * blocks * TILE_ROWS..][..self.counts[index] as usize];
        (&self.tiles[index * blocks..][..blocks], seconds)
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
        let (block, column) = (column / BLOCK, column % BLOCK);
        let (values, scale, _) = self.first(row, block);
        let (first, worth) = (f64::from(values[column]), f64::from(scale));
        let second = self
            .second(row, block)
            .map_or(0.0, |second| f64::from(second.values[column]) * f64::from(second.scale));
        first * worth + second
    }

    /// Returns the first digits of a block of a row, what they are worth, and -8 times their sum and
    /// -16 times those of their halves.
    #[cfg(test)]
    fn first(&self, row: usize, block: usize) -> ([i8; BLOCK], f32, (i32, [i16; 2])) {
        fn of<const N: usize>(
            panels: &[Panel<N>],
            (row, at): (usize, usize),
        ) -> ([i8; BLOCK], f32, (i32, [i16; 2])) {
            let (panel, row) = (&panels[at], row % N);
            (panel.values[row], panel.scales[row], (panel.starts[row], panel.half_starts[row]))
        }
        let blocks = self.columns / BLOCK;
        match self.tiles {
            [] => of(self.panels, (row, row / PANEL_ROWS * blocks + block)),
            tiles => of(tiles, (row, row / TILE_ROWS * blocks + block)),
        }
    }

    /// Returns the second digits of a block of a row.
    #[cfg(test)]
    fn second(&self, row: usize, block: usize) -> Option<&Second> {
        let rows = if self.tiles.is_empty() { PANEL_ROWS } else { TILE_ROWS };
        let (panel, blocks) = (row / rows, self.columns / BLOCK);
        let seconds = &self.seconds[panel * rows * blocks..][..self.counts[panel] as usize];
        let wanted = ((row % rows) as u32, block as u32);
        seconds.iter().find(|second| (second.row, second.block) == wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Isa;
    use crate::cpu::pool::Pool;

    #[test]
    fn numbers_come_back_within_half_a_step() {
        let all: Vec<f32> =
            (0..50 * 288).map(|i| (i as f32 * 1.7).sin() * (i / 32 % 7) as f32).collect();
        let precisions = [Precision::NARROW, Precision::WIDE, Precision { excess: 1.5 }];
        // One block, and numbers of blocks with any remainder when they are taken in fours.
        for columns in [1, 2, 3, 4, 5, 9].map(|blocks| blocks * BLOCK) {
            for (isa, precision) in
                Isa::available().into_iter().flat_map(|isa| precisions.map(|p| (isa, p)))
            {
                come_back(&all, columns, isa, precision);
            }
        }
    }

    fn come_back(all: &[f32], columns: usize, isa: Isa, precision: Precision) {
        let compute = Compute { pool: Pool::start(2).unwrap(), isa };
        let mut activations = Activations::default();
        // Digits of few rows are each thread's own, and anew whenever rows are filled in.
        for (rows, offset) in [(50, 0), (5, 0), (5, 7), (40, 3)] {
            let x = &all[offset * columns..][..rows * columns];
            activations.floats(rows, columns);
            let form = Form { digits: Some(precision), bf16: true };
            activations.fill(&compute, form, |row, out| {
                out.copy_from_slice(&x[row * columns..][..columns]);
            });
            assert_eq!(activations.digits_are_shared(), rows * columns >= SHARED_NUMBERS);
            for thread in [1, 0, 1] {
                activations.read(isa, thread, |view| assert_near(view, x, isa, precision));
            }
        }
    }

    fn assert_near(view: View<'_>, x: &[f32], isa: Isa, precision: Precision) {
        assert_eq!(view.floats, x);
        for (block, x) in x.as_chunks::<BLOCK>().0.iter().enumerate() {
            let blocks = view.columns / BLOCK;
            let (row, column) = (block / blocks, block % blocks);
            let second = view.second(row, column);
            let is_wide = second.is_some();
            let steps: Vec<f32> = (0..blocks).map(|column| view.first(row, column).1).collect();
            let mean = steps.iter().map(|step| step * step).sum::<f32>() / blocks as f32;
            let (step, limit) = (steps[column], mean * precision.excess);
            // Whether a block at the limit is above it depends on the order of the sum.
            let is_at_it = (step * step - limit).abs() < limit.abs() * 1e-5;
            assert!(is_at_it || is_wide == (step * step > limit), "{isa:?}: {step}, {limit}");
            for (offset, x) in x.iter().enumerate() {
                let back = view.number(row, column * BLOCK + offset) as f32;
                let allowed = if is_wide { step / BASE * 0.6 } else { step * 0.501 };
                assert!((back - x).abs() <= allowed, "{isa:?}: {x} became {back}");
            }
            let (digits, _, (start, half_starts)) = view.first(row, column);
            let sum = |digits: &[i8]| digits.iter().map(|&digit| i32::from(digit)).sum::<i32>();
            assert!(digits.iter().all(|&digit| digit > i8::MIN));
            assert_eq!(start, -8 * sum(&digits));
            let halves = [&digits[..BLOCK / 2], &digits[BLOCK / 2..]].map(sum);
            assert_eq!(half_starts.map(i32::from), halves.map(|sum| -16 * sum));
            if let Some(second) = second {
                assert!(second.values.iter().all(|&digit| digit > i8::MIN));
                assert_eq!(second.sum(), sum(&second.values));
            }
        }
    }
}
