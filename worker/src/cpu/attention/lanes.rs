//! Sixteen floats at once, as each instruction set has them, for the loops of attention.
#![cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "SIMD instructions of features that a token proves")
)]

use std::ops::Range;

use super::kernel::{Queries, Scratch, attend_body};
use crate::cpu::Isa;
use crate::cpu::isa::Kind;
use crate::cpu::vector::LANES;

/// Sixteen floats in registers. A value of an implementing type proves that the processor has
/// the instructions.
pub(super) trait Lanes: Copy {
    /// Sixteen floats.
    type Floats: Copy;
    /// Rows of a tile whose sums fit into the registers.
    const IS_WIDE: bool;

    /// Sixteen times a number.
    fn splat(self, number: f32) -> Self::Floats;
    /// Sixteen numbers.
    fn load(self, numbers: &[f32; LANES]) -> Self::Floats;
    /// Sixteen halves.
    fn widen(self, halves: &[u16; LANES]) -> Self::Floats;
    /// Has the processor fetch halves that will be read soon.
    fn fetch(self, _halves: &[u16; LANES]) {}
    /// Writes them.
    fn store(self, floats: Self::Floats, out: &mut [f32; LANES]);
    /// Returns `a * b + c`, rounded once where an instruction does so, and else twice.
    fn multiply_add(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
}

/// Plain Rust.
#[derive(Clone, Copy)]
struct Portable;

impl Lanes for Portable {
    type Floats = [f32; LANES];
    const IS_WIDE: bool = false;

    #[inline(always)]
    fn splat(self, number: f32) -> Self::Floats {
        [number; LANES]
    }

    #[inline(always)]
    fn load(self, numbers: &[f32; LANES]) -> Self::Floats {
        *numbers
    }

    #[inline(always)]
    fn widen(self, halves: &[u16; LANES]) -> Self::Floats {
        halves.map(|bits| half::f16::from_bits(bits).to_f32())
    }

    #[inline(always)]
    fn store(self, floats: Self::Floats, out: &mut [f32; LANES]) {
        *out = floats;
    }

    #[inline(always)]
    fn multiply_add(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        std::array::from_fn(|lane| a[lane] * b[lane] + c[lane])
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{LANES, Lanes};

    /// AVX2 with FMA and F16C; made only where these were detected.
    #[derive(Clone, Copy)]
    pub(super) struct Avx2(pub(super) ());

    impl Lanes for Avx2 {
        type Floats = [__m256; 2];
        const IS_WIDE: bool = false;

        #[inline(always)]
        fn splat(self, number: f32) -> Self::Floats {
            // SAFETY: `self` proves the feature.
            [unsafe { _mm256_set1_ps(number) }; 2]
        }

        #[inline(always)]
        fn load(self, numbers: &[f32; LANES]) -> Self::Floats {
            let start = numbers.as_ptr();
            // SAFETY: `self` proves the feature; both halves lie in the array.
            unsafe { [_mm256_loadu_ps(start), _mm256_loadu_ps(start.add(8))] }
        }

        #[inline(always)]
        fn widen(self, halves: &[u16; LANES]) -> Self::Floats {
            let start = halves.as_ptr().cast::<__m128i>();
            // SAFETY: `self` proves the feature; both halves lie in the array.
            unsafe {
                let (low, high) = (_mm_loadu_si128(start), _mm_loadu_si128(start.add(1)));
                [_mm256_cvtph_ps(low), _mm256_cvtph_ps(high)]
            }
        }

        #[inline(always)]
        fn store(self, floats: Self::Floats, out: &mut [f32; LANES]) {
            let start = out.as_mut_ptr();
            // SAFETY: `self` proves the feature; both halves lie in the array.
            unsafe {
                _mm256_storeu_ps(start, floats[0]);
                _mm256_storeu_ps(start.add(8), floats[1]);
            }
        }

        #[inline(always)]
        fn multiply_add(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
            // SAFETY: `self` proves the feature.
            unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
        }
    }

    /// AVX-512 F; made only where it was detected.
    #[derive(Clone, Copy)]
    pub(super) struct Avx512(pub(super) ());

    impl Lanes for Avx512 {
        type Floats = __m512;
        const IS_WIDE: bool = true;

        #[inline(always)]
        fn splat(self, number: f32) -> Self::Floats {
            // SAFETY: `self` proves the feature.
            unsafe { _mm512_set1_ps(number) }
        }

        #[inline(always)]
        fn load(self, numbers: &[f32; LANES]) -> Self::Floats {
            // SAFETY: `self` proves the feature; the load is the array.
            unsafe { _mm512_loadu_ps(numbers.as_ptr()) }
        }

        #[inline(always)]
        fn widen(self, halves: &[u16; LANES]) -> Self::Floats {
            // SAFETY: `self` proves the feature; the load is the array.
            unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(halves.as_ptr().cast())) }
        }

        #[inline(always)]
        fn fetch(self, halves: &[u16; LANES]) {
            // SAFETY: every x86-64 processor has the instruction, which changes nothing.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(halves.as_ptr().cast()) }
        }

        #[inline(always)]
        fn store(self, floats: Self::Floats, out: &mut [f32; LANES]) {
            // SAFETY: `self` proves the feature; the store is the array.
            unsafe { _mm512_storeu_ps(out.as_mut_ptr(), floats) }
        }

        #[inline(always)]
        fn multiply_add(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
            // SAFETY: `self` proves the feature.
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }
    }

    use super::{Queries, Range, Scratch, attend_body};

    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn avx2(
        queries: &Queries<'_>,
        segments: Range<usize>,
        scratch: &mut Scratch,
        states: &mut [f32],
    ) {
        attend_body::<_, true>(Avx2(()), queries, segments, scratch, states);
    }

    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
    pub(super) fn avx512(
        queries: &Queries<'_>,
        segments: Range<usize>,
        scratch: &mut Scratch,
        states: &mut [f32],
    ) {
        attend_body::<_, true>(Avx512(()), queries, segments, scratch, states);
    }
}

/// Computes attention to some segments: a state for each row goes to `states`.
pub(super) fn attend(
    isa: Isa,
    queries: &Queries<'_>,
    segments: Range<usize>,
    scratch: &mut Scratch,
    states: &mut [f32],
) {
    match isa.kind() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: this `Isa` exists only where the features were detected.
        Kind::Avx512 | Kind::Avx512Bf16 | Kind::Amx => unsafe {
            x86::avx512(queries, segments, scratch, states)
        },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: this `Isa` exists only where the features were detected.
        Kind::Avx2 => unsafe { x86::avx2(queries, segments, scratch, states) },
        // The build for aarch64 vectorises the plain lanes, whose products are rounded before they
        // are added: Rust never fuses what is written as two operations. Exponentials and folds
        // ask for fused ones, which NEON has.
        #[cfg(target_arch = "aarch64")]
        Kind::Neon | Kind::NeonDotprod => {
            attend_body::<_, true>(Portable, queries, segments, scratch, states);
        }
        Kind::Portable => {
            attend_body::<_, false>(Portable, queries, segments, scratch, states);
        }
    }
}
