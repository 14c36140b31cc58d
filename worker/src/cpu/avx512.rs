//! The tile kernels with AVX-512: one register is 16 rows, one instruction up to 64 multiply-adds.
#![expect(unsafe_code, reason = "loads of SIMD registers from checked slices")]

mod bf16;
mod quantize;

use std::arch::x86_64::*;

use super::activations::{BLOCK, PANEL_ROWS, Panel, Second, View};
use super::isa::fetches_by_itself;
use super::packed::{
    Bf16, Codes, Dense, F16, F32, Float, Format, NESTED_MINIMA, PLANE, PLANES, ROWS, Scales,
    with_format,
};

pub(super) use bf16::bf16;
pub(super) use quantize::quantize;

/// How far ahead weights are fetched, in bytes; past the end of a group lies the next one.
const PREFETCH_BYTES: usize = 6144;

/// The most rows of activations at a time.
const TOKENS: usize = 16;

/// Does the same for each row `$m` below `$count`, up to 16. It is written out, since the sums of
/// rows that a loop counts through live in memory and not in registers.
macro_rules! each_row {
    ($m:ident < $count:ident, $body:block) => {
        each_row!(@ $m, $count, $body, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    (@ $m:ident, $count:ident, $body:block, $($number:literal)*) => {
        $(if $number < $count {
            let $m = $number;
            $body
        })*
    };
}

pub(super) use each_row;

/// Multiplies a group of 16 rows of codes with some rows of quantised activations.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn coded(
    codes: Codes,
    group: &[u8],
    x: View<'_>,
    first: usize,
    out: &mut [[f32; ROWS]],
) {
    with_format!(codes, all_rows(group, x, first, out));
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn all_rows<F: Format>(group: &[u8], x: View<'_>, first: usize, out: &mut [[f32; ROWS]]) {
    let mut done = 0;
    while done < out.len() {
        let (row, left) = (first + done, &mut out[done..]);
        done += match left.len() {
            16.. => rows::<F, 16, true>(group, x, row, left),
            8.. => rows::<F, 8, true>(group, x, row, left),
            4.. => rows::<F, 4, true>(group, x, row, left),
            2.. => rows::<F, 2, true>(group, x, row, left),
            _ if fetches_by_itself() => rows::<F, 1, false>(group, x, row, left),
            _ => rows::<F, 1, true>(group, x, row, left),
        };
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn rows<F: Format, const M: usize, const FETCH: bool>(
    group: &[u8],
    x: View<'_>,
    first: usize,
    out: &mut [[f32; ROWS]],
) -> usize {
    const { assert!(M <= TOKENS) };
    assert_eq!(group.len() * F::CODES.blocks(), x.columns / BLOCK * F::CODES.tile_bytes());
    let (x, lane) = (x.rows(first, M), first % PANEL_ROWS);
    store(out, tiles::<F, M, FETCH>(group, x, lane));
    add_seconds::<F>(group, x, lane, &mut out[..M]);
    M
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store<const M: usize>(out: &mut [[f32; ROWS]], sums: [__m512; M]) {
    for (out, sum) in out.iter_mut().zip(sums) {
        // SAFETY: `out` is 16 floats, which is what the store writes.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), sum) };
    }
}

/// Returns four activations, in every lane.
#[inline]
#[target_feature(enable = "avx512f")]
fn broadcast(values: &[i8; BLOCK], at: usize) -> __m512i {
    debug_assert!(at + 4 <= values.len());
    // SAFETY: the callers ask for columns of a block; unaligned is fine.
    let four = unsafe { values.as_ptr().add(at).cast::<i32>().read_unaligned() };
    _mm512_set1_epi32(four)
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn load(bytes: &[u8], at: usize) -> __m512i {
    debug_assert!(at + 64 <= bytes.len());
    // SAFETY: the slice is a block, as long as its format says, and `at` is inside.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().add(at).cast()) }
}

/// Returns 16 halves as floats.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn halves(bytes: &[u8], at: usize) -> __m512 {
    debug_assert!(at + 32 <= bytes.len());
    // SAFETY: the slice is a header or a block, as long as its format says, and `at` is inside.
    let bits = unsafe { _mm256_loadu_si256(bytes.as_ptr().add(at).cast()) };
    _mm512_cvtph_ps(bits)
}

/// Returns 16 bytes of a header.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn bytes(header: &[u8], at: usize) -> __m128i {
    debug_assert!(at + 16 <= header.len());
    // SAFETY: the slice is a header, as long as its format says, and `at` is inside.
    unsafe { _mm_loadu_si128(header.as_ptr().add(at).cast()) }
}

/// Fetches what comes after these bytes, if that is wanted.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn prefetch<const FETCH: bool>(bytes: &[u8]) {
    if !FETCH {
        return;
    }
    for line in (0..bytes.len()).step_by(64) {
        let ahead = bytes.as_ptr().wrapping_add(PREFETCH_BYTES + line);
        _mm_prefetch::<_MM_HINT_T1>(ahead.cast());
    }
}

/// Returns the codes of 32 columns of 16 rows, plane after plane.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn unpack<F: Format>(block: &[u8]) -> [__m512i; PLANES] {
    let mut planes = [_mm512_setzero_si512(); PLANES];
    if F::CODES.bits() == 8 {
        for (k, plane) in planes.iter_mut().enumerate() {
            *plane = load(block, k * PLANE);
        }
        return planes;
    }
    let nibble = _mm512_set1_epi8(15);
    for k in 0..PLANES / 2 {
        let bytes = load(block, k * PLANE);
        planes[k] = _mm512_and_si512(bytes, nibble);
        planes[k + 4] = _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), nibble);
    }
    // Shifts of 16 bits carry bits over to the neighbouring byte, but never to those that count.
    let add = |plane: &mut __m512i, upper: __m512i, mask: i8| {
        let upper = _mm512_and_si512(upper, _mm512_set1_epi8(mask));
        *plane = _mm512_or_si512(*plane, upper);
    };
    match F::CODES.bits() {
        5 => {
            let upper = load(block, 4 * PLANE);
            add(&mut planes[0], _mm512_slli_epi16::<4>(upper), 16);
            add(&mut planes[1], _mm512_slli_epi16::<3>(upper), 16);
            add(&mut planes[2], _mm512_slli_epi16::<2>(upper), 16);
            add(&mut planes[3], _mm512_slli_epi16::<1>(upper), 16);
            add(&mut planes[4], upper, 16);
            add(&mut planes[5], _mm512_srli_epi16::<1>(upper), 16);
            add(&mut planes[6], _mm512_srli_epi16::<2>(upper), 16);
            add(&mut planes[7], _mm512_srli_epi16::<3>(upper), 16);
        }
        6 => {
            for (half, planes) in planes.chunks_exact_mut(4).enumerate() {
                let upper = load(block, (4 + half) * PLANE);
                add(&mut planes[0], _mm512_slli_epi16::<4>(upper), 48);
                add(&mut planes[1], _mm512_slli_epi16::<2>(upper), 48);
                add(&mut planes[2], upper, 48);
                add(&mut planes[3], _mm512_srli_epi16::<2>(upper), 48);
            }
        }
        _ => {}
    }
    planes
}

