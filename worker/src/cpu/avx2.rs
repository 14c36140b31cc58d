//! The tile kernels with AVX2: two registers are the 16 rows of a tile.
#![expect(unsafe_code, reason = "loads of SIMD registers from checked slices")]

use std::arch::x86_64::*;

use super::activations::{BLOCK, PANEL_ROWS, View};
use super::packed::{
    Bf16, Codes, Dense, F16, F32, Float, Format, NESTED_MINIMA, PLANE, PLANES, ROWS, Scales,
    with_format,
};

/// Rows of a register.
const HALF: usize = ROWS / 2;

/// Multiplies a group of 16 rows of codes with some rows of quantised activations.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn coded(
    codes: Codes,
    group: &[u8],
    x: View<'_>,
    first: usize,
    out: &mut [[f32; ROWS]],
) {
    with_format!(codes, all_rows(group, x, first, out));
}

#[target_feature(enable = "avx2,fma,f16c")]
fn all_rows<F: Format>(group: &[u8], x: View<'_>, first: usize, out: &mut [[f32; ROWS]]) {
    let mut done = 0;
    while done < out.len() {
        let (row, left) = (first + done, &mut out[done..]);
        done += match left.len() {
            4.. => rows::<F, 4>(group, x, row, left),
            2.. => rows::<F, 2>(group, x, row, left),
            _ => rows::<F, 1>(group, x, row, left),
        };
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn rows<F: Format, const M: usize>(
    group: &[u8],
    x: View<'_>,
    first: usize,
    out: &mut [[f32; ROWS]],
) -> usize {
    let blocks = x.columns / BLOCK;
    assert_eq!(group.len() * F::CODES.blocks(), blocks * F::CODES.tile_bytes());
    let (x, lane) = (x.rows(first, M), first % PANEL_ROWS);
    let mut sums = [[_mm256_setzero_ps(); 2]; M];
    for (index, tile) in group.chunks_exact(F::CODES.tile_bytes()).enumerate() {
        let (header, codes) = tile.split_at(F::CODES.header_bytes());
        for (inner, codes) in codes.chunks_exact(F::CODES.block_bytes()).enumerate() {
            let b = index * F::CODES.blocks() + inner;
            for half in 0..2 {
                let scales = scales::<F>(header, inner, half);
                let planes = unpack::<F>(codes, half);
                for (m, sums) in sums.iter_mut().enumerate() {
                    let row = lane + m;
                    let panel = &x.panels[row / PANEL_ROWS * blocks + b];
                    let row = row % PANEL_ROWS;
                    let product = product::<F>(&planes, &panel.values[row], panel.sum(row), scales);
                    let worth = _mm256_set1_ps(panel.scales[row]);
                    sums[half] = _mm256_fmadd_ps(worth, product, sums[half]);
                }
            }
        }
    }
    for (half, at) in [(0, 0), (1, HALF)] {
        store(out, at, sums.map(|sums| sums[half]));
    }
    add_seconds::<F>(group, x, lane, &mut out[..M]);
    M
}

/// Adds the products with the second digits of blocks that have any: few, and so apart.
#[target_feature(enable = "avx2,fma,f16c")]
fn add_seconds<F: Format>(group: &[u8], x: View<'_>, lane: usize, out: &mut [[f32; ROWS]]) {
    for (quad, seconds) in x.seconds().enumerate() {
        for second in seconds {
            let row = (quad * PANEL_ROWS + second.row as usize).wrapping_sub(lane);
            if row >= out.len() {
                continue;
            }
            let (header, inner, codes) = F::CODES.find(group, second.block as usize);
            for (half, out) in out[row].as_chunks_mut::<HALF>().0.iter_mut().enumerate() {
                let scales = scales::<F>(header, inner, half);
                let planes = unpack::<F>(codes, half);
                let product = product::<F>(&planes, &second.values, second.sum() as f32, scales);
                // SAFETY: `out` is 8 floats, which is what the load reads.
                let sum = unsafe { _mm256_loadu_ps(out.as_ptr()) };
                let sum = _mm256_fmadd_ps(_mm256_set1_ps(second.scale), product, sum);
                // SAFETY: `out` is 8 floats, which is what the store writes.
                unsafe { _mm256_storeu_ps(out.as_mut_ptr(), sum) };
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store<const M: usize>(out: &mut [[f32; ROWS]], at: usize, sums: [__m256; M]) {
    for (out, sum) in out.iter_mut().zip(sums) {
        let out = &mut out[at..][..HALF];
        // SAFETY: `out` is 8 floats, which is what the store writes.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr(), sum) };
    }
}

/// Returns four activations, in every lane.
#[inline]
#[target_feature(enable = "avx2")]
fn broadcast(values: &[i8; BLOCK], at: usize) -> __m256i {
    debug_assert!(at + 4 <= values.len());
    // SAFETY: the callers ask for columns of a block; unaligned is fine.
    let four = unsafe { values.as_ptr().add(at).cast::<i32>().read_unaligned() };
    _mm256_set1_epi32(four)
}

#[inline]
#[target_feature(enable = "avx2")]
fn load(bytes: &[u8], at: usize) -> __m256i {
    debug_assert!(at + 32 <= bytes.len());
    // SAFETY: the slice is a block, whose size `chunks_exact` saw to, and `at` is inside.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().add(at).cast()) }
}

/// Returns 8 halves as floats.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn halves(bytes: &[u8], at: usize) -> __m256 {
    debug_assert!(at + 16 <= bytes.len());
    // SAFETY: the slice is a header or a block of known size, and `at` is inside.
    let bits = unsafe { _mm_loadu_si128(bytes.as_ptr().add(at).cast()) };
    _mm256_cvtph_ps(bits)
}

/// Returns 8 bytes of a header, in the lower half.
#[inline]
#[target_feature(enable = "avx2")]
fn bytes(header: &[u8], at: usize) -> __m128i {
    debug_assert!(at + 8 <= header.len());
    // SAFETY: the slice is a header of known size, and `at` is inside.
    unsafe { _mm_loadl_epi64(header.as_ptr().add(at).cast()) }
}

/// Returns the codes of 32 columns of 8 rows, plane after plane; those of 6 and 8 bits as signed
/// numbers, since a product of codes from 0 would leave no room for sums of 16 bits.
#[inline]
#[target_feature(enable = "avx2")]
fn unpack<F: Format>(block: &[u8], half: usize) -> [__m256i; PLANES] {
    let mut planes = [_mm256_setzero_si256(); PLANES];
    let part = |plane: usize| load(block, plane * PLANE + half * PLANE / 2);
    if F::CODES.bits() == 8 {
        for (k, plane) in planes.iter_mut().enumerate() {
            *plane = _mm256_xor_si256(part(k), _mm256_set1_epi8(i8::MIN));
        }
        return planes;
    }
    let nibble = _mm256_set1_epi8(15);
    for k in 0..PLANES / 2 {
        let bytes = part(k);
        planes[k] = _mm256_and_si256(bytes, nibble);
        planes[k + 4] = _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), nibble);
    }
    // Shifts of 16 bits carry bits over to the neighbouring byte, but never to those that count.
    let add = |plane: &mut __m256i, upper: __m256i, mask: i8| {
        let upper = _mm256_and_si256(upper, _mm256_set1_epi8(mask));
        *plane = _mm256_or_si256(*plane, upper);
    };
    match F::CODES.bits() {
        5 => {
            let upper = part(4);
            add(&mut planes[0], _mm256_slli_epi16::<4>(upper), 16);
            add(&mut planes[1], _mm256_slli_epi16::<3>(upper), 16);
            add(&mut planes[2], _mm256_slli_epi16::<2>(upper), 16);
            add(&mut planes[3], _mm256_slli_epi16::<1>(upper), 16);
            add(&mut planes[4], upper, 16);
            add(&mut planes[5], _mm256_srli_epi16::<1>(upper), 16);
            add(&mut planes[6], _mm256_srli_epi16::<2>(upper), 16);
            add(&mut planes[7], _mm256_srli_epi16::<3>(upper), 16);
        }
        6 => {
            for (which, planes) in planes.chunks_exact_mut(4).enumerate() {
                let upper = part(4 + which);
                add(&mut planes[0], _mm256_slli_epi16::<4>(upper), 48);
                add(&mut planes[1], _mm256_slli_epi16::<2>(upper), 48);
                add(&mut planes[2], upper, 48);
                add(&mut planes[3], _mm256_srli_epi16::<2>(upper), 48);
                for plane in planes {
                    *plane = _mm256_sub_epi8(*plane, _mm256_set1_epi8(32));
                }
            }
        }
        _ => {}
    }
    planes
}

/// Returns the scales of a block, for [`Scales::Halves`] those of its first and second columns,
/// else those of all columns and the minima.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn scales<F: Format>(header: &[u8], block: usize, half: usize) -> (__m256, __m256) {
    let offset = half * HALF;
    let factor = halves(header, 2 * offset);
    match F::CODES.scales() {
        Scales::Centred => (factor, _mm256_setzero_ps()),
        Scales::Minimum => (factor, halves(header, 2 * (ROWS + offset))),
        Scales::Nested => {
            let widen = |at| _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes(header, at + offset)));
            let minimum = widen(NESTED_MINIMA + block * ROWS);
            let minimum = _mm256_mul_ps(halves(header, 2 * (ROWS + offset)), minimum);
            let minimum = _mm256_sub_ps(_mm256_setzero_ps(), minimum);
            (_mm256_mul_ps(factor, widen((4 + block) * ROWS)), minimum)
        }
        Scales::Halves => {
            let widen = |at| _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes(header, at + offset)));
            let at = (2 + 2 * block) * ROWS;
            (_mm256_mul_ps(factor, widen(at)), _mm256_mul_ps(factor, widen(at + ROWS)))
        }
    }
}

