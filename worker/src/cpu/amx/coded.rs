//! Products of codes with digits: one instruction takes a block of 16 rows and of 16 tokens.
//!
//! What comes of it are whole numbers, which meet the scales as they do in the other kernels for
//! AVX-512, in the same order: so results are the same to the last bit.
#![expect(unsafe_code, reason = "instructions that the compiler has no functions for")]

use std::arch::asm;
use std::arch::x86_64::*;
use std::marker::PhantomData;
use std::mem::MaybeUninit;

use super::{ROW_BYTES, TOKENS};
use crate::cpu::activations::{BLOCK, Panel, Second, TILE_ROWS, View};
use crate::cpu::avx512::{add_second, each_row, prefetch, scales, unpack};
use crate::cpu::packed::{Codes, Format, PLANES, ROWS, Scales, with_format};

/// Blocks at a time: the codes of most are in the first-level cache when the next tokens want them.
const CHUNK: usize = 32;

/// How many blocks before they are multiplied codes are unpacked: until then they are in the cache.
const UNPACK_AHEAD: usize = 2;

/// How many products later one is stored, which takes as long to be there.
const STORE_DELAY: usize = 2;

/// How many products later one is read.
const READ_DELAY: usize = 3;

/// Products that have a place: of two blocks of two parts each, and those that are under way.
const PLACES: usize = 8;

/// Where sums begin: the bits of 1.5 * 2^23, to which whole numbers can be added as such. What comes
/// of it is that float and the sum, exactly: to take it away costs less than to convert the sum, since
/// there is one pipe for the latter while tiles are multiplied, and products with scales need it too.
const START: f32 = 12_582_912.0;

/// A tile of such sums, or of products.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Sums([[f32; ROWS]; TILE_ROWS]);

// Floats from 2^23 to 2^24 are the whole numbers there: codes and digits have 8 bits at most.
const _: () = assert!(BLOCK * 128 * 128 < 1 << 22);

static STARTS: Sums = Sums([[START; ROWS]; TILE_ROWS]);

/// The codes of those columns of a block that share scales, and zeros for the others.
type BlockCodes = [__m512i; PLANES];

/// Multiplies a group of 16 rows of codes with some rows of digits, up to [`TOKENS`], whose first is
/// that of a tile.
///
/// # Safety
/// This thread's tiles have [shapes](super::configure) of 16 rows.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(in crate::cpu) unsafe fn coded(
    codes: Codes,
    group: &[u8],
    x: View<'_>,
    first: usize,
    out: &mut [[f32; ROWS]],
) {
    // SAFETY: the caller's promise.
    unsafe { with_format!(codes, multiply(group, x, first, out)) };
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn multiply<F: Format>(group: &[u8], x: View<'_>, first: usize, out: &mut [[f32; ROWS]]) {
    let blocks = x.columns / BLOCK;
    assert_eq!(group.len() * F::CODES.blocks(), blocks * F::CODES.tile_bytes());
    assert!(first.is_multiple_of(TILE_ROWS) && out.len() <= TOKENS);
    out.as_flattened_mut().fill(0.0);
    let mut chunk = Chunk::<F> {
        group,
        start: 0,
        codes: [const { MaybeUninit::uninit() }; 2 * CHUNK],
        worth: [const { MaybeUninit::uninit() }; CHUNK],
        format: PhantomData,
    };
    for start in (0..blocks).step_by(CHUNK) {
        chunk.start = start;
        for (panel, out) in out.chunks_mut(TILE_ROWS).enumerate() {
            let digits = x.tile(first / TILE_ROWS + panel).0;
            let digits = &digits[start..blocks.min(start + CHUNK)];
            // SAFETY: the caller's promise; the first panel has the codes unpacked.
            unsafe {
                match (panel, out.len()) {
                    (0, 9..) => chunk.add::<16, true>(digits, out),
                    (0, _) => chunk.add::<8, true>(digits, out),
                    (_, 9..) => chunk.add::<16, false>(digits, out),
                    _ => chunk.add::<8, false>(digits, out),
                }
            }
        }
    }
    for (panel, out) in out.chunks_mut(TILE_ROWS).enumerate() {
        add_seconds::<F>(group, x.tile(first / TILE_ROWS + panel).1, out);
    }
}

/// In how many parts a block is multiplied: those that have scales of their own.
const fn parts<F: Format>() -> usize {
    match F::CODES.scales() {
        Scales::Halves => 2,
        _ => 1,
    }
}

/// Some blocks of a group of rows, unpacked.
struct Chunk<'a, F> {
    group: &'a [u8],
    /// The first block.
    start: usize,
    /// The codes, one after the other part of each block.
    codes: [MaybeUninit<BlockCodes>; 2 * CHUNK],
    /// The scales of each block.
    worth: [MaybeUninit<(__m512, __m512)>; CHUNK],
    format: PhantomData<F>,
}

