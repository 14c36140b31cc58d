//! The tile kernels with NEON: four registers are the 16 rows of a tile.
#![expect(unsafe_code, reason = "loads of SIMD registers from checked slices")]

use std::arch::aarch64::*;
use std::arch::asm;

use super::activations::{BLOCK, PANEL_ROWS, View};
use super::packed::{
    Bf16, Codes, Dense, F16, F32, Float, Format, NESTED_MINIMA, PLANE, PLANES, ROWS, Scales,
    with_format,
};

/// Registers of 4 rows in a tile.
const QUARTERS: usize = ROWS / 4;

/// Multiplies a group of 16 rows of codes with some rows of quantised activations.
#[target_feature(enable = "neon")]
pub(super) fn coded(
    codes: Codes,
    group: &[u8],
    x: View<'_>,
    first: usize,
    out: &mut [[f32; ROWS]],
) {
    with_format!(codes, all_rows(group, x, first, out));
}

/// Does the same with the instruction for dot products of bytes.
#[target_feature(enable = "neon,dotprod")]
pub(super) fn coded_dotprod(
    codes: Codes,
    group: &[u8],
    x: View<'_>,
    first: usize,
    out: &mut [[f32; ROWS]],
) {
    with_format!(codes, all_rows_dotprod(group, x, first, out));
}

#[target_feature(enable = "neon")]
fn all_rows<F: Format>(group: &[u8], x: View<'_>, first: usize, out: &mut [[f32; ROWS]]) {
    split::<F, false>(group, x, first, out);
}

#[target_feature(enable = "neon,dotprod")]
fn all_rows_dotprod<F: Format>(group: &[u8], x: View<'_>, first: usize, out: &mut [[f32; ROWS]]) {
    split::<F, true>(group, x, first, out);
}

#[target_feature(enable = "neon")]
fn split<F: Format, const DOT: bool>(
    group: &[u8],
    x: View<'_>,
    first: usize,
    out: &mut [[f32; ROWS]],
) {
    let mut done = 0;
    while done < out.len() {
        let (row, left) = (first + done, &mut out[done..]);
        done += match left.len() {
            4.. => rows::<F, DOT, 4>(group, x, row, left),
            2.. => rows::<F, DOT, 2>(group, x, row, left),
            _ => rows::<F, DOT, 1>(group, x, row, left),
        };
    }
}

#[target_feature(enable = "neon")]
fn rows<F: Format, const DOT: bool, const M: usize>(
    group: &[u8],
    x: View<'_>,
    first: usize,
    out: &mut [[f32; ROWS]],
) -> usize {
    let blocks = x.columns / BLOCK;
    assert_eq!(group.len() * F::CODES.blocks(), blocks * F::CODES.tile_bytes());
    let (x, lane) = (x.rows(first, M), first % PANEL_ROWS);
    let mut sums = [[vdupq_n_f32(0.0); QUARTERS]; M];
    for (index, tile) in group.chunks_exact(F::CODES.tile_bytes()).enumerate() {
        let (header, codes) = tile.split_at(F::CODES.header_bytes());
        for (inner, codes) in codes.chunks_exact(F::CODES.block_bytes()).enumerate() {
            let b = index * F::CODES.blocks() + inner;
            for quarter in 0..QUARTERS {
                let scales = scales::<F>(header, inner, quarter);
                let planes = unpack::<F>(codes, quarter);
                for (m, sums) in sums.iter_mut().enumerate() {
                    let row = lane + m;
                    let panel = &x.panels[row / PANEL_ROWS * blocks + b];
                    let row = row % PANEL_ROWS;
                    let (values, sum) = (&panel.values[row], panel.sum(row));
                    let product = product::<F, DOT>(&planes, values, sum, scales);
                    sums[quarter] = vfmaq_n_f32(sums[quarter], product, panel.scales[row]);
                }
            }
        }
    }
    store(out, sums);
    add_seconds::<F, DOT>(group, x, lane, &mut out[..M]);
    M
}