/// Returns the scales of a block, for [`Scales::Halves`] those of its first and second columns,
/// else those of all columns and minus an eighth of the minima.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn scales<F: Format>(header: &[u8], block: usize) -> (__m512, __m512) {
    let factor = halves(header, 0);
    match F::CODES.scales() {
        Scales::Centred => (factor, _mm512_setzero_ps()),
        Scales::Minimum => {
            let eighth = _mm512_set1_ps(-1.0 / 8.0);
            (factor, _mm512_mul_ps(halves(header, 2 * ROWS), eighth))
        }
        Scales::Nested => {
            let widen = |at| _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes(header, at)));
            let minimum = widen(NESTED_MINIMA + block * ROWS);
            let minimum = _mm512_mul_ps(halves(header, 2 * ROWS), minimum);
            let eighth = _mm512_mul_ps(minimum, _mm512_set1_ps(1.0 / 8.0));
            (_mm512_mul_ps(factor, widen((4 + block) * ROWS)), eighth)
        }
        Scales::Halves => {
            let widen = |at| _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes(header, at)));
            let at = (2 + 2 * block) * ROWS;
            (_mm512_mul_ps(factor, widen(at)), _mm512_mul_ps(factor, widen(at + ROWS)))
        }
    }
}

/// Returns the products of first digits; the rows of the activations begin at `lane` of a panel.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn tiles<F: Format, const M: usize, const FETCH: bool>(
    group: &[u8],
    x: View<'_>,
    lane: usize,
) -> [__m512; M] {
    let blocks = x.columns / BLOCK;
    let lane = if M < PANEL_ROWS { lane } else { 0 };
    assert!(lane + M <= PANEL_ROWS.max(M) && x.panels.len() == M.div_ceil(PANEL_ROWS) * blocks);
    let mut sums = [_mm512_setzero_ps(); M];
    for (index, tile) in group.chunks_exact(F::CODES.tile_bytes()).enumerate() {
        let (header, codes) = tile.split_at(F::CODES.header_bytes());
        prefetch::<FETCH>(header);
        for (inner, codes) in codes.chunks_exact(F::CODES.block_bytes()).enumerate() {
            prefetch::<FETCH>(codes);
            let b = index * F::CODES.blocks() + inner;
            debug_assert!(b < blocks);
            let scales = scales::<F>(header, inner);
            let planes = unpack::<F>(codes);
            each_row!(m < M, {
                let row = lane + m;
                // SAFETY: the group has as many blocks as a row, as `rows` asserts, and there are
                // panels for `M` rows, as asserted above.
                let panel = unsafe { x.panels.get_unchecked(row / PANEL_ROWS * blocks + b) };
                let row = row % PANEL_ROWS;
                let product = product::<F>(&planes, panel, row, scales);
                sums[m] = _mm512_fmadd_ps(_mm512_set1_ps(panel.scales[row]), product, sums[m]);
            });
        }
    }
    sums
}

