//! The KV cache in blocks, and attention over it.
//!
//! A block holds 16 tokens of one layer and one KV head: keys as `[dimension][token]`, so that
//! the scores of 16 tokens are one register, then values as `[token][dimension]`, all f16.

use half::f16;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};

use super::isa::dispatched;
use super::vector::{exp, multiply_add};
use crate::runner::BlockId;

/// Tokens of a block.
pub const BLOCK_TOKENS: usize = 16;

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
    /// Returns the halves that one block of one head takes.
    fn head_halves(&self) -> usize {
        2 * BLOCK_TOKENS * self.head_dim
    }

    /// Returns the bytes that one block takes in all layers.
    pub fn block_bytes(&self) -> usize {
        self.layers * self.kv_heads * self.head_halves() * size_of::<f16>()
    }
}

/// Keys and values of all sequences: `[layer][block][kv head]`.
#[derive(Debug)]
pub struct Cache {
    geometry: Geometry,
    bits: Vec<u16>,
}

impl Cache {
    /// Makes a cache; the memory is taken from the system when it is first written.
    pub fn new(geometry: Geometry) -> Self {
        let halves = geometry.block_bytes() / size_of::<f16>() * geometry.blocks;
        Self { geometry, bits: vec![0; halves] }
    }

    /// Returns one layer for reading.
    pub fn layer(&self, layer: usize) -> Layer<'_> {
        let size = self.bits.len() / self.geometry.layers;
        let halves = self.bits[layer * size..][..size].reinterpret_cast();
        Layer { geometry: self.geometry, halves }
    }

    /// Writes one token's keys and values, `[kv heads, head_dim]` each, at a place of a block.
    pub fn write(&mut self, layer: usize, block: BlockId, place: usize, kv: (&[f32], &[f32])) {
        let Geometry { blocks, kv_heads, head_dim, .. } = self.geometry;
        let size = self.geometry.head_halves();
        let first = (layer * blocks + block as usize) * kv_heads * size;
        let heads = self.bits[first..][..kv_heads * size].chunks_exact_mut(size);
        let rows = kv.0.chunks_exact(head_dim).zip(kv.1.chunks_exact(head_dim));
        for (head, (key, value)) in heads.zip(rows) {
            let head: &mut [f16] = head.reinterpret_cast_mut();
            let (keys, values) = head.split_at_mut(BLOCK_TOKENS * head_dim);
            for (dimension, key) in key.iter().enumerate() {
                keys[dimension * BLOCK_TOKENS + place] = f16::from_f32(*key);
            }
            values[place * head_dim..][..head_dim].convert_from_f32_slice(value);
        }
    }
}

/// One layer of a cache.
#[derive(Clone, Copy, Debug)]
pub struct Layer<'a> {
    geometry: Geometry,
    halves: &'a [f16],
}

impl<'a> Layer<'a> {
    fn head(&self, block: BlockId, head: usize) -> (&'a [f16], &'a [f16]) {
        let size = self.geometry.head_halves();
        let index = block as usize * self.geometry.kv_heads + head;
        self.halves[index * size..][..size].split_at(size / 2)
    }
}

/// What one token's query heads of one KV head attend to.
#[derive(Clone, Copy, Debug)]
pub struct Span<'a> {
    /// The layer of the cache.
    pub layer: Layer<'a>,
    /// The KV head.
    pub head: usize,
    /// The sequence's blocks.
    pub blocks: &'a [BlockId],
    /// The first token to attend to, below `tokens`.
    pub first: usize,
    /// Where the tokens to attend to end.
    pub tokens: usize,
}

/// Memory for scores and for one block in f32; kept between uses.
#[derive(Debug, Default)]
pub struct Scratch {
    scores: Vec<f32>,
    block: Vec<f32>,
}

