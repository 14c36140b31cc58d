//! The KV cache in blocks, and attention over it.
//!
//! A block holds 16 tokens of one layer and one KV head: keys as `[dimension][token]`, so that
//! the scores of 16 tokens are one register, then values as `[token][dimension]`, all f16.
//!
//! Attention goes over segments of 256 tokens, counted from the beginning of the sequence, and
//! folds what they gave in their order. So segments may be computed by different threads, and
//! tokens alone or several at a time, without a bit of difference.
#![expect(unsafe_code, reason = "threads write disjoint places of one cache")]

mod batch;
mod kernel;
mod lanes;
mod rounds;

use std::io;

use half::f16;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};

use super::linear::Compute;
use super::memory::Pages;
use super::vector::LANES;
use crate::Error;

pub use batch::{Buffers, Group, Pass, Shape};

/// The number of a KV block in the memory of what runs a model.
pub type BlockId = u32;

/// Tokens of a block.
pub const BLOCK_TOKENS: usize = 16;

/// Tokens of a segment.
pub const SEGMENT_TOKENS: usize = 256;

/// Tokens at a time that a thread writes.
const GRAIN: usize = 4;

/// The sizes of a cache.
#[derive(Clone, Copy, Debug)]
pub struct Geometry {
    /// Layers of the model.
    pub layers: usize,
    /// Blocks there are.
    pub blocks: usize,
    /// KV heads of a layer.
    pub kv_heads: usize,
    /// Dimensions of a head.
    pub head_dim: usize,
}

impl Geometry {
    /// Returns the length of one token's values in memory: whole registers.
    pub(super) fn value_width(&self) -> usize {
        self.head_dim.next_multiple_of(LANES)
    }

    /// Returns the length of a row's state: sums of values, then the largest score, then the sum
    /// of weights.
    fn state_width(&self) -> usize {
        self.value_width() + 2
    }

    /// Returns the halves that one block of one head takes.
    fn head_halves(&self) -> usize {
        BLOCK_TOKENS * (self.head_dim + self.value_width())
    }

    /// Returns the halves that one block takes in one layer.
    fn block_halves(&self) -> usize {
        self.kv_heads * self.head_halves()
    }

    /// Returns the bytes that one block takes in all layers.
    pub fn block_bytes(&self) -> usize {
        self.layers * self.block_halves() * size_of::<f16>()
    }
}

/// Keys and values of all sequences: `[layer][block][kv head]`.
#[derive(Debug)]
pub struct Cache {
    geometry: Geometry,
    bits: Pages<u16>,
}

/// Where the tokens of a pass go in the cache: no two to the same place.
#[derive(Debug, Default)]
pub struct Places(Vec<(BlockId, usize)>);

impl Places {
    /// Makes them of blocks and the places in these.
    ///
    /// Panics: two are the same.
    pub fn new(places: impl Iterator<Item = (BlockId, usize)>) -> Self {
        let places: Vec<_> = places.collect();
        let mut sorted = places.clone();
        sorted.sort_unstable();
        assert!(sorted.windows(2).all(|two| two[0] != two[1]), "two tokens share a place");
        Self(places)
    }
}

impl Cache {
    /// Makes a cache; the memory is taken from the system when it is first written.
    ///
    /// Errors: the system does not have that much.
    pub fn new(geometry: Geometry) -> io::Result<Self> {
        let halves = geometry.layers * geometry.blocks * geometry.block_halves();
        Ok(Self { geometry, bits: Pages::take(halves)? })
    }

    /// Returns one layer for reading.
    pub fn layer(&self, layer: usize) -> Layer<'_> {
        let size = self.geometry.blocks * self.geometry.block_halves();
        Layer { geometry: self.geometry, bits: &self.bits[layer * size..][..size] }
    }

    /// Writes the keys and values of a pass's tokens in one layer: `make` returns those of one of the
    /// `rows`, `[kv heads, head_dim]` each, which may have to be made first.
    pub fn write<'a, T: Send + 'a>(
        &mut self,
        compute: &Compute,
        layer: usize,
        places: &Places,
        rows: impl ExactSizeIterator<Item = T>,
        make: impl Fn(T) -> (&'a [f32], &'a [f32]) + Sync,
    ) {
        let geometry = self.geometry;
        let size = geometry.blocks * geometry.block_halves();
        let target = Target { bits: self.bits[layer * size..][..size].as_mut_ptr(), geometry };
        assert_eq!(rows.len(), places.0.len());
        let mut rows = places.0.iter().zip(rows);
        let parts = (0..places.0.len().div_ceil(GRAIN))
            .map(|_| std::array::from_fn::<_, GRAIN, _>(|_| rows.next()));
        compute.pool.each_by_part(parts, |_, part| {
            for (place, row) in part.into_iter().flatten() {
                let (keys, values) = make(row);
                // SAFETY: no two tokens have the same place, and each is written by one thread.
                unsafe { target.write(*place, keys, values) };
            }
        });
    }
}