/// Returns the products of some planes with the activations that they meet.
#[inline]
#[target_feature(enable = "avx2")]
fn dot<F: Format>(planes: &[__m256i], values: &[i8; BLOCK], at: usize) -> __m256i {
    // How many products of a code (or, where signed, of a number) and 127 fit into 16 bits, when
    // each instruction adds two: 15 * 127 * 16, 31 * 127 * 8, 32 * 127 * 8, 128 * 127 * 2.
    let together = match F::CODES.bits() {
        4 => 8,
        5 | 6 => 4,
        _ => 1,
    };
    let ones = _mm256_set1_epi16(1);
    let mut dot = _mm256_setzero_si256();
    for (part, planes) in planes.chunks(together).enumerate() {
        let mut pairs = _mm256_setzero_si256();
        for (k, &plane) in planes.iter().enumerate() {
            let values = broadcast(values, at + 4 * (part * together + k));
            // The instruction wants one unsigned side: a number's sign moves over to the
            // activation.
            let products = match F::CODES.bits() {
                4 | 5 => _mm256_maddubs_epi16(plane, values),
                _ => {
                    let values = _mm256_sign_epi8(values, plane);
                    _mm256_maddubs_epi16(_mm256_abs_epi8(plane), values)
                }
            };
            pairs = _mm256_add_epi16(pairs, products);
        }
        dot = _mm256_add_epi32(dot, _mm256_madd_epi16(pairs, ones));
    }
    dot
}

