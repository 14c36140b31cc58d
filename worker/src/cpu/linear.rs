//! A matrix product: quantise the activations, then each thread computes some of the outputs.
#![expect(unsafe_code, reason = "threads write disjoint columns and rows of one output")]

use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::Range;

use super::activations::{Activations, Form, Precision, View};
use super::isa::{Kind, dispatched};
use super::packed::{Dense, Layout, Packed, ROWS};
use super::pool::Pool;
use super::vector::swiglu;
use super::{Isa, portable};
use crate::Error;
use crate::weights::gguf::StoredTensor;

/// Rows of activations that one call of a tile kernel takes, where no instruction takes whole tiles.
const TOKENS: usize = 16;

/// Rows that such instructions take in one call.
const MOST_TOKENS: usize = 64;

#[cfg(target_arch = "x86_64")]
const _: () = assert!(MOST_TOKENS == super::amx::TOKENS);

/// Bytes of activations that stay in the second-level cache while all weights pass by.
const CACHED_BYTES: usize = 256 << 10;

/// Bytes of weights that a thread takes at a time when there are few tokens.
const GRAIN_BYTES: usize = 12 << 10;

/// The threads and the instructions to compute with.
#[derive(Clone, Debug)]
pub struct Compute {
    /// The threads.
    pub pool: Pool,
    /// The instructions.
    pub isa: Isa,
}

/// A linear layer without bias: one matrix, or several of equal columns one below the other.
#[derive(Debug)]
pub struct Linear {
    parts: Vec<Packed>,
    rows: usize,
    columns: usize,
    precision: Precision,
}

impl Linear {
    /// Packs stored matrices.
    ///
    /// Errors: not matrices, or of different widths; the text names the tensor.
    pub fn new(stored: &[(String, StoredTensor)]) -> Result<Self, Error> {
        let parts: Vec<Packed> = stored
            .iter()
            .map(|(name, tensor)| Packed::new(name, tensor))
            .collect::<Result<_, _>>()?;
        let columns = parts.first().map_or(0, |part| part.columns);
        for ((name, _), part) in stored.iter().zip(&parts) {
            if part.columns != columns {
                let got = part.columns;
                let text = format!("tensor `{name}`: expected rows of {columns}, got {got}");
                return Err(Error::Model(text));
            }
        }
        let rows = parts.iter().map(|part| part.rows).sum();
        Ok(Self { parts, rows, columns, precision: Precision::NARROW })
    }

    /// Chooses how exactly activations meet quantised weights.
    pub fn set_precision(&mut self, precision: Precision) {
        self.precision = precision;
    }

    /// Returns the length of an output row.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Returns the length of an input row.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Returns the bytes that a product reads of this matrix.
    pub fn bytes(&self) -> usize {
        self.parts.iter().map(Packed::bytes).sum()
    }

    /// Writes one row of the matrix into `out`.
    pub fn unpack_row(&self, row: usize, out: &mut [f32]) {
        let mut row = row;
        for part in &self.parts {
            if row < part.rows {
                return part.unpack_row(row, out);
            }
            row -= part.rows;
        }
    }

    /// Returns what this layer wants of its activations.
    pub fn form(&self, isa: Isa) -> Form {
        let is_coded = |part: &Packed| matches!(part.layout, Layout::Coded(_));
        let is_bf16 = |part: &Packed| part.layout == Layout::Dense(Dense::Bf16);
        Form {
            digits: self.parts.iter().any(is_coded).then_some(self.precision),
            bf16: isa.multiplies_bf16() && self.parts.iter().any(is_bf16),
        }
    }

