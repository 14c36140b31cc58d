//! The tile kernels with AMX: one instruction multiplies 16 rows of activations with 16 rows of weights.
//!
//! The compiler has no stable functions for these instructions, so they are written out, and code that
//! it makes itself never uses tiles: what is in one stays there from one instruction to the next. Of the
//! eight tiles the first four are sums, two each activations and weights; [`configure`] has their shapes.
//! Weights lie as the other kernels for AVX-512 read them too.
#![expect(unsafe_code, reason = "instructions that the compiler has no functions for")]

mod bf16;
mod coded;

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count};
use std::marker::PhantomData;
use std::sync::LazyLock;

pub(super) use bf16::bf16;
pub(super) use coded::coded;

use super::activations::{BLOCK, LEAST_TILED, TILE_ROWS};
use super::packed::PLANES;

/// Rows of activations that one call of a kernel takes at most: 16 for each tile of sums.
pub(super) const TOKENS: usize = 4 * TILE_ROWS;

/// Bytes of a tile's row, and from one row to the next.
const ROW_BYTES: usize = 64;

/// Says whether the processor has the instructions and the system lets this process use them, for
/// which it is asked once.
pub(super) fn is_usable() -> bool {
    static IS_USABLE: LazyLock<bool> = LazyLock::new(|| has_instructions() && is_permitted());
    *IS_USABLE
}

/// Has the processor got tiles of bf16 and of bytes?
fn has_instructions() -> bool {
    const BF16: u32 = 1 << 22;
    const TILES: u32 = 1 << 24;
    const BYTES: u32 = 1 << 25;
    const ALL: u32 = BF16 | TILES | BYTES;
    __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & ALL == ALL
}

/// Asks for the 8 KiB of registers, which the system saves only for those who asked.
#[cfg(target_os = "linux")]
fn is_permitted() -> bool {
    const REQUEST_PERMISSION: libc::c_long = 0x1023;
    const TILE_DATA: libc::c_long = 18;
    // SAFETY: the call has no pointers, and an error is all that can come of it.
    unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn is_permitted() -> bool {
    false
}

/// The shapes of the tiles as the processor reads them.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// This thread's tiles have shapes; when this is dropped they are given back, so that the system
/// need not save them.
pub(super) struct Tiles(PhantomData<*mut ()>);

/// Gives this thread's tiles their shapes, for products with so many rows of activations: 0 to 3 are
/// sums, 4 and 5 activations and weights of 32 columns of bf16, 6 and 7 those of bytes.
///
/// # Safety
/// The instructions are [usable](is_usable).
pub(super) unsafe fn configure(tokens: usize) -> Tiles {
    let mut shapes =
        Shapes { palette: 1, start: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
    shapes.row_bytes[..8].fill(ROW_BYTES as u16);
    shapes.rows[..8].fill(rows_for(tokens) as u8);
    shapes.rows[5] = TILE_ROWS as u8;
    shapes.row_bytes[6] = BLOCK as u16;
    shapes.rows[7] = PLANES as u8;
    // SAFETY: it reads the 64 bytes of the shapes, which are valid: at most 16 rows of 64 bytes.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const shapes, options(nostack, readonly)) };
    Tiles(PhantomData)
}

/// Returns the rows of tiles for so many tokens, or more than that; 2 take as long as 8.
const fn rows_for(tokens: usize) -> usize {
    match tokens {
        0 | 1 => 1,
        2..=8 => 8,
        _ => TILE_ROWS,
    }
}

// The kernel of codes reads 16 rows.
const _: () = assert!(rows_for(LEAST_TILED) == TILE_ROWS);

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: there is a `Tiles` only where the instructions are usable.
        unsafe { asm!("tilerelease", options(nostack)) };
    }
}
