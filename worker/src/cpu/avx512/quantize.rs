//! The quantising of activations with AVX-512: four blocks of 32 at a time, since what is found
//! across the lanes of one register costs as much for four.
#![expect(unsafe_code, reason = "loads and stores of SIMD registers")]

use std::arch::x86_64::*;

use crate::cpu::activations::{BASE, BLOCK, DigitsMut, MOST, Panel, quantize_rows};

/// Blocks at a time.
const FOUR: usize = 4;

/// Does what [`quantize`](crate::cpu::activations) does.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(in crate::cpu) fn quantize<const N: usize>(
    floats: &[f32],
    digits: DigitsMut<'_, N>,
    columns: usize,
    excess: f32,
) {
    let row = |x: &[_], panels: &mut [_], row| quantize_row(x, panels, row);
    let seconds = |x: &_, inverse, out: &mut _| second_digits(x, inverse, out);
    quantize_rows(floats, digits, (columns, excess), row, seconds);
}

/// Quantises a row of a panel, and returns the mean of its squared steps.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn quantize_row<const N: usize>(x: &[[f32; BLOCK]], panels: &mut [Panel<N>], row: usize) -> f32 {
    let mut squares = _mm_setzero_ps();
    for (x, panels) in x.chunks(FOUR).zip(panels.chunks_mut(FOUR)) {
        // The count is a constant of each, so that their registers stay registers.
        let steps = match x.len() {
            FOUR => quantize_blocks::<4, N>(x, panels, row),
            3 => quantize_blocks::<3, N>(x, panels, row),
            2 => quantize_blocks::<2, N>(x, panels, row),
            _ => quantize_blocks::<1, N>(x, panels, row),
        };
        squares = _mm_fmadd_ps(steps, steps, squares);
    }
    let [a, b, c, d] = floats_of(squares);
    ((a + b) + (c + d)) / panels.len() as f32
}

/// Quantises up to four blocks, and returns their steps.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn quantize_blocks<const B: usize, const N: usize>(
    x: &[[f32; BLOCK]],
    panels: &mut [Panel<N>],
    row: usize,
) -> __m128 {
    let (x, panels) = (&x[..B], &mut panels[..B]);
    let steps = _mm_mul_ps(largest(x), _mm_set1_ps(1.0 / MOST));
    // Infinity less infinity is NaN.
    let steps = _mm_add_ps(steps, _mm_sub_ps(steps, steps));
    let (worth, inverses) = (floats_of(steps), floats_of(inverses(steps)));
    let mut quarters = [_mm256_setzero_si256(); FOUR];
    for block in 0..B {
        panels[block].scales[row] = worth[block];
        quarters[block] = first_digits(&x[block], inverses[block], &mut panels[block].values[row]);
    }
    let halves = sums(quarters);
    for block in 0..B {
        panels[block].set_sums(row, halves[block]);
    }
    steps
}

/// Returns the inverses of four steps, to the bit what `inverse` makes of each: second digits are of
/// what first ones left over, and get theirs from there.
#[inline]
#[target_feature(enable = "avx512f,avx512vl")]
fn inverses(steps: __m128) -> __m128 {
    let usable = _mm_cmp_ps_mask::<_CMP_GE_OQ>(steps, _mm_set1_ps(f32::MIN_POSITIVE));
    _mm_maskz_div_ps(usable, _mm_set1_ps(1.0), steps)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn floats_of(four: __m128) -> [f32; FOUR] {
    let mut floats = [0.0; FOUR];
    // SAFETY: four floats, which is what the store writes.
    unsafe { _mm_storeu_ps(floats.as_mut_ptr(), four) };
    floats
}

#[inline]
#[target_feature(enable = "avx512f")]
fn halves_of(x: &[f32; BLOCK]) -> [__m512; 2] {
    let (first, second) = x.split_at(BLOCK / 2);
    // SAFETY: half of 32 floats, which is what the load reads.
    let first = unsafe { _mm512_loadu_ps(first.as_ptr()) };
    // SAFETY: as above.
    let second = unsafe { _mm512_loadu_ps(second.as_ptr()) };
    [first, second]
}

/// Returns the largest size of each of up to four blocks' numbers, NaN above all, and 0 for what is
/// missing.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn largest(blocks: &[[f32; BLOCK]]) -> __m128 {
    // As whole numbers the bits of sizes have the order of the sizes.
    let sizes = |half| _mm512_castps_si512(_mm512_abs_ps(half));
    let mut most = [_mm512_setzero_si512(); FOUR];
    for (x, most) in blocks.iter().zip(&mut most) {
        let [first, second] = halves_of(x).map(sizes);
        *most = _mm512_max_epi32(first, second);
    }
    // Transposed while they shrink: in the end each lane of four has one number of each block.
    let [a, b, c, d] = most;
    let ab = _mm512_max_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    let cd = _mm512_max_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    let (low, high) = (_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    let all = _mm512_max_epi32(low, high);
    let upper = _mm512_extracti32x8_epi32::<1>(all);
    let half = _mm256_max_epi32(_mm512_castsi512_si256(all), upper);
    let upper = _mm256_extracti128_si256::<1>(half);
    _mm_castsi128_ps(_mm_max_epi32(_mm256_castsi256_si128(half), upper))
}

/// Writes first digits, and returns the sums of each four of them.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn first_digits(x: &[f32; BLOCK], inverse: f32, out: &mut [i8; BLOCK]) -> __m256i {
    let inverse = _mm512_set1_ps(inverse);
    write(halves_of(x).map(|half| _mm512_mul_ps(half, inverse)), out)
}

/// Writes the digits of what first digits left over, and returns the sums of the two halves.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn second_digits(x: &[f32; BLOCK], inverse: f32, out: &mut [i8; BLOCK]) -> [i32; 2] {
    let inverse = _mm512_set1_ps(inverse);
    let rest = halves_of(x).map(|half| {
        let scaled = _mm512_mul_ps(half, inverse);
        let rest = _mm512_sub_ps(scaled, _mm512_roundscale_ps::<0>(scaled));
        let rest = _mm512_mul_ps(rest, _mm512_set1_ps(BASE));
        _mm512_max_ps(_mm512_min_ps(rest, _mm512_set1_ps(MOST)), _mm512_set1_ps(-MOST))
    });
    let [halves, ..] = sums([write(rest, out); FOUR]);
    halves
}

/// Writes rounded numbers, and returns the sums of each four of them.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn write(halves: [__m512; 2], out: &mut [i8; BLOCK]) -> __m256i {
    let [first, second] = halves.map(|half| _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(half)));
    let digits = _mm256_set_m128i(second, first);
    // SAFETY: 32 bytes, which is what the store writes.
    unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), digits) };
    _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm256_set1_epi8(1), digits)
}

/// Returns the sums of the two halves of each block, of those of each four columns.
#[inline]
#[target_feature(enable = "avx512f,avx512vl")]
fn sums([a, b, c, d]: [__m256i; FOUR]) -> [[i32; 2]; FOUR] {
    let all = _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
    let mut sums = [[0; FOUR]; 2];
    // SAFETY: eight words, which is what the store writes.
    unsafe { _mm256_storeu_si256(sums.as_mut_ptr().cast(), all) };
    let [first, second] = sums;
    std::array::from_fn(|block| [first[block], second[block]])
}