    /// Computes `x * W^T` for the rows of `x`, which was filled in with this layer's
    /// [`form`](Self::form) by the same threads; the result is `[tokens, rows]`.
    pub fn apply(&self, compute: &Compute, x: &Activations, product: Product<'_>) {
        let (out, is_sum) = match product {
            Product::Set(out) => (out, false),
            Product::Add(out) => (out, true),
        };
        let tokens = self.tokens(x);
        assert_eq!(out.len(), tokens * self.rows);
        let output = Output::new(out, self.rows);
        self.sweep(compute, x, |x, (group, token), results, _| {
            let (part, group, row) = self.locate(group);
            let width = ROWS.min(part.rows - group * ROWS);
            output.fetch((token, row), results.len());
            multiply(compute.isa, part, group, x, token, results);
            // SAFETY: a group's columns of a token belong to one call of this closure.
            unsafe { output.write(compute.isa, (token, row), width, results, is_sum) };
        });
    }

    /// Computes `silu(x * W^T) * (x * U^T)`, with the activations as for [`apply`](Self::apply).
    ///
    /// Panics: the matrices are of different shapes or of several parts.
    pub fn apply_gated(&self, up: &Self, compute: &Compute, x: &Activations, out: &mut [f32]) {
        let ([gate_part], [up_part]) = (&self.parts[..], &up.parts[..]) else {
            panic!("a gate and what it gates are one matrix each");
        };
        let tokens = self.tokens(x);
        assert!(self.rows == up.rows && self.columns == up.columns);
        assert_eq!(out.len(), tokens * self.rows);
        let output = Output::new(out, self.rows);
        self.sweep(compute, x, |x, (group, token), gates, ups| {
            let row = group * ROWS;
            let width = ROWS.min(self.rows - row);
            output.fetch((token, row), gates.len());
            multiply(compute.isa, gate_part, group, x, token, gates);
            multiply(compute.isa, up_part, group, x, token, ups);
            swiglu(compute.isa, gates.as_flattened_mut(), ups.as_flattened());
            // SAFETY: as in `apply`.
            unsafe { output.write(compute.isa, (token, row), width, gates, false) };
        });
    }

    /// Returns the rows of activations.
    fn tokens(&self, x: &Activations) -> usize {
        assert_eq!(x.columns(), self.columns);
        x.rows().len() / self.columns
    }

    /// Calls `work` with the activations, each group of rows and each tile of tokens: the group, the
    /// first token, and room for results of up to two matrices, a row for each token.
    fn sweep(
        &self,
        compute: &Compute,
        x: &Activations,
        work: impl Fn(View<'_>, (usize, usize), &mut [[f32; ROWS]], &mut [[f32; ROWS]]) + Sync,
    ) {
        let tokens = self.tokens(x);
        let groups: usize = self.parts.iter().map(Packed::groups).sum();
        let threads = compute.pool.threads();
        let blocks = (tokens * self.columns).div_ceil(CACHED_BYTES).max(1);
        let blocks =
            if splits_tokens(tokens, threads) { blocks.next_multiple_of(threads) } else { blocks };
        let block = tokens.div_ceil(blocks).next_multiple_of(TOKENS);
        let tile = if compute.isa.has_tiles() { MOST_TOKENS } else { TOKENS };
        let blocks = tokens.div_ceil(block);
        let group_bytes = self.bytes() / groups.max(1);
        let grain = if tokens < TOKENS { GRAIN_BYTES / group_bytes.max(1) } else { 1 };
        let sweep = |x: View<'_>, items: Range<usize>, [first, second]: &mut Results| {
            for item in items {
                let (start, group) = (item / groups * block, item % groups);
                let end = tokens.min(start + block);
                for token in (start..end).step_by(tile) {
                    let count = tile.min(end - token);
                    work(x, (group, token), &mut first.0[..count], &mut second.0[..count]);
                }
            }
        };
        compute.pool.share_out(blocks * groups, grain, |thread, items| {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the activations were filled in for a set with these instructions.
            let _tiles = x.are_for_tiles().then(|| unsafe { super::amx::configure(tokens) });
            RESULTS.with_borrow_mut(|results| {
                x.read(compute.isa, thread, |x| items.for_each(|items| sweep(x, items, results)));
            });
        });
    }

