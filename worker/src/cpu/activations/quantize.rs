//! Digits of floats, for instruction sets without code of their own.
#![cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "calls a function that needs checked CPU features")
)]

use super::{BASE, BLOCK, DigitsMut, MOST, Panel, Second, TILE_ROWS};
use crate::cpu::Isa;
#[cfg(target_arch = "x86_64")]
use crate::cpu::isa::Kind;
use crate::cpu::isa::dispatched;
use crate::cpu::vector::LANES;

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

/// Quantises rows of some columns with the fastest code there is, into whichever of the two there is
/// room in: panels of four rows, or those for instructions that take whole tiles.
pub(super) fn quantize_either(
    isa: Isa,
    floats: &[f32],
    (panels, tiles): (DigitsMut<'_>, DigitsMut<'_, TILE_ROWS>),
    (columns, excess): (usize, f32),
) {
    #[cfg(target_arch = "x86_64")]
    if matches!(isa.kind(), Kind::Avx512 | Kind::Avx512Bf16 | Kind::Amx) {
        use crate::cpu::avx512::quantize;
        if panels.counts.is_empty() {
            // SAFETY: this `Isa` exists only where the features were detected.
            return unsafe { quantize(floats, tiles, columns, excess) };
        }
        // SAFETY: as above.
        return unsafe { quantize(floats, panels, columns, excess) };
    }
    debug_assert!(tiles.counts.is_empty(), "other instructions take no tiles");
    quantize(isa, floats, panels, columns, excess);
}

dispatched! {
    /// Quantises rows of `columns` numbers.
    fn quantize(floats: &[f32], digits: DigitsMut<'_>, columns: usize, excess: f32) = quantize_body
}

#[inline(always)]
fn quantize_body<const FMA: bool>(
    floats: &[f32],
    digits: DigitsMut<'_>,
    columns: usize,
    excess: f32,
) {
    quantize_rows(floats, digits, (columns, excess), quantize_row, second_digits);
}

/// Quantises rows, `N` to a panel: `quantize_row` does so with a row of a panel and returns the mean
/// of its squared steps, `second_digits` is as for [`add_seconds`].
#[inline(always)]
pub(in crate::cpu) fn quantize_rows<const N: usize>(
    floats: &[f32],
    digits: DigitsMut<'_, N>,
    (columns, excess): (usize, f32),
    quantize_row: impl Fn(&[[f32; BLOCK]], &mut [Panel<N>], usize) -> f32,
    second_digits: impl Fn(&[f32; BLOCK], f32, &mut [i8; BLOCK]) -> [i32; 2],
) {
    let DigitsMut { panels, seconds, counts } = digits;
    let blocks = columns / BLOCK;
    let rooms = seconds.chunks_exact_mut(N * blocks).zip(counts);
    let parts = floats.chunks(N * columns).zip(panels.chunks_exact_mut(blocks));
    for ((rows, panels), room) in parts.zip(rooms) {
        let mut limits = [0.0; N];
        for ((row, x), limit) in rows.chunks_exact(columns).enumerate().zip(&mut limits) {
            *limit = quantize_row(x.as_chunks().0, panels, row) * excess;
        }
        add_seconds(rows, panels, &limits, room, &second_digits);
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
        panel.set_sums(row, halves);
    }
    squares / panels.len() as f32
}

/// Returns what a number is multiplied with to become a digit: 0 where the step is none, NaN, or so
/// small that its inverse would be infinite.
#[inline(always)]
fn inverse(scale: f32) -> f32 {
    if scale >= f32::MIN_POSITIVE { 1.0 / scale } else { 0.0 }
}

/// Writes the second digits of the rows of a panel where a block's squared step is above its row's
/// limit, block after block, so that a kernel can unpack a block of weights once for all of them;
/// `digits` writes those of a block, given what a number is multiplied with to become a first
/// digit, and returns the sums of their halves.
#[inline(always)]
fn add_seconds<const N: usize>(
    rows: &[f32],
    panels: &[Panel<N>],
    limits: &[f32; N],
    (seconds, count): (&mut [Second], &mut u32),
    digits: impl Fn(&[f32; BLOCK], f32, &mut [i8; BLOCK]) -> [i32; 2],
) {
    *count = 0;
    let rows = rows.as_chunks::<BLOCK>().0.chunks_exact(panels.len());
    for (block, panel) in panels.iter().enumerate() {
        for ((row, x), limit) in rows.clone().enumerate().zip(limits) {
            let scale = panel.scales[row];
            if scale * scale > *limit {
                let second = &mut seconds[*count as usize];
                *count += 1;
                let halves = digits(&x[block], inverse(scale), &mut second.values);
                // At most 16 * 127 of size.
                second.half_sums = halves.map(|sum| sum as i16);
                second.scale = scale * (1.0 / BASE);
                (second.block, second.row) = (block as u32, row as u32);
            }
        }
    }
}

/// Writes the digits of what first digits left over, and returns the sums of the two halves.
#[inline(always)]
fn second_digits(x: &[f32; BLOCK], inverse: f32, out: &mut [i8; BLOCK]) -> [i32; 2] {
    rounded(out, |column| {
        let x = x[column] * inverse;
        let first = (x + ROUNDING) - ROUNDING;
        ((x - first) * BASE).clamp(-MOST, MOST) + ROUNDING
    })
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
