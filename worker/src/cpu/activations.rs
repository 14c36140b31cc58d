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
#![cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "calls a function that needs checked CPU features")
)]

use super::Isa;
#[cfg(target_arch = "x86_64")]
use super::isa::Kind;
use super::isa::dispatched;
use super::linear::Compute;
use super::vector::LANES;

mod rounded;

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
    /// The sum of the first digits.
    pub sums: [f32; PANEL_ROWS],
    /// The sums of the first and of the second 16 of them.
    pub half_sums: [[i32; 2]; PANEL_ROWS],
}

/// The second digits of a block of one row.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(16))]
pub(super) struct Second {
    /// Second digits.
    pub values: [i8; BLOCK],
    /// The sum of the second digits.
    pub sum: f32,
    /// What a second digit is worth.
    pub scale: f32,
    /// Which block of the row.
    pub block: u32,
    /// Which row of the panel.
    pub row: u32,
}

/// Rows of activations; the memory is kept between uses.
#[derive(Debug, Default)]
pub struct Activations {
    rows: usize,
    columns: usize,
    floats: Vec<f32>,
    panels: Vec<Panel>,
    seconds: Vec<Second>,
    counts: Vec<u32>,
    rounded: Vec<Rounded>,
    /// What there is of the rows.
    form: Form,
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

/// Quantised rows to be written.
pub(super) struct RowsMut<'a> {
    pub floats: &'a mut [f32],
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
        reserve(&mut self.floats, rows * columns);
        &mut self.floats[..rows * columns]
    }

    /// Has `make` write each of the rows that [`floats`](Self::floats) made room for, or leave it
    /// as it is, and gives them this form.
    pub fn fill(&mut self, compute: &Compute, form: Form, make: impl Fn(usize, &mut [f32]) + Sync) {
        let (rows, columns, blocks) = (self.rows, self.columns, self.columns / BLOCK);
        self.form = form;
        let quads = rows.div_ceil(PANEL_ROWS);
        let digits = if form.digits.is_some() { quads * blocks } else { 0 };
        let rounded = if form.bf16 { quads * blocks } else { 0 };
        reserve(&mut self.panels, digits);
        reserve(&mut self.seconds, PANEL_ROWS * digits);
        reserve(&mut self.counts, quads);
        reserve(&mut self.rounded, rounded);
        let grain = match rows * columns < SHARED_NUMBERS {
            true => rows,
            false => rows.div_ceil(4 * compute.pool.threads()).min(GRAIN),
        };
        let share = grain.div_ceil(PANEL_ROWS);
        let mut floats = &mut self.floats[..rows * columns];
        let mut panels = &mut self.panels[..digits];
        let mut seconds = &mut self.seconds[..PANEL_ROWS * digits];
        let mut counts = &mut self.counts[..quads];
        let mut rounded = &mut self.rounded[..rounded];
        let parts = (0..quads.div_ceil(share.max(1))).map(|part| {
            let rows = RowsMut {
                floats: cut(&mut floats, share * PANEL_ROWS * columns),
                panels: cut(&mut panels, share * blocks),
                seconds: cut(&mut seconds, share * PANEL_ROWS * blocks),
                counts: cut(&mut counts, share),
            };
            (part * share * PANEL_ROWS, rows, cut(&mut rounded, share * blocks))
        });
        compute.pool.each(parts, |_, (first, rows, rounded)| {
            for (row, floats) in rows.floats.chunks_exact_mut(columns).enumerate() {
                make(first + row, floats);
            }
            if form.bf16 {
                round(compute.isa, rows.floats, rounded, columns);
            }
            if let Some(precision) = form.digits {
                quantize_with_best(compute.isa, rows, columns, precision.excess);
            }
        });
    }

    /// Returns the rows.
    pub fn view(&self) -> View<'_> {
        let all = self.rows.div_ceil(PANEL_ROWS);
        let blocks = self.columns / BLOCK;
        let quads = if self.form.digits.is_some() { all } else { 0 };
        let rounded = if self.form.bf16 { all * blocks } else { 0 };
        View {
            columns: self.columns,
            floats: &self.floats[..self.rows * self.columns],
            panels: &self.panels[..quads * blocks],
            seconds: &self.seconds[..quads * PANEL_ROWS * blocks],
            counts: &self.counts[..quads],
            rounded: &self.rounded[..rounded],
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

/// Returns the step of 32 numbers: their largest size over [`MOST`]; NaN if one of them is NaN or
/// infinite, so that every product with the block is NaN, whatever its digits are.
#[inline(always)]
fn step(x: &[f32; BLOCK]) -> f32 {
    // As whole numbers the bits of sizes have the order of the sizes, with NaN above all.
    let mut lanes = [0i32; LANES];
    let (halves, _) = x.as_chunks::<LANES>();
    for half in halves {
        for (lane, value) in lanes.iter_mut().zip(half) {
            let size = value.abs().to_bits() as i32;
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
    let step = f32::from_bits(lanes[0] as u32) / MOST;
    // Zero times infinity is NaN.
    step + 0.0 * step
}

/// Quantises rows of `columns` numbers with the fastest code there is.
fn quantize_with_best(isa: Isa, rows: RowsMut<'_>, columns: usize, excess: f32) {
    #[cfg(target_arch = "x86_64")]
    if matches!(isa.kind(), Kind::Avx512 | Kind::Avx512Bf16) {
        // SAFETY: this `Isa` exists only where the features were detected.
        return unsafe { super::avx512::quantize(rows, columns, excess) };
    }
    quantize(isa, rows, columns, excess);
}

dispatched! {
    /// Quantises rows of `columns` numbers.
    fn quantize(rows: RowsMut<'_>, columns: usize, excess: f32) = quantize_body
}

#[inline(always)]
fn quantize_body<const FMA: bool>(rows: RowsMut<'_>, columns: usize, excess: f32) {
    let RowsMut { floats, panels, seconds, counts } = rows;
    let blocks = columns / BLOCK;
    let rooms = seconds.chunks_exact_mut(PANEL_ROWS * blocks).zip(counts);
    let quads = floats.chunks(PANEL_ROWS * columns).zip(panels.chunks_exact_mut(blocks));
    for ((rows, panels), room) in quads.zip(rooms) {
        let mut limits = [0.0; PANEL_ROWS];
        for ((row, x), limit) in rows.chunks_exact(columns).enumerate().zip(&mut limits) {
            *limit = quantize_row(x.as_chunks().0, panels, row) * excess;
        }
        add_seconds(rows, panels, &limits, room, second_digits);
    }
}

/// Quantises a row of a panel, and returns the mean of its squared steps.
#[inline(always)]
fn quantize_row(x: &[[f32; BLOCK]], panels: &mut [Panel], row: usize) -> f32 {
    let mut squares = 0.0;
    for (x, panel) in x.iter().zip(&mut *panels) {
        let scale = step(x);
        panel.scales[row] = scale;
        squares += scale * scale;
    }
    for (x, panel) in x.iter().zip(&mut *panels) {
        let inverse = inverse(panel.scales[row]);
        let halves = rounded(&mut panel.values[row], |column| x[column] * inverse + ROUNDING);
        panel.sums[row] = (halves[0] + halves[1]) as f32;
        panel.half_sums[row] = halves;
    }
    squares / panels.len() as f32
}

/// Returns what a number is multiplied with to become a digit: 0 where the step is none, NaN, or so
/// small that its inverse would be infinite.
#[inline(always)]
pub(super) fn inverse(scale: f32) -> f32 {
    if scale >= f32::MIN_POSITIVE { 1.0 / scale } else { 0.0 }
}

/// Writes the second digits of the rows of a panel where a block's squared step is above its row's
/// limit, block after block, so that a kernel can unpack a block of weights once for all of them;
/// `digits` writes those of a block, given what a number is multiplied with to become a first
/// digit, and returns their sum.
#[inline(always)]
pub(super) fn add_seconds(
    rows: &[f32],
    panels: &[Panel],
    limits: &[f32; PANEL_ROWS],
    (seconds, count): (&mut [Second], &mut u32),
    digits: impl Fn(&[f32; BLOCK], f32, &mut [i8; BLOCK]) -> i32,
) {
    *count = 0;
    let rows = rows.as_chunks::<BLOCK>().0.chunks_exact(panels.len());
    for (block, panel) in panels.iter().enumerate() {
        for ((row, x), limit) in rows.clone().enumerate().zip(limits) {
            let scale = panel.scales[row];
            if scale * scale > *limit {
                let second = &mut seconds[*count as usize];
                *count += 1;
                second.sum = digits(&x[block], inverse(scale), &mut second.values) as f32;
                second.scale = scale * (1.0 / BASE);
                (second.block, second.row) = (block as u32, row as u32);
            }
        }
    }
}

/// Writes the digits of what first digits left over, and returns their sum.
#[inline(always)]
fn second_digits(x: &[f32; BLOCK], inverse: f32, out: &mut [i8; BLOCK]) -> i32 {
    let halves = rounded(out, |column| {
        let x = x[column] * inverse;
        let first = (x + ROUNDING) - ROUNDING;
        ((x - first) * BASE).clamp(-MOST, MOST) + ROUNDING
    });
    halves[0] + halves[1]
}

/// Adding this to a number of at most 2^22 rounds it to a whole one, ties to even, whose low byte
/// is then the lowest of the bits.
const ROUNDING: f32 = 12_582_912.0;

/// Writes the lowest bytes of rounded numbers, and returns the sums of the two halves.
#[inline(always)]
fn rounded(out: &mut [i8; BLOCK], number: impl Fn(usize) -> f32) -> [i32; 2] {
    let mut sums = [0; 2];
    for (half, out) in out.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
        for (lane, out) in out.iter_mut().enumerate() {
            *out = number(half * LANES + lane).to_bits() as i8;
        }
        sums[half] = out.iter().map(|&digit| i32::from(digit)).sum();
    }
    sums
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
            let form = Form { digits: Some(precision), bf16: true };
            activations.fill(&compute, form, |row, out| {
                out.copy_from_slice(&x[row * COLUMNS..][..COLUMNS]);
            });
            let view = activations.view();
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
                let sum = |digits: [i8; BLOCK]| digits.map(f32::from).iter().sum::<f32>();
                assert!(digits.iter().all(|&digit| digit > i8::MIN));
                let panel = view.panels[panels + column];
                assert_eq!(panel.sums[lane], sum(digits));
                let first: i32 = digits[..16].iter().map(|&digit| i32::from(digit)).sum();
                assert_eq!(panel.half_sums[lane], [first, sum(digits) as i32 - first]);
                if let Some(second) = second {
                    assert!(second.values.iter().all(|&digit| digit > i8::MIN));
                    assert_eq!(second.sum, sum(second.values));
                }
            }
        }
    }
}