impl<F: Format> Chunk<'_, F> {
    /// Unpacks the codes of a block, as signed numbers, and its scales.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn unpack(&mut self, index: usize) {
        let (header, inner, packed) = F::CODES.find(self.group, self.start + index);
        prefetch::<true>(packed);
        self.worth[index].write(scales::<F>(header, inner));
        let mut planes = unpack::<F>(packed);
        if matches!(F::CODES.scales(), Scales::Centred | Scales::Halves) {
            let centre = _mm512_set1_epi8(F::CODES.centre() as u8 as i8);
            planes = planes.map(|plane| _mm512_sub_epi8(plane, centre));
        }
        if F::CODES.scales() == Scales::Halves {
            let mut halves = [[_mm512_setzero_si512(); PLANES]; 2];
            let (first, second) = planes.split_at(PLANES / 2);
            halves[0][..PLANES / 2].copy_from_slice(first);
            halves[1][PLANES / 2..].copy_from_slice(second);
            for (codes, half) in self.codes[2 * index..].iter_mut().zip(halves) {
                codes.write(half);
            }
        } else {
            self.codes[index].write(planes);
        }
    }

    /// Adds the products with a panel's first digits of these blocks to those of its rows that `out`
    /// has, `M` at most, and unpacks the blocks before if that is wanted.
    ///
    /// # Safety
    /// This thread's tiles have [shapes](super::configure), of `M` rows at least, and all blocks are
    /// unpacked if that is not wanted.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn add<const M: usize, const UNPACK: bool>(
        &mut self,
        digits: &[Panel<TILE_ROWS>],
        out: &mut [[f32; ROWS]],
    ) {
        let (parts, blocks) = (parts::<F>(), digits.len());
        let count = blocks * parts;
        let mut products = [const { MaybeUninit::<Sums>::uninit() }; PLACES];
        let mut sums = [_mm512_setzero_ps(); M];
        for (sum, out) in sums.iter_mut().zip(&*out) {
            // SAFETY: 16 floats, which is what the load reads.
            *sum = unsafe { _mm512_loadu_ps(out.as_ptr()) };
        }
        for block in 0..if UNPACK { UNPACK_AHEAD.min(blocks) } else { 0 } {
            self.unpack(block);
        }
        for step in 0..count + READ_DELAY {
            let ahead = step / parts + UNPACK_AHEAD;
            if UNPACK && step.is_multiple_of(parts) && ahead < blocks {
                self.unpack(ahead);
            }
            if step < count {
                let digits = &digits[step / parts].values;
                // SAFETY: the tiles have shapes, and both are as large as tiles of these.
                unsafe { launch(step, self.codes[step].as_ptr(), digits) };
            }
            if let Some(product) = step.checked_sub(STORE_DELAY)
                && product < count
            {
                // SAFETY: the tiles have shapes, and there is room for one of these.
                unsafe { store(product, products[product % PLACES].as_mut_ptr()) };
            }
            if let Some(product) = step.checked_sub(READ_DELAY)
                && (product + 1).is_multiple_of(parts)
            {
                let block = product / parts;
                let products = [product + 1 - parts, product].map(|at| &products[at % PLACES]);
                // SAFETY: the block was unpacked.
                let worth = unsafe { self.worth[block].assume_init() };
                // SAFETY: the products were stored a step ago, in all rows.
                unsafe { add_block::<F, M>(products, worth, &digits[block], &mut sums) };
            }
        }
        for (out, sum) in out.iter_mut().zip(sums) {
            // SAFETY: 16 floats, which is what the store writes.
            unsafe { _mm512_storeu_ps(out.as_mut_ptr(), sum) };
        }
    }
}

/// Does something with one of the four tiles of sums, which products take in turn: an instruction
/// names its tiles.
macro_rules! with_sums {
    ($product:expr, $do:ident) => {
        match $product % 4 {
            0 => $do!("tmm0"),
            1 => $do!("tmm1"),
            2 => $do!("tmm2"),
            _ => $do!("tmm3"),
        }
    };
}