/// One layer of a cache that threads write at once, each its own places.
struct Target {
    bits: *mut u16,
    geometry: Geometry,
}

// SAFETY: the only access is `write`, whose callers never overlap.
unsafe impl Sync for Target {}

impl Target {
    /// Writes one token's keys and values.
    ///
    /// # Safety
    /// No other thread touches this place of this block at the same time.
    unsafe fn write(&self, (block, place): (BlockId, usize), keys: &[f32], values: &[f32]) {
        let Geometry { blocks, kv_heads, head_dim, .. } = self.geometry;
        assert!((block as usize) < blocks && place < BLOCK_TOKENS);
        assert!(keys.len() == kv_heads * head_dim && values.len() == keys.len());
        let rows = keys.chunks_exact(head_dim).zip(values.chunks_exact(head_dim));
        for (head, (keys, values)) in rows.enumerate() {
            let head = block as usize * kv_heads + head;
            // SAFETY: as checked, this head of this block lies in the layer.
            let start = unsafe { self.bits.add(head * self.geometry.head_halves()) };
            for (first, keys) in (0..head_dim).step_by(LANES).zip(keys.chunks(LANES)) {
                let mut halves = [0u16; LANES];
                let halves = &mut halves[..keys.len()];
                halves.reinterpret_cast_mut::<f16>().convert_from_f32_slice(keys);
                for (offset, half) in halves.iter().enumerate() {
                    // SAFETY: the keys of a head are `head_dim` rows of a half for each place.
                    unsafe { *start.add((first + offset) * BLOCK_TOKENS + place) = *half };
                }
            }
            let row = BLOCK_TOKENS * head_dim + place * self.geometry.value_width();
            // SAFETY: the values of a place lie behind the keys and are this thread's alone.
            let row = unsafe { std::slice::from_raw_parts_mut(start.add(row), head_dim) };
            row.reinterpret_cast_mut::<f16>().convert_from_f32_slice(values);
        }
    }
}

impl Cache {
    /// Returns where a block lies in `bits`: a range for each layer.
    fn ranges(&self, block: BlockId) -> impl Iterator<Item = std::ops::Range<usize>> + use<> {
        let Geometry { layers, blocks, kv_heads, .. } = self.geometry;
        let size = kv_heads * self.geometry.head_halves();
        let first = (0..layers).map(move |layer| (layer * blocks + block as usize) * size);
        first.map(move |first| first..first + size)
    }

    /// Copies a block in all layers.
    pub fn copy_block(&mut self, from: BlockId, to: BlockId) {
        for (from, to) in self.ranges(from).zip(self.ranges(to)) {
            self.bits.copy_within(from, to.start);
        }
    }

    /// Appends a block of all layers to `bytes`: [`block_bytes`](Geometry::block_bytes).
    pub fn read_block(&self, block: BlockId, bytes: &mut Vec<u8>) {
        let first = bytes.len();
        bytes.resize(first + self.geometry.block_bytes(), 0);
        let layers =
            bytes[first..].chunks_exact_mut(self.geometry.block_bytes() / self.geometry.layers);
        for (range, bytes) in self.ranges(block).zip(layers) {
            for (bytes, bits) in bytes.as_chunks_mut().0.iter_mut().zip(&self.bits[range]) {
                *bytes = bits.to_le_bytes();
            }
        }
    }

    /// Puts back what [`read_block`](Cache::read_block) gave.
    ///
    /// Errors: another number of bytes.
    pub fn write_block(&mut self, block: BlockId, bytes: &[u8]) -> Result<(), Error> {
        let expected = self.geometry.block_bytes();
        if bytes.len() != expected {
            let text = format!("a KV block has {expected} bytes, got {}", bytes.len());
            return Err(Error::Device(text));
        }
        let ranges = self.ranges(block);
        let layers = bytes.chunks_exact(expected / self.geometry.layers);
        for (range, bytes) in ranges.zip(layers) {
            for (bits, bytes) in self.bits[range].iter_mut().zip(bytes.as_chunks().0) {
                *bits = u16::from_le_bytes(*bytes);
            }
        }
        Ok(())
    }
}

/// One layer of a cache.
#[derive(Clone, Copy, Debug)]
pub struct Layer<'a> {
    geometry: Geometry,
    bits: &'a [u16],
}

impl<'a> Layer<'a> {
    /// Returns the keys and the values of one head in a block.
    fn head(&self, block: BlockId, head: usize) -> (&'a [[u16; LANES]], &'a [[u16; LANES]]) {
        let size = self.geometry.head_halves();
        let index = block as usize * self.geometry.kv_heads + head;
        let rows = self.bits[index * size..][..size].as_chunks::<LANES>().0;
        rows.split_at(self.geometry.head_dim)
    }
}

#[cfg(test)]
mod tests;
