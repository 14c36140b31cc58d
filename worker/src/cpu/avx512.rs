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
    let blocks = x.columns / BLOCK;
    let x = View {
        columns: x.columns,
        values: &x.values[first * x.columns..][..M * x.columns],
        low: match x.low.is_empty() {
            true => &[],
            false => &x.low[first * x.columns..][..M * x.columns],
        },
        scales: &x.scales[first * blocks..][..M * blocks],
        sums: &x.sums[first * blocks..][..M * blocks],
    };
    assert_eq!(group.len(), blocks * layout.tile_bytes());
    let sums = match (layout == Layout::Q4, x.low.is_empty()) {
        (true, true) => q4::<M, false>(group, x),
        (true, false) => q4::<M, true>(group, x),
        (false, true) => q8::<M, false>(group, x),
        (false, false) => q8::<M, true>(group, x),
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

/// Returns the products with wide numbers from those with their digits.
#[inline]
#[target_feature(enable = "avx512f")]
fn join(high: __m512i, low: __m512i) -> __m512i {
    _mm512_add_epi32(_mm512_mullo_epi32(high, _mm512_set1_epi32(BASE)), low)
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
fn q4<const M: usize, const WIDE: bool>(group: &[u8], x: View<'_>) -> [__m512; M] {
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
        for (m, sum) in sums.iter_mut().enumerate() {
            let at = m * x.columns + b * BLOCK;
            let dot = |values: &[i8]| {
                let (mut even, mut odd) = (_mm512_setzero_si512(), _mm512_setzero_si512());
                for k in 0..4 {
                    even = _mm512_dpbusd_epi32(even, low[k], broadcast(values, at + 4 * k));
                    odd = _mm512_dpbusd_epi32(odd, high[k], broadcast(values, at + 16 + 4 * k));
                }
                _mm512_add_epi32(even, odd)
            };
            let dot = if WIDE { join(dot(x.values), dot(x.low)) } else { dot(x.values) };
            let dot = _mm512_cvtepi32_ps(dot);
            let offset = _mm512_mul_ps(minimum, _mm512_set1_ps(x.sums[m * blocks + b]));
            let product = _mm512_fmadd_ps(scale, dot, offset);
            *sum = _mm512_fmadd_ps(_mm512_set1_ps(x.scales[m * blocks + b]), product, *sum);
        }
    }
    sums
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn q8<const M: usize, const WIDE: bool>(group: &[u8], x: View<'_>) -> [__m512; M] {
    let blocks = x.columns / BLOCK;
    let mut sums = [_mm512_setzero_ps(); M];
    for (b, tile) in group.chunks_exact(Layout::Q8.tile_bytes()).enumerate() {
        prefetch(tile);
        let scale = halves(tile, 0);
        let mut weights = [_mm512_setzero_si512(); 8];
        for (k, weights) in weights.iter_mut().enumerate() {
            *weights = load(tile, 2 * ROWS + 64 * k);
        }
        for (m, sum) in sums.iter_mut().enumerate() {
            let at = m * x.columns + b * BLOCK;
            let dot = |values: &[i8]| {
                let (mut even, mut odd) = (_mm512_setzero_si512(), _mm512_setzero_si512());
                for k in 0..4 {
                    let (left, right) = (at + 8 * k, at + 8 * k + 4);
                    even = _mm512_dpbusd_epi32(even, weights[2 * k], broadcast(values, left));
                    odd = _mm512_dpbusd_epi32(odd, weights[2 * k + 1], broadcast(values, right));
                }
                _mm512_add_epi32(even, odd)
            };
            let dot = if WIDE { join(dot(x.values), dot(x.low)) } else { dot(x.values) };
            // The weights are stored 128 too large.
            let excess = _mm512_set1_epi32(-128 * x.sums[m * blocks + b] as i32);
            let dot = _mm512_cvtepi32_ps(_mm512_add_epi32(dot, excess));
            let scale = _mm512_mul_ps(scale, _mm512_set1_ps(x.scales[m * blocks + b]));
            *sum = _mm512_fmadd_ps(scale, dot, *sum);
        }
    }
    sums
}