/// Adds the products with the second digits of blocks that have any: few, and so apart.
#[target_feature(enable = "neon")]
fn add_seconds<F: Format, const DOT: bool>(
    group: &[u8],
    x: View<'_>,
    lane: usize,
    out: &mut [[f32; ROWS]],
) {
    for (quad, seconds) in x.seconds().enumerate() {
        for second in seconds {
            let row = (quad * PANEL_ROWS + second.row as usize).wrapping_sub(lane);
            if row >= out.len() {
                continue;
            }
            let (header, inner, codes) = F::CODES.find(group, second.block as usize);
            for (quarter, out) in out[row].as_chunks_mut::<4>().0.iter_mut().enumerate() {
                let scales = scales::<F>(header, inner, quarter);
                let planes = unpack::<F>(codes, quarter);
                let product =
                    product::<F, DOT>(&planes, &second.values, second.sum() as f32, scales);
                // SAFETY: `out` is 4 floats, which is what the load reads.
                let sum = unsafe { vld1q_f32(out.as_ptr()) };
                let sum = vfmaq_n_f32(sum, product, second.scale);
                // SAFETY: `out` is 4 floats, which is what the store writes.
                unsafe { vst1q_f32(out.as_mut_ptr(), sum) };
            }
        }
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn store<const M: usize>(out: &mut [[f32; ROWS]], sums: [[float32x4_t; QUARTERS]; M]) {
    for (out, sums) in out.iter_mut().zip(sums) {
        for (out, sum) in out.as_chunks_mut::<4>().0.iter_mut().zip(sums) {
            // SAFETY: `out` is 4 floats, which is what the store writes.
            unsafe { vst1q_f32(out.as_mut_ptr(), sum) };
        }
    }
}

/// Returns four activations, in every row.
#[inline]
#[target_feature(enable = "neon")]
fn broadcast(values: &[i8; BLOCK], at: usize) -> int8x16_t {
    debug_assert!(at + 4 <= values.len());
    // SAFETY: the callers ask for columns of a block; unaligned is fine.
    let four = unsafe { values.as_ptr().add(at).cast::<i32>().read_unaligned() };
    vreinterpretq_s8_s32(vdupq_n_s32(four))
}

#[inline]
#[target_feature(enable = "neon")]
fn load(bytes: &[u8], at: usize) -> uint8x16_t {
    debug_assert!(at + 16 <= bytes.len());
    // SAFETY: the slice is a block, whose size `chunks_exact` saw to, and `at` is inside.
    unsafe { vld1q_u8(bytes.as_ptr().add(at)) }
}

/// Returns 4 halves as floats.
#[inline]
#[target_feature(enable = "neon")]
fn halves(bytes: &[u8], at: usize) -> float32x4_t {
    debug_assert!(at + 8 <= bytes.len());
    // SAFETY: the slice is a header or a block of known size, and `at` is inside.
    let bits = unsafe { vld1_u8(bytes.as_ptr().add(at)) };
    vcvt_f32_f16(vreinterpret_f16_u8(bits))
}

/// Returns 4 bytes of a header.
fn bytes(header: &[u8], at: usize) -> [u8; 4] {
    [header[at], header[at + 1], header[at + 2], header[at + 3]]
}

/// Returns the numbers of 32 columns of 4 rows, plane after plane; they are codes from 0 only
/// where there are minima.
#[inline]
#[target_feature(enable = "neon")]
fn unpack<F: Format>(block: &[u8], quarter: usize) -> [int8x16_t; PLANES] {
    let mut planes = [vdupq_n_u8(0); PLANES];
    let part = |plane: usize| load(block, plane * PLANE + 16 * quarter);
    let (one, three) = (vdupq_n_u8(16), vdupq_n_u8(48));
    if F::CODES.bits() == 8 {
        for (k, plane) in planes.iter_mut().enumerate() {
            *plane = part(k);
        }
    } else {
        for k in 0..PLANES / 2 {
            let bytes = part(k);
            planes[k] = vandq_u8(bytes, vdupq_n_u8(15));
            planes[k + 4] = vshrq_n_u8::<4>(bytes);
        }
    }
    match F::CODES.bits() {
        5 => {
            let upper = part(4);
            for (k, plane) in planes.iter_mut().enumerate() {
                let upper = vshlq_u8(upper, vdupq_n_s8(4 - k as i8));
                *plane = vorrq_u8(*plane, vandq_u8(upper, one));
            }
        }
        6 => {
            for (k, plane) in planes.iter_mut().enumerate() {
                let upper = vshlq_u8(part(4 + k / 4), vdupq_n_s8(4 - 2 * (k % 4) as i8));
                *plane = vorrq_u8(*plane, vandq_u8(upper, three));
            }
        }
        _ => {}
    }
    let centre = match F::CODES.scales() {
        Scales::Centred | Scales::Halves => F::CODES.centre() as u8,
        Scales::Minimum | Scales::Nested => 0,
    };
    planes.map(|plane| vreinterpretq_s8_u8(vsubq_u8(plane, vdupq_n_u8(centre))))
}

/// Returns the scales of a block, for [`Scales::Halves`] those of its first and second columns,
/// else those of all columns and the minima.
#[inline]
#[target_feature(enable = "neon")]
fn scales<F: Format>(header: &[u8], block: usize, quarter: usize) -> (float32x4_t, float32x4_t) {
    let offset = 4 * quarter;
    let factor = halves(header, 2 * offset);
    let floats = |floats: [f32; 4]| {
        // SAFETY: these are the 4 floats that are read.
        unsafe { vld1q_f32(floats.as_ptr()) }
    };
    match F::CODES.scales() {
        Scales::Centred => (factor, vdupq_n_f32(0.0)),
        Scales::Minimum => (factor, halves(header, 2 * (ROWS + offset))),
        Scales::Nested => {
            let widen = |at: usize| floats(bytes(header, at + offset).map(f32::from));
            let minimum = widen(NESTED_MINIMA + block * ROWS);
            let minimum = vmulq_f32(halves(header, 2 * (ROWS + offset)), minimum);
            (vmulq_f32(factor, widen((4 + block) * ROWS)), vnegq_f32(minimum))
        }
        Scales::Halves => {
            let widen =
                |at: usize| floats(bytes(header, at + offset).map(|byte| f32::from(byte as i8)));
            let at = (2 + 2 * block) * ROWS;
            (vmulq_f32(factor, widen(at)), vmulq_f32(factor, widen(at + ROWS)))
        }
    }
}

/// Adds the products of four columns to the sums of 4 rows.
#[inline]
#[target_feature(enable = "neon")]
fn multiply_add<const DOT: bool>(sums: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    if !DOT {
        // 128 * 127 * 2 fits into 16 bits.
        let first = vmull_s8(vget_low_s8(a), vget_low_s8(b));
        return vpadalq_s16(sums, vpaddq_s16(first, vmull_high_s8(a, b)));
    }
    let mut sums = sums;
    // SAFETY: the instruction works on registers alone, and `DOT` is only where it was detected.
    unsafe {
        asm!(
            ".arch_extension dotprod",
            "sdot {sums:v}.4s, {a:v}.16b, {b:v}.16b",
            sums = inout(vreg) sums,
            a = in(vreg) a,
            b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sums
}

/// Returns the products of 32 columns of 4 rows with digits of a token, without their worth.
#[inline]
#[target_feature(enable = "neon")]
fn product<F: Format, const DOT: bool>(
    planes: &[int8x16_t; PLANES],
    values: &[i8; BLOCK],
    sum: f32,
    (scale, other): (float32x4_t, float32x4_t),
) -> float32x4_t {
    let dot = |planes: &[int8x16_t], at: usize| {
        let mut sums = vdupq_n_s32(0);
        for (k, plane) in planes.iter().enumerate() {
            sums = multiply_add::<DOT>(sums, *plane, broadcast(values, at + 4 * k));
        }
        vcvtq_f32_s32(sums)
    };
    match F::CODES.scales() {
        Scales::Centred => vmulq_f32(scale, dot(planes, 0)),
        Scales::Minimum | Scales::Nested => {
            vfmaq_f32(vmulq_n_f32(other, sum), scale, dot(planes, 0))
        }
        Scales::Halves => {
            let (first, second) = planes.split_at(PLANES / 2);
            let (first, second) = (dot(first, 0), dot(second, BLOCK / 2));
            vfmaq_f32(vmulq_f32(scale, first), other, second)
        }
    }
}

/// Multiplies a group of 16 rows of floats with some rows of activations.
#[target_feature(enable = "neon")]
pub(super) fn dense(dense: Dense, group: &[u8], x: &[f32], out: &mut [[f32; ROWS]]) {
    match dense {
        Dense::F32 => all_dense_rows::<F32>(group, x, out),
        Dense::F16 => all_dense_rows::<F16>(group, x, out),
        Dense::Bf16 => all_dense_rows::<Bf16>(group, x, out),
    }
}

#[target_feature(enable = "neon")]
fn all_dense_rows<F: Float>(group: &[u8], x: &[f32], out: &mut [[f32; ROWS]]) {
    let columns = group.len() / (ROWS * F::DENSE.number_bytes());
    let mut done = 0;
    while done < out.len() {
        let (x, left) = (&x[done * columns..], &mut out[done..]);
        done += match left.len() {
            2.. => dense_rows::<F, 2>(group, x, left),
            _ => dense_rows::<F, 1>(group, x, left),
        };
    }
}

#[target_feature(enable = "neon")]
fn dense_rows<F: Float, const M: usize>(group: &[u8], x: &[f32], out: &mut [[f32; ROWS]]) -> usize {
    let pair_bytes = 2 * ROWS * F::DENSE.number_bytes();
    let columns = 2 * (group.len() / pair_bytes);
    let x = &x[..M * columns];
    // Sums of even and of odd columns, so that one product need not wait for the other.
    let mut sums = [[[vdupq_n_f32(0.0); QUARTERS]; 2]; M];
    for (pair, weights) in group.chunks_exact(pair_bytes).enumerate() {
        for quarter in 0..QUARTERS {
            let weights = widen_pair::<F>(weights, quarter);
            for (m, sums) in sums.iter_mut().enumerate() {
                for (side, sums) in sums.iter_mut().enumerate() {
                    let value = x[m * columns + 2 * pair + side];
                    sums[quarter] = vfmaq_n_f32(sums[quarter], weights[side], value);
                }
            }
        }
    }
    let join = |[even, odd]: [[float32x4_t; QUARTERS]; 2]| {
        let mut sums = even;
        for (sum, odd) in sums.iter_mut().zip(odd) {
            *sum = vaddq_f32(*sum, odd);
        }
        sums
    };
    store(out, sums.map(join));
    M
}

/// Returns two columns of 4 rows.
#[inline]
#[target_feature(enable = "neon")]
fn widen_pair<F: Float>(pair: &[u8], quarter: usize) -> [float32x4_t; 2] {
    match F::DENSE {
        Dense::F32 => [0, 64].map(|at| vreinterpretq_f32_u8(load(pair, at + 16 * quarter))),
        Dense::F16 => [0, 32].map(|at| halves(pair, at + 8 * quarter)),
        Dense::Bf16 => {
            let words = vreinterpretq_u32_u8(load(pair, 16 * quarter));
            let odd = vandq_u32(words, vdupq_n_u32(0xffff_0000));
            [vshlq_n_u32::<16>(words), odd].map(|words| vreinterpretq_f32_u32(words))
        }
    }
}