/// Adds the products with the second digits of blocks that have any: few, and so apart.
///
/// It goes through the blocks of all panels at once, since what makes a block coarse is mostly the
/// same in all rows, and unpacks each block once.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn add_seconds<F: Format>(group: &[u8], x: View<'_>, lane: usize, out: &mut [[f32; ROWS]]) {
    let mut panels: [&[Second]; TOKENS / PANEL_ROWS] = Default::default();
    for (panel, seconds) in panels.iter_mut().zip(x.seconds()) {
        *panel = seconds;
    }
    loop {
        let first = |seconds: &&[Second]| seconds.first().map_or(u32::MAX, |second| second.block);
        let block = panels.iter().map(first).fold(u32::MAX, u32::min);
        if block == u32::MAX {
            return;
        }
        let (header, inner, codes) = F::CODES.find(group, block as usize);
        let (planes, worth) = (unpack::<F>(codes), scales::<F>(header, inner));
        for (index, seconds) in panels.iter_mut().enumerate() {
            while let [second, rest @ ..] = *seconds
                && second.block == block
            {
                *seconds = rest;
                let row = (index * PANEL_ROWS + second.row as usize).wrapping_sub(lane);
                if let Some(out) = out.get_mut(row) {
                    add_second::<F>(&planes, second, worth, out);
                }
            }
        }
    }
}

/// Adds the products with the second digits of one block of a token.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn add_second<F: Format>(
    planes: &[__m512i; PLANES],
    second: &Second,
    scales: (__m512, __m512),
    out: &mut [f32; ROWS],
) {
    let (values, centre) = (&second.values, F::CODES.centre());
    let start = |sum: i32| _mm512_set1_epi32(-centre * sum);
    let product = match F::CODES.scales() {
        Scales::Halves => {
            let starts = second.half_sums.map(|sum| start(i32::from(sum)));
            product_of_halves(planes, values, starts, scales)
        }
        Scales::Centred => product_of_centred(planes, values, start(second.sum()), scales.0),
        _ => product_of_all(planes, values, _mm512_set1_epi32(-8 * second.sum()), scales),
    };
    // SAFETY: 16 floats, which is what the load reads.
    let sum = unsafe { _mm512_loadu_ps(out.as_ptr()) };
    let sum = _mm512_fmadd_ps(_mm512_set1_ps(second.scale), product, sum);
    // SAFETY: 16 floats, which is what the store writes.
    unsafe { _mm512_storeu_ps(out.as_mut_ptr(), sum) };
}

/// Returns the products of 32 columns of 16 rows with a token's first digits, without their worth.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn product<F: Format>(
    planes: &[__m512i; PLANES],
    panel: &Panel,
    row: usize,
    scales: (__m512, __m512),
) -> __m512 {
    let values = &panel.values[row];
    match F::CODES.scales() {
        Scales::Halves => {
            let [first, second] = panel.half_starts[row];
            let both = _mm512_set1_epi32(i32::from(first as u16) | i32::from(second) << 16);
            // Twice as much as what is kept: codes are by 32 too large.
            let first = _mm512_srai_epi32::<15>(_mm512_slli_epi32::<16>(both));
            let second = _mm512_slli_epi32::<1>(_mm512_srai_epi32::<16>(both));
            product_of_halves(planes, values, [first, second], scales)
        }
        Scales::Centred => {
            let start = _mm512_set1_epi32(panel.starts[row]);
            let start = match F::CODES.bits() {
                4 => start,
                5 => _mm512_slli_epi32::<1>(start),
                8 => _mm512_slli_epi32::<4>(start),
                _ => unreachable!("codes with a centre have 4, 5 or 8 bits"),
            };
            product_of_centred(planes, values, start, scales.0)
        }
        _ => product_of_all(planes, values, _mm512_set1_epi32(panel.starts[row]), scales),
    }
}

/// Returns sums of products that begin at `start`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn dot(planes: &[__m512i; PLANES], values: &[i8; BLOCK], start: __m512i) -> __m512 {
    let mut dot = start;
    for (k, plane) in planes.iter().enumerate() {
        dot = _mm512_dpbusd_epi32(dot, *plane, broadcast(values, 4 * k));
    }
    _mm512_cvtepi32_ps(dot)
}