/// Returns the products of 32 columns of 8 rows with digits of a token, without their worth.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn product<F: Format>(
    planes: &[__m256i; PLANES],
    values: &[i8; BLOCK],
    sum: f32,
    (scale, other): (__m256, __m256),
) -> __m256 {
    let dot = |planes, at| _mm256_cvtepi32_ps(dot::<F>(planes, values, at));
    match F::CODES.scales() {
        Scales::Centred if F::CODES.bits() == 8 => _mm256_mul_ps(scale, dot(planes, 0)),
        Scales::Centred => {
            // All whole numbers below 2^24, and so exact.
            let centre = _mm256_set1_ps(-F::CODES.centre() as f32);
            let dot = _mm256_fmadd_ps(centre, _mm256_set1_ps(sum), dot(planes, 0));
            _mm256_mul_ps(scale, dot)
        }
        Scales::Minimum | Scales::Nested => {
            let offset = _mm256_mul_ps(other, _mm256_set1_ps(sum));
            _mm256_fmadd_ps(scale, dot(planes, 0), offset)
        }
        Scales::Halves => {
            let (first, second) = planes.split_at(PLANES / 2);
            let (first, second) = (dot(first, 0), dot(second, BLOCK / 2));
            _mm256_fmadd_ps(other, second, _mm256_mul_ps(scale, first))
        }
    }
}