dispatched! {
    /// Computes attention: `queries` and `out` are `[heads of the KV head, head_dim]`.
    pub fn attend(queries: &[f32], span: Span<'_>, scratch: &mut Scratch, out: &mut [f32]) =
        attend_body
}

#[inline(always)]
fn attend_body<const FMA: bool>(
    queries: &[f32],
    span: Span<'_>,
    scratch: &mut Scratch,
    out: &mut [f32],
) {
    let dim = span.layer.geometry.head_dim;
    // Scores begin at the first block that has a token to attend to.
    let skipped = span.first / BLOCK_TOKENS;
    let (first, tokens) = (span.first % BLOCK_TOKENS, span.tokens - skipped * BLOCK_TOKENS);
    let span = Span { blocks: &span.blocks[skipped..], first, tokens, ..span };
    let width = span.tokens.next_multiple_of(BLOCK_TOKENS);
    scratch.scores.resize(queries.len() / dim * width, 0.0);
    scratch.block.resize(BLOCK_TOKENS * dim, 0.0);
    score::<FMA>(queries, span, scratch, width);
    for scores in scratch.scores.chunks_exact_mut(width) {
        scores[..span.first].fill(0.0);
        softmax::<FMA>(&mut scores[span.first..span.tokens]);
    }
    out.fill(0.0);
    let last = span.tokens.div_ceil(BLOCK_TOKENS);
    for (b, block) in span.blocks[..last].iter().enumerate() {
        let (_, values) = span.layer.head(*block, span.head);
        values.convert_to_f32_slice(&mut scratch.block);
        let tokens = BLOCK_TOKENS.min(span.tokens - b * BLOCK_TOKENS);
        for (scores, out) in scratch.scores.chunks_exact(width).zip(out.chunks_exact_mut(dim)) {
            let scores = &scores[b * BLOCK_TOKENS..][..tokens];
            for (score, values) in scores.iter().zip(scratch.block.chunks_exact(dim)) {
                for (out, value) in out.iter_mut().zip(values) {
                    *out = multiply_add::<FMA>(*score, *value, *out);
                }
            }
        }
    }
}

/// Writes the scaled products of queries and keys, `[heads, width]`.
#[inline(always)]
fn score<const FMA: bool>(queries: &[f32], span: Span<'_>, scratch: &mut Scratch, width: usize) {
    let dim = span.layer.geometry.head_dim;
    let scale = 1.0 / (dim as f32).sqrt();
    let last = span.tokens.div_ceil(BLOCK_TOKENS);
    for (b, block) in span.blocks[..last].iter().enumerate() {
        let (keys, _) = span.layer.head(*block, span.head);
        keys.convert_to_f32_slice(&mut scratch.block);
        let heads = scratch.scores.chunks_exact_mut(width);
        for (query, scores) in queries.chunks_exact(dim).zip(heads) {
            let mut sums = [0f32; BLOCK_TOKENS];
            for (query, keys) in query.iter().zip(scratch.block.as_chunks::<BLOCK_TOKENS>().0) {
                for (sum, key) in sums.iter_mut().zip(keys) {
                    *sum = multiply_add::<FMA>(*query, *key, *sum);
                }
            }
            let scores = &mut scores[b * BLOCK_TOKENS..][..BLOCK_TOKENS];
            for (score, sum) in scores.iter_mut().zip(sums) {
                *score = sum * scale;
            }
        }
    }
}

#[inline(always)]
fn softmax<const FMA: bool>(scores: &mut [f32]) {
    let largest = scores.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
    let mut sum = 0.0;
    for score in scores.iter_mut() {
        *score = exp::<FMA>(*score - largest);
    }
    for score in scores.iter() {
        sum += score;
    }
    let scale = 1.0 / sum;
    scores.iter_mut().for_each(|score| *score *= scale);
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use super::*;
    use crate::cpu::Isa;

    #[test]
    fn attention_matches_a_float64_reference_over_scattered_blocks() {
        let geometry = Geometry { layers: 2, blocks: 9, kv_heads: 2, head_dim: 32 };
        let mut cache = Cache::new(geometry);
        let blocks: [BlockId; 3] = [7, 0, 4];
        let tokens = 37;
        let row = |token: usize, salt: usize| -> Vec<f32> {
            (0..64).map(|d| ((token * 67 + d * 13 + salt) as f32 * 0.7).sin()).collect()
        };
        for token in 0..tokens {
            let (block, place) = (blocks[token / 16], token % 16);
            cache.write(1, block, place, (&row(token, 1), &row(token, 2)));
        }
        let queries: Vec<f32> = (0..96).map(|i| (i as f32 * 0.3).cos()).collect();
        let isas = Isa::available().into_iter();
        for (isa, first) in isas.flat_map(|isa| [0, 5, 16, 20, 36].map(|first| (isa, first))) {
            let span = Span { layer: cache.layer(1), head: 1, blocks: &blocks, first, tokens };
            let mut out = vec![0.0; 96];
            attend(isa, &queries, span, &mut Scratch::default(), &mut out);
            for head in 0..3 {
                let exact = reference(&queries[head * 32..][..32], first..tokens, &row);
                for (got, exact) in out[head * 32..][..32].iter().zip(exact) {
                    let error = (f64::from(*got) - exact).abs();
                    assert!(error < 2e-3, "{isa:?} from {first}: {got} {exact}");
                }
            }
        }
    }

    fn reference(
        query: &[f32],
        tokens: Range<usize>,
        row: &dyn Fn(usize, usize) -> Vec<f32>,
    ) -> Vec<f64> {
        let weight = |token: usize| {
            let key = &row(token, 1)[32..];
            let dot: f64 = query.iter().zip(key).map(|(q, k)| f64::from(q * k)).sum();
            (dot / 32f64.sqrt()).exp()
        };
        let total: f64 = tokens.clone().map(weight).sum();
        let value = |token: usize, d: usize| f64::from(row(token, 2)[32 + d]);
        let sum = |d| tokens.clone().map(|t| weight(t) * value(t, d)).sum::<f64>() / total;
        (0..32).map(sum).collect()
    }
}
