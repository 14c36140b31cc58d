//! The forward pass of the Llama family.

use engine::TokenId;

use super::{Hyperparameters, LayerWeights, Llama};
use crate::cpu::Isa;
use crate::cpu::activations::Activations;
use crate::cpu::attention::{BLOCK_TOKENS, Cache, Scratch, Span, attend};
use crate::cpu::linear::Compute;
use crate::cpu::vector::{Rotation, add, normalize_heads, rms_norm, rotate, rotations, swiglu};
use crate::runner::BlockId;

/// One token of a forward pass and its place.
#[derive(Clone, Copy, Debug)]
pub struct Position<'a> {
    /// The token.
    pub token: TokenId,
    /// Its place in the sequence.
    pub position: usize,
    /// The sequence's blocks.
    pub blocks: &'a [BlockId],
}

/// The memory of a forward pass; kept between passes.
#[derive(Debug, Default)]
pub struct Buffers {
    residual: Vec<f32>,
    normed: Vec<f32>,
    qkv: Vec<f32>,
    attended: Vec<f32>,
    projected: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    rotations: Vec<Rotation>,
    activations: Activations,
}

impl Llama {
    /// Computes one pass over `tokens` and writes their keys and values into the cache;
    /// [`hidden`](Self::hidden) and [`logits`](Self::logits) say what came out.
    pub fn forward(
        &self,
        compute: &Compute,
        tokens: &[Position<'_>],
        cache: &mut Cache,
        buffers: &mut Buffers,
    ) {
        self.embed(tokens, buffers);
        for (index, layer) in self.layers.iter().enumerate() {
            self.attention(compute, layer, (index, tokens), cache, buffers);
            self.feed_forward(compute, layer, buffers);
        }
    }

    /// Writes the hidden states of some tokens of the last pass, behind the final norm, as
    /// `[wanted, hidden]`; `wanted` are indices into its tokens.
    pub fn hidden(
        &self,
        compute: &Compute,
        wanted: &[usize],
        buffers: &Buffers,
        out: &mut Vec<f32>,
    ) {
        let hidden = self.sizes.hidden;
        out.resize(wanted.len() * hidden, 0.0);
        for (row, &token) in out.chunks_exact_mut(hidden).zip(wanted) {
            let residual = &buffers.residual[token * hidden..][..hidden];
            rms_norm(compute.isa, residual, &self.norm, self.sizes.norm_epsilon, row);
        }
    }

    /// Writes the logits after some tokens of the last pass, as `[wanted, vocabulary]`.
    pub fn logits(
        &self,
        compute: &Compute,
        wanted: &[usize],
        buffers: &mut Buffers,
        logits: &mut Vec<f32>,
    ) {
        let mut normed = std::mem::take(&mut buffers.normed);
        self.hidden(compute, wanted, buffers, &mut normed);
        buffers.normed = normed;
        logits.resize(wanted.len() * self.vocabulary(), 0.0);
        if !wanted.is_empty() {
            let head = self.head.as_ref().unwrap_or(&self.embedding);
            head.apply(compute, &buffers.normed, &mut buffers.activations, logits);
        }
    }

    /// Fills in the residual stream and the rotations.
    fn embed(&self, tokens: &[Position<'_>], buffers: &mut Buffers) {
        let (hidden, pairs) = (self.sizes.hidden, self.sizes.head_dim / 2);
        let rope = &self.sizes.rope;
        buffers.residual.resize(tokens.len() * hidden, 0.0);
        buffers.rotations.resize(tokens.len() * pairs, [0.0; 2]);
        let rows = buffers.residual.chunks_exact_mut(hidden);
        let turns = buffers.rotations.chunks_exact_mut(pairs);
        for ((token, row), turns) in tokens.iter().zip(rows).zip(turns) {
            self.embedding.unpack_row(token.token as usize, row);
            rotations(token.position, &rope.frequencies, rope.magnitude, turns);
        }
    }

    fn attention(
        &self,
        compute: &Compute,
        layer: &LayerWeights,
        (index, tokens): (usize, &[Position<'_>]),
        cache: &mut Cache,
        buffers: &mut Buffers,
    ) {
        let sizes = &self.sizes;
        self.normalize(compute, &layer.attention_norm, buffers);
        let linear = &layer.query_key_value;
        buffers.qkv.resize(tokens.len() * linear.rows(), 0.0);
        linear.apply(compute, &buffers.normed, &mut buffers.activations, &mut buffers.qkv);
        let rows = buffers.qkv.chunks_exact_mut(linear.rows());
        let turns = buffers.rotations.chunks_exact(sizes.head_dim / 2);
        for ((token, row), turns) in tokens.iter().zip(rows).zip(turns) {
            layer.finish_heads(compute.isa, sizes, row, turns);
            let (heads, values) = row.split_at(sizes.query_width() + sizes.kv_width());
            let block = token.blocks[token.position / BLOCK_TOKENS];
            let place = token.position % BLOCK_TOKENS;
            cache.write(index, block, place, (&heads[sizes.query_width()..], values));
        }
        buffers.attended.resize(tokens.len() * sizes.query_width(), 0.0);
        let group = sizes.query_width() / sizes.kv_heads;
        let outputs = buffers.attended.chunks_exact_mut(group).enumerate();
        let (qkv, kv) = (&buffers.qkv, cache.layer(index));
        compute.pool.each(outputs, Scratch::default, |scratch, (item, out)| {
            let (row, head) = (item / sizes.kv_heads, item % sizes.kv_heads);
            let token = &tokens[row];
            let queries = &qkv[row * linear.rows() + head * group..][..group];
            let tokens = token.position + 1;
            let first = sizes.windows[index].map_or(0, |window| tokens.saturating_sub(window));
            let span = Span { layer: kv, head, blocks: token.blocks, first, tokens };
            attend(compute.isa, queries, span, scratch, out);
        });
        let linear = &layer.attention_output;
        buffers.projected.resize(tokens.len() * linear.rows(), 0.0);
        let projected = &mut buffers.projected;
        linear.apply(compute, &buffers.attended, &mut buffers.activations, projected);
        add(compute.isa, &mut buffers.residual, &buffers.projected);
    }

    fn feed_forward(&self, compute: &Compute, layer: &LayerWeights, buffers: &mut Buffers) {
        self.normalize(compute, &layer.feed_forward_norm, buffers);
        let tokens = buffers.residual.len() / self.sizes.hidden;
        let width = self.sizes.feed_forward;
        buffers.gate.resize(tokens * width, 0.0);
        buffers.up.resize(tokens * width, 0.0);
        let activations = &mut buffers.activations;
        layer.gate.apply(compute, &buffers.normed, activations, &mut buffers.gate);
        layer.up.apply(compute, &buffers.normed, activations, &mut buffers.up);
        let rows = buffers.gate.chunks_mut(width).zip(buffers.up.chunks(width));
        compute.pool.each(rows, || (), |(), (gate, up)| swiglu(compute.isa, gate, up));
        buffers.projected.resize(tokens * self.sizes.hidden, 0.0);
        layer.down.apply(compute, &buffers.gate, activations, &mut buffers.projected);
        add(compute.isa, &mut buffers.residual, &buffers.projected);
    }

    fn normalize(&self, compute: &Compute, weight: &[f32], buffers: &mut Buffers) {
        let hidden = self.sizes.hidden;
        buffers.normed.resize(buffers.residual.len(), 0.0);
        let rows = buffers.normed.chunks_exact_mut(hidden);
        for (out, row) in rows.zip(buffers.residual.chunks_exact(hidden)) {
            rms_norm(compute.isa, row, weight, self.sizes.norm_epsilon, out);
        }
    }
}

impl LayerWeights {
    /// Makes of a row of the product, `[queries, keys, values]`, what attention takes: biases are
    /// added, heads normalised where the family does so, queries and keys turned.
    fn finish_heads(&self, isa: Isa, sizes: &Hyperparameters, row: &mut [f32], turns: &[Rotation]) {
        if let Some(biases) = &self.biases {
            add(isa, row, biases);
        }
        let heads = &mut row[..sizes.query_width() + sizes.kv_width()];
        if let Some([query, key]) = &self.head_norms {
            let (queries, keys) = heads.split_at_mut(sizes.query_width());
            normalize_heads(isa, queries, query, sizes.norm_epsilon);
            normalize_heads(isa, keys, key, sizes.norm_epsilon);
        }
        rotate(heads, turns);
    }
}