/// Multiplies a group of 16 rows of floats with some rows of activations.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn dense(dense: Dense, group: &[u8], x: &[f32], out: &mut [[f32; ROWS]]) {
    match dense {
        Dense::F32 => all_dense_rows::<F32>(group, x, out),
        Dense::F16 => all_dense_rows::<F16>(group, x, out),
        Dense::Bf16 => all_dense_rows::<Bf16>(group, x, out),
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn all_dense_rows<F: Float>(group: &[u8], x: &[f32], out: &mut [[f32; ROWS]]) {
    let columns = group.len() / (ROWS * F::DENSE.number_bytes());
    let mut done = 0;
    while done < out.len() {
        let (x, left) = (&x[done * columns..], &mut out[done..]);
        done += match left.len() {
            4.. => dense_rows::<F, 4>(group, x, left),
            2.. => dense_rows::<F, 2>(group, x, left),
            _ => dense_rows::<F, 1>(group, x, left),
        };
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn dense_rows<F: Float, const M: usize>(group: &[u8], x: &[f32], out: &mut [[f32; ROWS]]) -> usize {
    let pair_bytes = 2 * ROWS * F::DENSE.number_bytes();
    let columns = 2 * (group.len() / pair_bytes);
    let x = &x[..M * columns];
    for half in 0..2 {
        // Sums of even and of odd columns, so that one product need not wait for the other.
        let mut sums = [[_mm256_setzero_ps(); 2]; M];
        for (pair, weights) in group.chunks_exact(pair_bytes).enumerate() {
            let weights = widen_pair::<F>(weights, half);
            for (m, sums) in sums.iter_mut().enumerate() {
                for (side, sum) in sums.iter_mut().enumerate() {
                    // SAFETY: `x` was cut to `M` rows of `columns`; `pair` is half of a column.
                    let value = unsafe { *x.get_unchecked(m * columns + 2 * pair + side) };
                    *sum = _mm256_fmadd_ps(weights[side], _mm256_set1_ps(value), *sum);
                }
            }
        }
        store(out, half * HALF, sums.map(|[even, odd]| _mm256_add_ps(even, odd)));
    }
    M
}

/// Returns two columns of 8 rows.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn widen_pair<F: Float>(pair: &[u8], half: usize) -> [__m256; 2] {
    match F::DENSE {
        Dense::F32 => [0, 64].map(|at| _mm256_castsi256_ps(load(pair, at + 32 * half))),
        Dense::F16 => [0, 32].map(|at| halves(pair, at + 16 * half)),
        Dense::Bf16 => {
            let words = load(pair, 32 * half);
            let odd = _mm256_and_si256(words, _mm256_set1_epi32(0xffff_0000_u32 as i32));
            [_mm256_slli_epi32::<16>(words), odd].map(|words| _mm256_castsi256_ps(words))
        }
    }
}
