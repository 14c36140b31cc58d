//! A matrix product: quantise the activations, then each thread computes some of the outputs.
#![expect(unsafe_code, reason = "threads write disjoint columns of one output")]

use std::marker::PhantomData;

use super::activations::{Form, Precision, View};
use super::isa::Kind;
use super::packed::{Dense, Layout, Packed, ROWS};
use super::pool::Pool;
use super::vector::swiglu;
use super::{Isa, portable};
use crate::Error;
use crate::gguf::StoredTensor;

/// Rows of activations that one call of a tile kernel takes.
const TOKENS: usize = 16;

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
    /// [`form`](Self::form); the result is `[tokens, rows]`.
    pub fn apply(&self, compute: &Compute, x: View<'_>, product: Product<'_>) {
        let (out, is_sum) = match product {
            Product::Set(out) => (out, false),
            Product::Add(out) => (out, true),
        };
        let tokens = self.tokens(x);
        assert_eq!(out.len(), tokens * self.rows);
        let output = Output::new(out, self.rows);
        self.sweep(compute, tokens, |group, token, results, _| {
            let (part, group, row) = self.locate(group);
            let width = ROWS.min(part.rows - group * ROWS);
            multiply(compute.isa, part, group, x, token, results);
            for (offset, result) in results.iter().enumerate() {
                // SAFETY: a group's columns of a token belong to one call of this closure, and
                // `Output` was made for `tokens` rows of all groups' columns.
                unsafe { output.write(token + offset, row, &result[..width], is_sum) };
            }
        });
    }

    /// Computes `silu(x * W^T) * (x * U^T)`, with the activations as for [`apply`](Self::apply).
    ///
    /// Panics: the matrices are of different shapes or of several parts.
    pub fn apply_gated(&self, up: &Self, compute: &Compute, x: View<'_>, out: &mut [f32]) {
        let ([gate_part], [up_part]) = (&self.parts[..], &up.parts[..]) else {
            panic!("a gate and what it gates are one matrix each");
        };
        let tokens = self.tokens(x);
        assert!(self.rows == up.rows && self.columns == up.columns);
        assert_eq!(out.len(), tokens * self.rows);
        let output = Output::new(out, self.rows);
        self.sweep(compute, tokens, |group, token, gates, ups| {
            let row = group * ROWS;
            let width = ROWS.min(self.rows - row);
            multiply(compute.isa, gate_part, group, x, token, gates);
            multiply(compute.isa, up_part, group, x, token, ups);
            swiglu(compute.isa, gates.as_flattened_mut(), ups.as_flattened());
            for (offset, gate) in gates.iter().enumerate() {
                // SAFETY: as in `apply`.
                unsafe { output.write(token + offset, row, &gate[..width], false) };
            }
        });
    }

    /// Returns the rows of activations.
    fn tokens(&self, x: View<'_>) -> usize {
        assert_eq!(x.columns, self.columns);
        x.floats.len() / self.columns
    }

    /// Calls `work` with each group of rows and each tile of tokens: the group, the first token,
    /// and room for results of up to two matrices, a row for each token.
    fn sweep(
        &self,
        compute: &Compute,
        tokens: usize,
        work: impl Fn(usize, usize, &mut [[f32; ROWS]], &mut [[f32; ROWS]]) + Sync,
    ) {
        let groups: usize = self.parts.iter().map(Packed::groups).sum();
        let blocks = (tokens * self.columns).div_ceil(CACHED_BYTES).max(1);
        let block = tokens.div_ceil(blocks).next_multiple_of(TOKENS);
        let blocks = tokens.div_ceil(block);
        let group_bytes = self.bytes() / groups.max(1);
        let grain = if tokens < TOKENS { GRAIN_BYTES / group_bytes.max(1) } else { 1 };
        compute.pool.share(blocks * groups, grain, |_, items| {
            let mut results = [[[0.0; ROWS]; TOKENS]; 2];
            for item in items {
                let (first, group) = (item / groups * block, item % groups);
                let end = tokens.min(first + block);
                for token in (first..end).step_by(TOKENS) {
                    let count = TOKENS.min(end - token);
                    let [first, second] = &mut results;
                    work(group, token, &mut first[..count], &mut second[..count]);
                }
            }
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
        (Kind::Avx512Bf16, Layout::Dense(Dense::Bf16)) => {
            // SAFETY: this `Isa` exists only where the features were detected.
            unsafe { super::avx512::bf16(tiles, x, first, out) }
        }
        #[cfg(target_arch = "x86_64")]
        (Kind::Avx512 | Kind::Avx512Bf16, Layout::Coded(codes)) => {
            // SAFETY: this `Isa` exists only where the features were detected.
            unsafe { super::avx512::coded(codes, tiles, x, first, out) }
        }
        #[cfg(target_arch = "x86_64")]
        (Kind::Avx512 | Kind::Avx512Bf16, Layout::Dense(dense)) => {
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

/// An output that threads write at once, each its own columns.
struct Output<'a> {
    values: *mut f32,
    tokens: usize,
    columns: usize,
    lifetime: PhantomData<&'a mut [f32]>,
}

// SAFETY: the only access is `write`, whose callers never overlap.
unsafe impl Sync for Output<'_> {}

impl<'a> Output<'a> {
    fn new(values: &'a mut [f32], columns: usize) -> Self {
        let tokens = values.len() / columns.max(1);
        Self { values: values.as_mut_ptr(), tokens, columns, lifetime: PhantomData }
    }

    /// Writes a part of a row, or adds to it.
    ///
    /// # Safety
    /// No other thread touches the same part at the same time.
    unsafe fn write(&self, token: usize, column: usize, values: &[f32], is_sum: bool) {
        assert!(token < self.tokens && column + values.len() <= self.columns);
        // SAFETY: the part lies inside, as checked, and no other thread touches it meanwhile.
        let target = unsafe {
            let target = self.values.add(token * self.columns + column);
            std::slice::from_raw_parts_mut(target, values.len())
        };
        // Nearly always a whole register: a copy of known length is no call.
        match (<&mut [f32; ROWS]>::try_from(&mut *target), <&[f32; ROWS]>::try_from(values)) {
            (Ok(target), Ok(values)) => put(target, values, is_sum),
            _ => put(target, values, is_sum),
        }
    }
}

#[inline(always)]
fn put(target: &mut [f32], values: &[f32], is_sum: bool) {
    match is_sum {
        true => target.iter_mut().zip(values).for_each(|(target, value)| *target += value),
        false => target.copy_from_slice(values),
    }
}

#[cfg(test)]
mod tests;
