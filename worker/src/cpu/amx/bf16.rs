//! Products of bf16 with bf16: one instruction takes 32 columns of 16 rows and of 16 tokens. Each tile of
//! sums is for 16 of them, from the first column to the last.
#![expect(unsafe_code, reason = "instructions that the compiler has no functions for")]

use std::arch::asm;
use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};

use super::{ROW_BYTES, TOKENS};
use crate::cpu::activations::{BLOCK, Rounded, TILE_ROWS, View};
use crate::cpu::packed::ROWS;

/// Bytes of 32 columns of 16 rows.
const TILE_BYTES: usize = TILE_ROWS * ROW_BYTES;

/// How far ahead weights are fetched, in bytes; past the end of a group lies the next one.
const PREFETCH_BYTES: usize = 8192;

/// A tile of sums, as it is stored.
#[repr(C, align(64))]
struct Sums([[f32; ROWS]; TILE_ROWS]);

/// Multiplies a group of 16 rows of bf16 with some rows of activations, up to [`TOKENS`], whose
/// first is that of a tile.
///
/// # Safety
/// This thread's tiles have [shapes](super::configure).
pub(in crate::cpu) unsafe fn bf16(
    group: &[u8],
    x: View<'_>,
    first: usize,
    out: &mut [[f32; ROWS]],
) {
    let blocks = x.columns / BLOCK;
    assert!(group.len() == blocks * TILE_BYTES && first.is_multiple_of(TILE_ROWS));
    assert_eq!(x.rounded_rows, TILE_ROWS, "activations for other instructions");
    let x = x.rounded(first, out.len());
    let panels = out.len().div_ceil(TILE_ROWS);
    assert!(out.len() <= TOKENS && x.len() == panels * blocks * TILE_ROWS);
    match panels {
        0 => {}
        // SAFETY: the caller's promise.
        1 => unsafe { multiply::<1>(group, x) },
        // SAFETY: as above.
        2 => unsafe { multiply::<2>(group, x) },
        // SAFETY: as above.
        3 => unsafe { multiply::<3>(group, x) },
        // SAFETY: as above.
        _ => unsafe { multiply::<4>(group, x) },
    }
    for (panel, out) in out.chunks_mut(TILE_ROWS).enumerate() {
        // SAFETY: as above.
        unsafe { store(panel, out) };
    }
}

/// Leaves the products with `N` panels of activations in the first `N` tiles.
///
/// # Safety
/// As for [`bf16`].
#[inline]
unsafe fn multiply<const N: usize>(group: &[u8], x: &[Rounded]) {
    let blocks = group.len() / TILE_BYTES;
    debug_assert_eq!(x.len(), N * blocks * TILE_ROWS);
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, options(nostack),
        );
    }
    for (block, weights) in group.chunks_exact(TILE_BYTES).enumerate() {
        for line in (0..TILE_BYTES).step_by(ROW_BYTES) {
            let ahead = weights.as_ptr().wrapping_add(PREFETCH_BYTES + line);
            // SAFETY: every x86-64 processor has the instruction, which changes nothing.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(ahead.cast()) };
        }
        macro_rules! add {
            ($panel:literal, $sums:tt, $product:literal) => {
                if $panel < N {
                    let x = x[($panel * blocks + block) * TILE_ROWS..][..TILE_ROWS].as_ptr();
                    // SAFETY: a tile of activations has at most 16 rows, which lie there.
                    unsafe {
                        asm!(
                            "tileloadd tmm4, [{x} + {stride}*1]", $product,
                            x = in(reg) x, stride = in(reg) ROW_BYTES,
                            out($sums) _, out("tmm4") _, options(nostack, readonly),
                        );
                    }
                }
            };
        }
        // SAFETY: a tile of weights is 16 rows of 64 bytes, which is what the chunk has.
        unsafe {
            asm!(
                "tileloadd tmm5, [{weights} + {stride}*1]",
                weights = in(reg) weights.as_ptr(), stride = in(reg) ROW_BYTES,
                out("tmm5") _, options(nostack, readonly),
            );
        }
        add!(0, "tmm0", "tdpbf16ps tmm0, tmm4, tmm5");
        add!(1, "tmm1", "tdpbf16ps tmm1, tmm4, tmm5");
        add!(2, "tmm2", "tdpbf16ps tmm2, tmm4, tmm5");
        add!(3, "tmm3", "tdpbf16ps tmm3, tmm4, tmm5");
    }
}

/// Writes the rows of a tile of sums, as many as there are in `out`.
///
/// # Safety
/// As for [`bf16`].
unsafe fn store(tile: usize, out: &mut [[f32; ROWS]]) {
    let mut sums = Sums([[0.0; ROWS]; TILE_ROWS]);
    let place = sums.0.as_mut_ptr();
    macro_rules! store {
        ($instruction:literal) => {
            // SAFETY: a tile of sums has at most 16 rows of 64 bytes, for which there is room.
            unsafe {
                asm!(
                    $instruction, place = in(reg) place, stride = in(reg) ROW_BYTES,
                    options(nostack),
                );
            }
        };
    }
    match tile {
        0 => store!("tilestored [{place} + {stride}*1], tmm0"),
        1 => store!("tilestored [{place} + {stride}*1], tmm1"),
        2 => store!("tilestored [{place} + {stride}*1], tmm2"),
        _ => store!("tilestored [{place} + {stride}*1], tmm3"),
    }
    out.copy_from_slice(&sums.0[..out.len()]);
}
