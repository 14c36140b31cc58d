//! A matrix product: quantise the activations, then each thread computes some of the outputs.
#![expect(unsafe_code, reason = "threads write disjoint columns of one output")]

use std::marker::PhantomData;
use std::ops::Range;

use super::activations::{Activations, Precision, RowsMut, View};
use super::isa::Kind;
use super::packed::{Layout, Packed, ROWS};
use super::pool::Pool;
use super::{Isa, portable};
use crate::Error;
use crate::gguf::StoredTensor;

/// Rows of activations that one call of a tile kernel takes.
const TOKENS: usize = 16;

/// Bytes of activations that stay in the second-level cache while all weights pass by.
const CACHED_BYTES: usize = 256 << 10;

/// The threads and the instructions to compute with.
#[derive(Debug)]
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
        Ok(Self { parts, rows, columns, precision: Precision::Narrow })
    }

    /// Chooses how exactly activations meet quantised weights.
    #[must_use]
    pub fn with_precision(mut self, precision: Precision) -> Self {
        self.precision = precision;
        self
    }

    /// Returns the length of an output row.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Returns the length of an input row.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Returns the size of the packed weights in bytes: what one token reads.
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

    /// Computes `out = x * W^T`: `x` is `[tokens, columns]`, `out` is `[tokens, rows]`.
    pub fn apply(&self, compute: &Compute, x: &[f32], scratch: &mut Activations, out: &mut [f32]) {
        let tokens = x.len() / self.columns;
        assert_eq!(out.len(), tokens * self.rows);
        if self.parts.iter().any(|part| matches!(part.layout, Layout::Coded(_))) {
            let per_part = tokens.div_ceil(compute.pool.threads()).max(1);
            let rows = x.chunks(per_part * self.columns);
            let parts = scratch.parts((tokens, self.columns), self.precision, per_part).zip(rows);
            let parts: Vec<_> = parts.collect();
            let fill = |(): &mut (), (mut part, rows): (RowsMut<'_>, &[f32])| {
                part.fill(compute.isa, rows);
            };
            compute.pool.each(parts.into_iter(), || (), fill);
        }
        let input = Input { floats: x, quantized: scratch.view() };
        let output = Output::new(out, self.rows);
        let threads = compute.pool.threads();
        let groups: usize = self.parts.iter().map(Packed::groups).sum();
        compute.pool.run(&|thread| {
            let mine = groups * thread / threads..groups * (thread + 1) / threads;
            self.compute(compute.isa, mine, tokens, &input, &output);
        });
    }

    /// Computes the outputs of some groups of rows.
    fn compute(
        &self,
        isa: Isa,
        groups: Range<usize>,
        tokens: usize,
        input: &Input<'_>,
        output: &Output<'_>,
    ) {
        let block = (CACHED_BYTES / self.columns).next_multiple_of(TOKENS);
        for start in (0..tokens).step_by(block) {
            let end = tokens.min(start + block);
            let (mut first_group, mut first_row) = (0, 0);
            for part in &self.parts {
                let here = first_group..first_group + part.groups();
                for group in here.start.max(groups.start)..here.end.min(groups.end) {
                    let group = group - here.start;
                    let row = first_row + group * ROWS;
                    let width = ROWS.min(part.rows - group * ROWS);
                    for token in (start..end).step_by(TOKENS) {
                        let mut results = [[0.0; ROWS]; TOKENS];
                        let results = &mut results[..TOKENS.min(end - token)];
                        multiply(isa, part, group, input, token, results);
                        for (offset, result) in results.iter().enumerate() {
                            // SAFETY: a group's columns belong to one thread alone, and
                            // `Output` was made for `tokens` rows of all groups' columns.
                            unsafe { output.write(token + offset, row, &result[..width]) };
                        }
                    }
                }
                first_group = here.end;
                first_row += part.rows;
            }
        }
    }
}

/// The activations in both forms.
struct Input<'a> {
    floats: &'a [f32],
    quantized: View<'a>,
}

fn multiply(
    isa: Isa,
    part: &Packed,
    group: usize,
    input: &Input<'_>,
    first: usize,
    out: &mut [[f32; ROWS]],
) {
    let tiles = part.group(group);
    let floats = &input.floats[first * part.columns..][..out.len() * part.columns];
    let x = input.quantized;
    match (isa.kind(), part.layout) {
        #[cfg(target_arch = "x86_64")]
        (Kind::Avx512, Layout::Coded(codes)) => {
            // SAFETY: this `Isa` exists only where the features were detected.
            unsafe { super::avx512::coded(codes, tiles, x, first, out) }
        }
        #[cfg(target_arch = "x86_64")]
        (Kind::Avx512, Layout::Dense(dense)) => {
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

    /// Writes a part of a row.
    ///
    /// # Safety
    /// No other thread writes the same part at the same time.
    unsafe fn write(&self, token: usize, column: usize, values: &[f32]) {
        assert!(token < self.tokens && column + values.len() <= self.columns);
        // SAFETY: the part lies inside, as checked, and is written by this thread alone.
        unsafe {
            let target = self.values.add(token * self.columns + column);
            std::ptr::copy_nonoverlapping(values.as_ptr(), target, values.len());
        }
    }
}

#[cfg(test)]
mod tests;
