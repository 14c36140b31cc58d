//! The tile kernels with AVX-512 VNNI: one register is 16 rows, one instruction 64 multiply-adds.
#![expect(unsafe_code, reason = "loads of SIMD registers from checked slices")]

use std::arch::x86_64::*;

use super::activations::{BASE, BLOCK, View};
use super::packed::{Layout, ROWS};

/// How far ahead weights are fetched, in bytes; past the end of a group lies the next one.
const PREFETCH_BYTES: usize = 2560;

/// Multiplies a group of 16 rows with some rows of quantised activations.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
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
            16.. => rows::<16>(layout, group, x, row, left),
            8.. => rows::<8>(layout, group, x, row, left),
            4.. => rows::<4>(layout, group, x, row, left),
            2.. => rows::<2>(layout, group, x, row, left),
            _ => rows::<1>(layout, group, x, row, left),
        };
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn rows<const M: usize>(
    layout: Layout,
    group: &[u8],
    x: View<'_>,
    first: usize,
    out: &mut [[f32; ROWS]],
) -> usize {
    assert_eq!(group.len(), x.columns / BLOCK * layout.tile_bytes());
    let x = x.rows(first, M);
    let sums = match layout == Layout::Q4 {
        true => q4::<M>(group, x, first),
        false => q8::<M>(group, x, first),
    };
    for (out, sum) in out.iter_mut().zip(sums) {
        // SAFETY: `out` is 16 floats, which is what the store writes.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), sum) };
    }
    M
}

/// Returns four activations, in every lane.
#[inline]
#[target_feature(enable = "avx512f")]
fn broadcast(values: &[i8], at: usize) -> __m512i {
    debug_assert!(at + 4 <= values.len());
    // SAFETY: the callers ask for columns of rows that `rows` cut to size; unaligned is fine.
    let four = unsafe { values.as_ptr().add(at).cast::<i32>().read_unaligned() };
    _mm512_set1_epi32(four)
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn load(tile: &[u8], at: usize) -> __m512i {
    debug_assert!(at + 64 <= tile.len());
    // SAFETY: a tile is a slice of `tile_bytes`, and `at` is inside by its layout.
    unsafe { _mm512_loadu_si512(tile.as_ptr().add(at).cast()) }
}

/// Returns 16 halves as floats.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn halves(tile: &[u8], at: usize) -> __m512 {
    debug_assert!(at + 32 <= tile.len());
    // SAFETY: a tile is a slice of `tile_bytes`, and `at` is inside by its layout.
    let bits = unsafe { _mm256_loadu_si256(tile.as_ptr().add(at).cast()) };
    _mm512_cvtph_ps(bits)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn prefetch(tile: &[u8]) {
    for line in (0..tile.len()).step_by(64) {
        let ahead = tile.as_ptr().wrapping_add(PREFETCH_BYTES + line);
        _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn q4<const M: usize>(group: &[u8], x: View<'_>, first: usize) -> [__m512; M] {
    let blocks = x.columns / BLOCK;
    let nibble = _mm512_set1_epi8(15);
    let mut sums = [_mm512_setzero_ps(); M];
    for (b, tile) in group.chunks_exact(Layout::Q4.tile_bytes()).enumerate() {
        prefetch(tile);
        let (scale, minimum) = (halves(tile, 0), halves(tile, 2 * ROWS));
        let mut low = [_mm512_setzero_si512(); 4];
        let mut high = [_mm512_setzero_si512(); 4];
        for k in 0..4 {
            let bytes = load(tile, 4 * ROWS + 64 * k);
            low[k] = _mm512_and_si512(bytes, nibble);
            high[k] = _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), nibble);
        }
        let add = |sum: __m512, m: usize, (values, sums): (&[i8], &[f32]), worth: f32| {
            let at = m * x.columns + b * BLOCK;
            let mut dot = _mm512_setzero_si512();
            for k in 0..4 {
                dot = _mm512_dpbusd_epi32(dot, low[k], broadcast(values, at + 4 * k));
                dot = _mm512_dpbusd_epi32(dot, high[k], broadcast(values, at + 16 + 4 * k));
            }
            let offset = _mm512_mul_ps(minimum, _mm512_set1_ps(sums[m * blocks + b]));
            let product = _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(dot), offset);
            _mm512_fmadd_ps(_mm512_set1_ps(worth), product, sum)
        };
        for (m, sum) in sums.iter_mut().enumerate() {
            *sum = add(*sum, m, (x.values, x.sums), x.scales[m * blocks + b]);
        }
        let marks = x.marks(first, b);
        if marks & ((1 << M) - 1) != 0 {
            for (m, sum) in sums.iter_mut().enumerate() {
                if marks >> m & 1 == 1 {
                    let worth = x.scales[m * blocks + b] * (1.0 / BASE);
                    *sum = add(*sum, m, (x.low, x.low_sums), worth);
                }
            }
        }
    }
    sums
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn q8<const M: usize>(group: &[u8], x: View<'_>, first: usize) -> [__m512; M] {
    let blocks = x.columns / BLOCK;
    let excess = _mm512_set1_ps(-128.0);
    let mut sums = [_mm512_setzero_ps(); M];
    for (b, tile) in group.chunks_exact(Layout::Q8.tile_bytes()).enumerate() {
        prefetch(tile);
        let scale = halves(tile, 0);
        let mut weights = [_mm512_setzero_si512(); 8];
        for (k, weights) in weights.iter_mut().enumerate() {
            *weights = load(tile, 2 * ROWS + 64 * k);
        }
        let add = |sum: __m512, m: usize, (values, sums): (&[i8], &[f32]), worth: f32| {
            let at = m * x.columns + b * BLOCK;
            let mut dot = _mm512_setzero_si512();
            for (k, weights) in weights.iter().enumerate() {
                dot = _mm512_dpbusd_epi32(dot, *weights, broadcast(values, at + 4 * k));
            }
            // The weights are stored 128 too large.
            let total = _mm512_set1_ps(sums[m * blocks + b]);
            let dot = _mm512_fmadd_ps(excess, total, _mm512_cvtepi32_ps(dot));
            _mm512_fmadd_ps(_mm512_mul_ps(scale, _mm512_set1_ps(worth)), dot, sum)
        };
        for (m, sum) in sums.iter_mut().enumerate() {
            *sum = add(*sum, m, (x.values, x.sums), x.scales[m * blocks + b]);
        }
        let marks = x.marks(first, b);
        if marks & ((1 << M) - 1) != 0 {
            for (m, sum) in sums.iter_mut().enumerate() {
                if marks >> m & 1 == 1 {
                    let worth = x.scales[m * blocks + b] * (1.0 / BASE);
                    *sum = add(*sum, m, (x.low, x.low_sums), worth);
                }
            }
        }
    }
    sums
}