    /// Returns the part that a group of rows lies in, its number there, and its first row here.
    fn locate(&self, group: usize) -> (&Packed, usize, usize) {
        let (mut group, mut row) = (group, 0);
        let mut parts = self.parts.iter();
        loop {
            let part = parts.next().expect("groups are counted from the parts");
            if group < part.groups() {
                return (part, group, row + group * ROWS);
            }
            group -= part.groups();
            row += part.rows;
        }
    }
}

/// Says whether each thread should compute its own tokens, with all weights, and not all tokens with
/// its own weights: what it reads then is what it wrote, and weights are read once for each thread.
///
/// A thread makes some 170 products in a nanosecond, and a weight of 4 bits takes half a byte of
/// memory: with as many tokens as this all threads read 12 bytes in a nanosecond at most.
fn splits_tokens(tokens: usize, threads: usize) -> bool {
    tokens >= 8 * threads * threads
}

/// What becomes of a product, `[tokens, rows]`.
#[derive(Debug)]
pub enum Product<'a> {
    /// It is written here.
    Set(&'a mut [f32]),
    /// It is added to what is here.
    Add(&'a mut [f32]),
}

fn multiply(
    isa: Isa,
    part: &Packed,
    group: usize,
    x: View<'_>,
    first: usize,
    out: &mut [[f32; ROWS]],
) {
    let tiles = part.group(group);
    let floats = &x.floats[first * part.columns..][..out.len() * part.columns];
    match (isa.kind(), part.layout) {
        #[cfg(target_arch = "x86_64")]
        (Kind::Amx, Layout::Dense(Dense::Bf16)) => {
            // SAFETY: this thread's tiles have shapes, as `sweep` saw to.
            unsafe { super::amx::bf16(tiles, x, first, out) }
        }
        #[cfg(target_arch = "x86_64")]
        (Kind::Avx512Bf16, Layout::Dense(Dense::Bf16)) => {
            // SAFETY: this `Isa` exists only where the features were detected.
            unsafe { super::avx512::bf16(tiles, x, first, out) }
        }
        #[cfg(target_arch = "x86_64")]
        (Kind::Amx, Layout::Coded(codes)) if !x.tiles.is_empty() => {
            // SAFETY: this `Isa` exists only where the features were detected, and this thread's tiles
            // have shapes where activations have tiles, as `sweep` saw to.
            unsafe { super::amx::coded(codes, tiles, x, first, out) }
        }
        #[cfg(target_arch = "x86_64")]
        (Kind::Avx512 | Kind::Avx512Bf16 | Kind::Amx, Layout::Coded(codes)) => {
            // SAFETY: this `Isa` exists only where the features were detected.
            unsafe { super::avx512::coded(codes, tiles, x, first, out) }
        }
        #[cfg(target_arch = "x86_64")]
        (Kind::Avx512 | Kind::Avx512Bf16 | Kind::Amx, Layout::Dense(dense)) => {
            // SAFETY: this `Isa` exists only where the features were detected.
            unsafe { super::avx512::dense(dense, tiles, floats, out) }
        }
        #[cfg(target_arch = "x86_64")]
        (Kind::Avx2, Layout::Coded(codes)) => {
            // SAFETY: this `Isa` exists only where the features were detected.
            unsafe { super::avx2::coded(codes, tiles, x, first, out) }
        }
        #[cfg(target_arch = "x86_64")]
        (Kind::Avx2, Layout::Dense(dense)) => {
            // SAFETY: this `Isa` exists only where the features were detected.
            unsafe { super::avx2::dense(dense, tiles, floats, out) }
        }
        #[cfg(target_arch = "aarch64")]
        (Kind::NeonDotprod, Layout::Coded(codes)) => {
            // SAFETY: this `Isa` exists only where the features were detected.
            unsafe { super::neon::coded_dotprod(codes, tiles, x, first, out) }
        }
        #[cfg(target_arch = "aarch64")]
        (Kind::Neon, Layout::Coded(codes)) => {
            // SAFETY: this `Isa` exists only where the features were detected.
            unsafe { super::neon::coded(codes, tiles, x, first, out) }
        }
        #[cfg(target_arch = "aarch64")]
        (Kind::Neon | Kind::NeonDotprod, Layout::Dense(dense)) => {
            // SAFETY: this `Isa` exists only where the features were detected.
            unsafe { super::neon::dense(dense, tiles, floats, out) }
        }
        (Kind::Portable, Layout::Coded(codes)) => portable::coded(codes, tiles, x, first, out),
        (Kind::Portable, Layout::Dense(dense)) => portable::dense(dense, tiles, floats, out),
    }
}

/// Results of some tokens, in whole lines of the cache.
#[repr(align(64))]
struct Tile([[f32; ROWS]; MOST_TOKENS]);

/// Those of up to two matrices.
type Results = [Tile; 2];

thread_local! {
    /// Room for results: to clear it for each call would take a twentieth of the time of a product.
    static RESULTS: RefCell<Results> =
        const { RefCell::new([const { Tile([[0.0; ROWS]; MOST_TOKENS]) }; 2]) };
}

/// An output that threads write at once, each its own columns.
struct Output<'a> {
    values: *mut f32,
    tokens: usize,
    columns: usize,
    lifetime: PhantomData<&'a mut [f32]>,
}