/// Multiplies a block, or a part of it, with a panel's digits.
///
/// # Safety
/// This thread's tiles have [shapes](super::configure), and there are codes.
#[inline(always)]
unsafe fn launch(product: usize, codes: *const BlockCodes, digits: &[[i8; BLOCK]; TILE_ROWS]) {
    macro_rules! launch {
        ($sums:tt) => {
            asm!(
                "tileloadd tmm7, [{codes} + {stride}*1]",
                "tileloadd tmm6, [{digits} + {half}*1]",
                concat!("tileloadd ", $sums, ", [{starts} + {stride}*1]"),
                concat!("tdpbssd ", $sums, ", tmm6, tmm7"),
                codes = in(reg) codes, digits = in(reg) digits.as_ptr(),
                starts = in(reg) &raw const STARTS,
                stride = in(reg) ROW_BYTES, half = in(reg) BLOCK,
                out($sums) _, out("tmm6") _, out("tmm7") _, options(nostack, readonly),
            )
        };
    }
    // SAFETY: the caller's promise; what is loaded is as large as tiles are at most.
    unsafe { with_sums!(product, launch) };
}

/// Writes the rows that tiles have of a product.
///
/// # Safety
/// This thread's tiles have [shapes](super::configure), and there is room for one.
#[inline(always)]
unsafe fn store(product: usize, place: *mut Sums) {
    macro_rules! store {
        ($sums:literal) => {
            asm!(
                concat!("tilestored [{place} + {stride}*1], ", $sums),
                place = in(reg) place, stride = in(reg) ROW_BYTES, options(nostack),
            )
        };
    }
    // SAFETY: the caller's promise.
    unsafe { with_sums!(product, store) };
}

/// Adds the products of a block, part by part, to sums, as `product` of the other kernels does.
///
/// # Safety
/// The first `M` rows of the products were stored.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn add_block<F: Format, const M: usize>(
    products: [&MaybeUninit<Sums>; 2],
    (scale, other): (__m512, __m512),
    digits: &Panel<TILE_ROWS>,
    sums: &mut [__m512; M],
) {
    let start = _mm512_set1_ps(START);
    let dot = |part: usize, row: usize| {
        // SAFETY: 16 floats, which were stored, as the caller promises for this row.
        let sum = unsafe { _mm512_load_ps(products[part].as_ptr().cast::<f32>().add(row * ROWS)) };
        _mm512_sub_ps(sum, start)
    };
    let eighths = eighths::<F>(digits);
    each_row!(m < M, {
        let product = match F::CODES.scales() {
            Scales::Centred => _mm512_mul_ps(scale, dot(0, m)),
            Scales::Halves => {
                let halves = (dot(0, m), dot(1, m));
                _mm512_fmadd_ps(other, halves.1, _mm512_mul_ps(scale, halves.0))
            }
            _ => {
                let minimum = _mm512_mul_ps(other, _mm512_set1_ps(eighths[m]));
                _mm512_fmadd_ps(scale, dot(0, m), minimum)
            }
        };
        sums[m] = _mm512_fmadd_ps(_mm512_set1_ps(digits.scales[m]), product, sums[m]);
    });
}

/// Returns what minima are multiplied with, where codes have any: -8 times the sum of a row's digits.
#[inline]
#[target_feature(enable = "avx512f")]
fn eighths<F: Format>(digits: &Panel<TILE_ROWS>) -> [f32; TILE_ROWS] {
    let mut eighths = [0.0; TILE_ROWS];
    if matches!(F::CODES.scales(), Scales::Minimum | Scales::Nested) {
        for (eighth, &start) in eighths.iter_mut().zip(&digits.starts) {
            *eighth = start as f32;
        }
    }
    eighths
}

/// Adds the products with the second digits of blocks that have any, which lie in the order of blocks.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn add_seconds<F: Format>(group: &[u8], seconds: &[Second], out: &mut [[f32; ROWS]]) {
    for seconds in seconds.chunk_by(|one, other| one.block == other.block) {
        let (header, inner, codes) = F::CODES.find(group, seconds[0].block as usize);
        let (planes, worth) = (unpack::<F>(codes), scales::<F>(header, inner));
        for second in seconds {
            if let Some(out) = out.get_mut(second.row as usize) {
                add_second::<F>(&planes, second, worth, out);
            }
        }
    }
}