/// Returns the products where codes have a minimum, of which `scales` has minus an eighth: `eighths`
/// is -8 times the sum of the digits.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn product_of_all(
    planes: &[__m512i; PLANES],
    values: &[i8; BLOCK],
    eighths: __m512i,
    (scale, minimum): (__m512, __m512),
) -> __m512 {
    let dot = dot(planes, values, _mm512_setzero_si512());
    _mm512_fmadd_ps(scale, dot, _mm512_mul_ps(minimum, _mm512_cvtepi32_ps(eighths)))
}

/// Returns the products where codes have a centre, by which each is too large: `start` is the sum
/// of the digits times what takes that away.
///
/// Beginning there costs nothing, while a multiplication has the pipes of the integer products.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn product_of_centred(
    planes: &[__m512i; PLANES],
    values: &[i8; BLOCK],
    start: __m512i,
    scale: __m512,
) -> __m512 {
    _mm512_mul_ps(scale, dot(planes, values, start))
}

/// Returns the products where the two halves of the columns have scales of their own; `starts` are
/// as for [`product_of_centred`], of each half.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn product_of_halves(
    planes: &[__m512i; PLANES],
    values: &[i8; BLOCK],
    starts: [__m512i; 2],
    (first, second): (__m512, __m512),
) -> __m512 {
    let mut dots = starts;
    for (k, plane) in planes.iter().enumerate() {
        let dot = &mut dots[2 * k / PLANES];
        *dot = _mm512_dpbusd_epi32(*dot, *plane, broadcast(values, 4 * k));
    }
    let [one, other] = dots.map(|dot| _mm512_cvtepi32_ps(dot));
    _mm512_fmadd_ps(second, other, _mm512_mul_ps(first, one))
}

/// Multiplies a group of 16 rows of floats with some rows of activations.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) fn dense(dense: Dense, group: &[u8], x: &[f32], out: &mut [[f32; ROWS]]) {
    match dense {
        Dense::F32 => all_dense_rows::<F32>(group, x, out),
        Dense::F16 => all_dense_rows::<F16>(group, x, out),
        Dense::Bf16 => all_dense_rows::<Bf16>(group, x, out),
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn all_dense_rows<F: Float>(group: &[u8], x: &[f32], out: &mut [[f32; ROWS]]) {
    let columns = group.len() / (ROWS * F::DENSE.number_bytes());
    let mut done = 0;
    while done < out.len() {
        let (x, left) = (&x[done * columns..], &mut out[done..]);
        done += match left.len() {
            8.. => dense_rows::<F, 8, true>(group, x, left),
            4.. => dense_rows::<F, 4, true>(group, x, left),
            2.. => dense_rows::<F, 2, true>(group, x, left),
            _ if fetches_by_itself() => dense_rows::<F, 1, false>(group, x, left),
            _ => dense_rows::<F, 1, true>(group, x, left),
        };
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn dense_rows<F: Float, const M: usize, const FETCH: bool>(
    group: &[u8],
    x: &[f32],
    out: &mut [[f32; ROWS]],
) -> usize {
    let pair_bytes = 2 * ROWS * F::DENSE.number_bytes();
    let columns = 2 * (group.len() / pair_bytes);
    let x = &x[..M * columns];
    // Sums of even and of odd columns, so that one product need not wait for the other.
    let mut sums = [[_mm512_setzero_ps(); 2]; M];
    for (pair, weights) in group.chunks_exact(pair_bytes).enumerate() {
        prefetch::<FETCH>(weights);
        let weights = widen_pair::<F>(weights);
        for (m, sums) in sums.iter_mut().enumerate() {
            for (side, sum) in sums.iter_mut().enumerate() {
                // SAFETY: `x` was cut to `M` rows of `columns`, and `pair` is half of a column.
                let value = unsafe { *x.get_unchecked(m * columns + 2 * pair + side) };
                *sum = _mm512_fmadd_ps(weights[side], _mm512_set1_ps(value), *sum);
            }
        }
    }
    store(out, sums.map(|[even, odd]| _mm512_add_ps(even, odd)));
    M
}

/// Returns two columns of 16 rows.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn widen_pair<F: Float>(pair: &[u8]) -> [__m512; 2] {
    match F::DENSE {
        Dense::F32 => [0, 64].map(|at| _mm512_castsi512_ps(load(pair, at))),
        Dense::F16 => [0, 32].map(|at| halves(pair, at)),
        Dense::Bf16 => {
            let words = load(pair, 0);
            let odd = _mm512_and_si512(words, _mm512_set1_epi32(0xffff_0000_u32 as i32));
            [_mm512_slli_epi32::<16>(words), odd].map(|words| _mm512_castsi512_ps(words))
        }
    }
}
