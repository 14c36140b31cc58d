//! The tile kernels with AVX2: two registers are the 16 rows of a tile.
#![expect(unsafe_code, reason = "loads of SIMD registers from checked slices")]

use std::arch::x86_64::*;

use super::activations::{BASE, BLOCK, View};
use super::packed::{Layout, ROWS};

/// Rows of a register.
const HALF: usize = ROWS / 2;

/// Multiplies a group of 16 rows with some rows of quantised activations.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn quantized(
    layout: Layout,
    group: &[u8],
    x: View<'_>,
    first: usize,
    out: &mut [[f32; ROWS]],
) {
    let mut done = 0;
    while done < out.len() {
        let (row, left) = (first + done, &mut out[done..]);
        done += match left.len() {
            4.. => rows::<4>(layout, group, x, row, left),
            2.. => rows::<2>(layout, group, x, row, left),
            _ => rows::<1>(layout, group, x, row, left),
        };
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn rows<const M: usize>(
    layout: Layout,
    group: &[u8],
    x: View<'_>,
    first: usize,
    out: &mut [[f32; ROWS]],
) -> usize {
    assert_eq!(group.len(), x.columns / BLOCK * layout.tile_bytes());
    let x = x.rows(first, M);
    for half in 0..2 {
        let sums = match layout == Layout::Q4 {
            true => q4::<M>(group, x, first, half),
            false => q8::<M>(group, x, first, half),
        };
        for (out, sum) in out.iter_mut().zip(sums) {
            let out = &mut out[half * HALF..][..HALF];
            // SAFETY: `out` is 8 floats, which is what the store writes.
            unsafe { _mm256_storeu_ps(out.as_mut_ptr(), sum) };
        }
    }
    M
}

/// Returns four activations, in every lane.
#[inline]
#[target_feature(enable = "avx2")]
fn broadcast(values: &[i8], at: usize) -> __m256i {
    debug_assert!(at + 4 <= values.len());
    // SAFETY: the callers ask for columns of rows that `rows` cut to size; unaligned is fine.
    let four = unsafe { values.as_ptr().add(at).cast::<i32>().read_unaligned() };
    _mm256_set1_epi32(four)
}

#[inline]
#[target_feature(enable = "avx2")]
fn load(tile: &[u8], at: usize) -> __m256i {
    debug_assert!(at + 32 <= tile.len());
    // SAFETY: a tile is a slice of `tile_bytes`, and `at` is inside by its layout.
    unsafe { _mm256_loadu_si256(tile.as_ptr().add(at).cast()) }
}

/// Returns 8 halves as floats.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn halves(tile: &[u8], at: usize) -> __m256 {
    debug_assert!(at + 16 <= tile.len());
    // SAFETY: a tile is a slice of `tile_bytes`, and `at` is inside by its layout.
    let bits = unsafe { _mm_loadu_si128(tile.as_ptr().add(at).cast()) };
    _mm256_cvtph_ps(bits)
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn q4<const M: usize>(group: &[u8], x: View<'_>, first: usize, half: usize) -> [__m256; M] {
    let blocks = x.columns / BLOCK;
    let (nibble, ones) = (_mm256_set1_epi8(15), _mm256_set1_epi16(1));
    let mut sums = [_mm256_setzero_ps(); M];
    for (b, tile) in group.chunks_exact(Layout::Q4.tile_bytes()).enumerate() {
        let scale = halves(tile, 2 * HALF * half);
        let minimum = halves(tile, 2 * ROWS + 2 * HALF * half);
        let add = |sum: __m256, m: usize, (values, sums): (&[i8], &[f32]), worth: f32| {
            let at = m * x.columns + b * BLOCK;
            // Eight products of at most 15 * 127 * 2 fit into 16 bits.
            let mut pairs = _mm256_setzero_si256();
            for k in 0..4 {
                let bytes = load(tile, 4 * ROWS + 64 * k + 32 * half);
                let low = _mm256_and_si256(bytes, nibble);
                let high = _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), nibble);
                let low = _mm256_maddubs_epi16(low, broadcast(values, at + 4 * k));
                let high = _mm256_maddubs_epi16(high, broadcast(values, at + 16 + 4 * k));
                pairs = _mm256_add_epi16(pairs, _mm256_add_epi16(low, high));
            }
            let dot = _mm256_cvtepi32_ps(_mm256_madd_epi16(pairs, ones));
            let offset = _mm256_mul_ps(minimum, _mm256_set1_ps(sums[m * blocks + b]));
            let product = _mm256_fmadd_ps(scale, dot, offset);
            _mm256_fmadd_ps(_mm256_set1_ps(worth), product, sum)
        };
        let marks = x.marks(first, b);
        for (m, sum) in sums.iter_mut().enumerate() {
            let worth = x.scales[m * blocks + b];
            *sum = add(*sum, m, (x.values, x.sums), worth);
            if marks >> m & 1 == 1 {
                *sum = add(*sum, m, (x.low, x.low_sums), worth * (1.0 / BASE));
            }
        }
    }
    sums
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn q8<const M: usize>(group: &[u8], x: View<'_>, first: usize, half: usize) -> [__m256; M] {
    let blocks = x.columns / BLOCK;
    let (sign, ones) = (_mm256_set1_epi8(i8::MIN), _mm256_set1_epi16(1));
    let mut sums = [_mm256_setzero_ps(); M];
    for (b, tile) in group.chunks_exact(Layout::Q8.tile_bytes()).enumerate() {
        let scale = halves(tile, 2 * HALF * half);
        let add = |sum: __m256, m: usize, values: &[i8], worth: f32| {
            let at = m * x.columns + b * BLOCK;
            let mut dot = _mm256_setzero_si256();
            for k in 0..8 {
                // The multiplication wants one unsigned side: the weight's sign moves over to
                // the activation, and 128 * 127 * 2 still fits into 16 bits.
                let weights = load(tile, 2 * ROWS + 64 * k + 32 * half);
                let weights = _mm256_xor_si256(weights, sign);
                let signed = _mm256_sign_epi8(broadcast(values, at + 4 * k), weights);
                let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(weights), signed);
                dot = _mm256_add_epi32(dot, _mm256_madd_epi16(pairs, ones));
            }
            let scale = _mm256_mul_ps(scale, _mm256_set1_ps(worth));
            _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(dot), sum)
        };
        let marks = x.marks(first, b);
        for (m, sum) in sums.iter_mut().enumerate() {
            let worth = x.scales[m * blocks + b];
            *sum = add(*sum, m, x.values, worth);
            if marks >> m & 1 == 1 {
                *sum = add(*sum, m, x.low, worth * (1.0 / BASE));
            }
        }
    }
    sums
}