// SAFETY: the only access is `write`, whose callers never overlap; `fetch` reads nothing.
unsafe impl Sync for Output<'_> {}

impl<'a> Output<'a> {
    fn new(values: &'a mut [f32], columns: usize) -> Self {
        let tokens = values.len() / columns.max(1);
        Self { values: values.as_mut_ptr(), tokens, columns, lifetime: PhantomData }
    }

    /// Has the processor fetch what will be written from a token and a column on.
    fn fetch(&self, (token, column): (usize, usize), tokens: usize) {
        #[cfg(target_arch = "x86_64")]
        for token in token..token + tokens {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            let place = self.values.wrapping_add(token * self.columns + column);
            // SAFETY: every x86-64 processor has the instruction, which changes nothing.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(place.cast()) };
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (token, column, tokens);
    }

    /// Writes the first `width` of each result from a token and a column on, a row for each token,
    /// or adds them to what is there.
    ///
    /// # Safety
    /// No other thread touches the same columns of these rows at the same time.
    unsafe fn write(
        &self,
        isa: Isa,
        (token, column): (usize, usize),
        width: usize,
        results: &[[f32; ROWS]],
        is_sum: bool,
    ) {
        assert!(token + results.len() <= self.tokens && column + width <= self.columns);
        for (index, results) in results.chunks(TOKENS).enumerate() {
            let mut targets: [&mut [f32]; TOKENS] = Default::default();
            for (offset, target) in targets[..results.len()].iter_mut().enumerate() {
                let token = token + index * TOKENS + offset;
                // SAFETY: the part lies inside, as checked, and no other thread touches it
                // meanwhile; the rows of a call do not overlap.
                *target = unsafe {
                    let start = self.values.add(token * self.columns + column);
                    std::slice::from_raw_parts_mut(start, width)
                };
            }
            put(isa, &mut targets[..results.len()], results, is_sum);
        }
    }
}

dispatched! {
    /// Writes the beginning of each result into a row, as much as that holds, or adds it.
    fn put(targets: &mut [&mut [f32]], results: &[[f32; ROWS]], is_sum: bool) = put_body
}

#[inline(always)]
fn put_body<const FMA: bool>(targets: &mut [&mut [f32]], results: &[[f32; ROWS]], is_sum: bool) {
    for (target, result) in targets.iter_mut().zip(results) {
        // Nearly always a whole register: a copy of known length is no loop.
        match <&mut [f32; ROWS]>::try_from(&mut **target) {
            Ok(target) if is_sum => {
                for (target, value) in target.iter_mut().zip(result) {
                    *target += value;
                }
            }
            Ok(target) => *target = *result,
            Err(_) if is_sum => {
                target.iter_mut().zip(result).for_each(|(target, value)| *target += value);
            }
            Err(_) => {
                target.iter_mut().zip(result).for_each(|(target, value)| *target = *value);
            }
        }
    }
}

#[cfg(test)]
mod tests;
