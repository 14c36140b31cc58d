//! Products of bf16 with bf16: one instruction takes two columns of 16 rows.
#![expect(unsafe_code, reason = "SIMD registers are words to one instruction, bf16 to another")]

use std::arch::x86_64::*;
use std::mem::transmute;

use super::{each_row, load, prefetch, store};
use crate::cpu::activations::{BLOCK, PANEL_ROWS, Rounded, View};
use crate::cpu::isa::fetches_by_itself;
use crate::cpu::packed::ROWS;

/// Bytes of 32 columns of 16 rows.
const TILE_BYTES: usize = 2 * BLOCK * ROWS;

/// Multiplies a group of 16 rows of bf16 with some rows of activations.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(in crate::cpu) fn bf16(group: &[u8], x: View<'_>, first: usize, out: &mut [[f32; ROWS]]) {
    assert_eq!(group.len(), x.columns / BLOCK * TILE_BYTES);
    let mut done = 0;
    while done < out.len() {
        let (row, left) = (first + done, &mut out[done..]);
        done += match left.len() {
            8.. => rows::<8, true>(group, x, row, left),
            4.. => rows::<4, true>(group, x, row, left),
            2.. => rows::<2, true>(group, x, row, left),
            _ if fetches_by_itself() => rows::<1, false>(group, x, row, left),
            _ => rows::<1, true>(group, x, row, left),
        };
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn rows<const M: usize, const FETCH: bool>(
    group: &[u8],
    x: View<'_>,
    first: usize,
    out: &mut [[f32; ROWS]],
) -> usize {
    store(out, tiles::<M, FETCH>(group, x.rounded(first, M), first % PANEL_ROWS));
    M
}

/// Returns the products with rows of activations that begin at `lane` of a panel.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn tiles<const M: usize, const FETCH: bool>(
    group: &[u8],
    x: &[Rounded],
    lane: usize,
) -> [__m512; M] {
    let blocks = group.len() / TILE_BYTES;
    let lane = if M < PANEL_ROWS { lane } else { 0 };
    assert!(
        lane + M <= PANEL_ROWS.max(M) && x.len() == M.div_ceil(PANEL_ROWS) * blocks * PANEL_ROWS
    );
    // Sums of every other pair of columns, so that one product need not wait for the other.
    let mut sums = [[_mm512_setzero_ps(); 2]; M];
    for (b, tile) in group.chunks_exact(TILE_BYTES).enumerate() {
        prefetch::<FETCH>(tile);
        for pair in (0..BLOCK / 2).step_by(2) {
            let weights = [pair, pair + 1].map(|pair| words(load(tile, 64 * pair)));
            each_row!(m < M, {
                let row = lane + m;
                // SAFETY: there are panels for `M` rows, as asserted above.
                let at = (row / PANEL_ROWS * blocks + b) * PANEL_ROWS + row % PANEL_ROWS;
                let pairs = unsafe { &x.get_unchecked(at).pairs };
                for side in 0..2 {
                    let both = words(_mm512_set1_epi32(pairs[pair + side] as i32));
                    sums[m][side] = _mm512_dpbf16_ps(sums[m][side], weights[side], both);
                }
            });
        }
    }
    sums.map(|[one, other]| _mm512_add_ps(one, other))
}

/// Takes the halves of words as bf16.
#[inline]
#[target_feature(enable = "avx512f")]
fn words(words: __m512i) -> __m512bh {
    // SAFETY: both are 64 bytes, of which all mean something.
    unsafe { transmute(words) }
}
