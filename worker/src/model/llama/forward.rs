//! The forward pass of the Llama family.
//!
//! A layer is a few jobs that the threads share; what lies between them is a row or two when few
//! tokens are decoded, and is then done by the caller alone, or by each thread for itself.

use std::borrow::Cow;

use engine::TokenId;

use super::{Hyperparameters, LayerWeights, Llama};
use crate::cpu::Isa;
use crate::cpu::activations::{Activations, Form};
use crate::cpu::attention::BlockId;
use crate::cpu::attention::{self, BLOCK_TOKENS, Cache, Group, Pass, Places, Shape};
use crate::cpu::linear::{Compute, Product};
use crate::cpu::memory::Lines;
use crate::cpu::vector::{add, normalize_heads, rms_norm, rotate, swiglu};
use crate::lora::{Deltas, Part, Target};

/// Tokens at a time that a thread embeds.
const GRAIN: usize = 4;

/// The matrices whose products are multiplied with each other.
const GATED: [Target; 2] = [Target::Gate, Target::Up];

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

/// What a forward pass computes.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// The tokens: those of a sequence one after the other.
    pub tokens: &'a [Position<'a>],
    /// Indices of those whose hidden states or logits are wanted, each larger than the one before.
    pub wanted: &'a [usize],
    /// Which tokens have adapters.
    pub deltas: &'a Deltas<'a>,
}

/// The memory of a forward pass; kept between passes.
#[derive(Debug, Default)]
pub struct Buffers {
    /// `[tokens, hidden]`; after a pass `[wanted, hidden]`
    residual: Lines,
    turns: Vec<f32>,
    qkv: Lines,
    /// What normalised rows become.
    normed: Activations,
    /// What attention and gates give.
    inner: Activations,
    attention: attention::Buffers,
    /// Gates and what they gate, where adapters update them.
    gate: Lines,
    up: Lines,
}

/// What all layers of a pass share.
struct Batch<'a> {
    tokens: usize,
    groups: Vec<Group<'a>>,
    shape: Shape,
    deltas: Cow<'a, Deltas<'a>>,
}

impl Llama {
    /// Computes one pass and writes the keys and values of its tokens into the cache;
    /// [`hidden`](Self::hidden) and [`logits`](Self::logits) say what came out.
    ///
    /// The last layer's keys and values are those of all tokens; the rest of it is computed for
    /// those alone that something is wanted of.
    pub fn forward(
        &self,
        compute: &Compute,
        input: Input<'_>,
        cache: &mut Cache,
        buffers: &mut Buffers,
    ) {
        let tokens = input.tokens;
        let is_ascending = input.wanted.is_sorted_by(|one, next| one < next);
        assert!(is_ascending && input.wanted.last().is_none_or(|&last| last < tokens.len()));
        self.embed(compute, tokens, buffers);
        let shape = self.attention_shape();
        let place = |token: &Position<'_>| {
            (token.blocks[token.position / BLOCK_TOKENS], token.position % BLOCK_TOKENS)
        };
        let places = Places::new(tokens.iter().map(place));
        let mut batch = Batch {
            tokens: tokens.len(),
            groups: groups(tokens.iter(), shape.group_tokens()),
            shape,
            deltas: Cow::Borrowed(input.deltas),
        };
        for (index, layer) in self.layers.iter().enumerate() {
            self.remember(compute, (index, layer), (&batch, &places), cache, buffers);
            if index + 1 == self.layers.len() && input.wanted.len() < tokens.len() {
                batch = self.narrow(&input, shape, buffers);
                if input.wanted.is_empty() {
                    return;
                }
            }
            self.attention(compute, (index, layer), &batch, cache, buffers);
            self.feed_forward(compute, (index, layer), &batch, buffers);
        }
    }

    /// Keeps what is wanted alone of the tokens' rows, and returns the batch that is left.
    fn narrow<'a>(&self, input: &Input<'a>, shape: Shape, buffers: &mut Buffers) -> Batch<'a> {
        let wanted = input.wanted;
        let stride = buffers.qkv.len() / input.tokens.len();
        for (rows, width) in
            [(&mut buffers.residual, self.sizes.hidden), (&mut buffers.qkv, stride)]
        {
            for (row, &token) in wanted.iter().enumerate() {
                rows.copy_within(token * width..(token + 1) * width, row * width);
            }
            rows.truncate(wanted.len() * width);
        }
        let tokens = wanted.iter().map(|&token| &input.tokens[token]);
        Batch {
            tokens: wanted.len(),
            groups: groups(tokens, shape.group_tokens()),
            shape,
            deltas: Cow::Owned(input.deltas.narrow(wanted)),
        }
    }

    /// Writes hidden states of the last pass, behind the final norm, as `[rows, hidden]`; `rows`
    /// are indices into what was wanted of it.
    pub fn hidden(&self, compute: &Compute, rows: &[usize], buffers: &Buffers, out: &mut Vec<f32>) {
        let hidden = self.sizes.hidden;
        out.resize(rows.len() * hidden, 0.0);
        for (out, &row) in out.chunks_exact_mut(hidden).zip(rows) {
            let residual = &buffers.residual[row * hidden..][..hidden];
            rms_norm(compute.isa, residual, &self.norm, self.sizes.norm_epsilon, out);
        }
    }

    /// Writes logits of the last pass, as `[rows, vocabulary]`; `rows` are indices into what was
    /// wanted of it.
    pub fn logits(
        &self,
        compute: &Compute,
        rows: &[usize],
        buffers: &mut Buffers,
        logits: &mut Vec<f32>,
    ) {
        logits.resize(rows.len() * self.vocabulary(), 0.0);
        if rows.is_empty() {
            return;
        }
        let head = self.head.as_ref().unwrap_or(&self.embedding);
        let (hidden, residual) = (self.sizes.hidden, &buffers.residual);
        buffers.normed.floats(rows.len(), hidden);
        buffers.normed.fill(compute, head.form(compute.isa), |row, out| {
            let residual = &residual[rows[row] * hidden..][..hidden];
            rms_norm(compute.isa, residual, &self.norm, self.sizes.norm_epsilon, out);
        });
        head.apply(compute, &buffers.normed, Product::Set(logits));
    }

    /// Returns how the layers attend.
    fn attention_shape(&self) -> Shape {
        Shape {
            heads: self.sizes.heads / self.sizes.kv_heads,
            window: usize::MAX,
            scale: 1.0 / (self.sizes.head_dim as f32).sqrt(),
        }
    }

    /// Fills in the residual stream and the turns of each position.
    fn embed(&self, compute: &Compute, tokens: &[Position<'_>], buffers: &mut Buffers) {
        let (hidden, width) = (self.sizes.hidden, self.rope.width());
        buffers.residual.resize(tokens.len() * hidden);
        buffers.turns.resize(tokens.len() * width, 0.0);
        let rows = buffers.residual.chunks_mut(GRAIN * hidden);
        let turns = buffers.turns.chunks_mut(GRAIN * width);
        let parts = tokens.chunks(GRAIN).zip(rows.zip(turns));
        compute.pool.each_by_part(parts, |_, (tokens, (rows, turns))| {
            let rows = rows.chunks_exact_mut(hidden).zip(turns.chunks_exact_mut(width));
            for (token, (row, turns)) in tokens.iter().zip(rows) {
                self.embedding.unpack_row(token.token as usize, row);
                self.rope.turns(token.position, turns);
            }
        });
    }

    /// Computes queries, keys and values, and writes keys and values into the cache.
    fn remember(
        &self,
        compute: &Compute,
        (index, layer): (usize, &LayerWeights),
        (batch, places): (&Batch<'_>, &Places),
        cache: &mut Cache,
        buffers: &mut Buffers,
    ) {
        let (queries, kv) = (self.sizes.query_width(), self.sizes.kv_width());
        let linear = &layer.query_key_value;
        let stride = linear.rows();
        self.normalize(compute, &layer.attention_norm, linear.form(compute.isa), buffers);
        buffers.qkv.resize(batch.tokens * stride);
        linear.apply(compute, &buffers.normed, Product::Set(&mut buffers.qkv));
        let parts = [(Target::Query, 0), (Target::Key, queries), (Target::Value, queries + kv)];
        for (target, first) in parts {
            let out = Part { rows: &mut buffers.qkv, stride, first };
            batch.deltas.add(compute, (index, target), buffers.normed.rows(), out);
        }
        let rows = buffers.qkv.chunks_exact_mut(stride);
        let rows = rows.zip(buffers.turns.chunks_exact(self.rope.width()));
        cache.write(compute, index, places, rows, |(row, turns)| {
            layer.finish_heads(compute.isa, &self.sizes, row, turns);
            row[queries..].split_at(kv)
        });
    }

    /// Attends with the queries to what is in the cache, and adds the result to the residual stream.
    fn attention(
        &self,
        compute: &Compute,
        (index, layer): (usize, &LayerWeights),
        batch: &Batch<'_>,
        cache: &Cache,
        buffers: &mut Buffers,
    ) {
        let (queries, stride) = (self.sizes.query_width(), layer.query_key_value.rows());
        let qkv = &buffers.qkv;
        let out = buffers.inner.floats(batch.tokens, queries);
        let shape =
            Shape { window: self.sizes.windows[index].unwrap_or(usize::MAX), ..batch.shape };
        let pass = Pass::new((cache, index), &batch.groups, (qkv, stride), shape);
        pass.attend(compute, &mut buffers.attention, out);
        let linear = &layer.attention_output;
        buffers.inner.fill(compute, linear.form(compute.isa), |_, _| {});
        linear.apply(compute, &buffers.inner, Product::Add(&mut buffers.residual));
        let out = Part { rows: &mut buffers.residual, stride: self.sizes.hidden, first: 0 };
        batch.deltas.add(compute, (index, Target::Output), buffers.inner.rows(), out);
    }

    fn feed_forward(
        &self,
        compute: &Compute,
        (index, layer): (usize, &LayerWeights),
        batch: &Batch<'_>,
        buffers: &mut Buffers,
    ) {
        let form = layer.gate.form(compute.isa).and(layer.up.form(compute.isa));
        self.normalize(compute, &layer.feed_forward_norm, form, buffers);
        let out = buffers.inner.floats(batch.tokens, self.sizes.feed_forward);
        layer.gate.apply_gated(&layer.up, compute, &buffers.normed, out);
        if batch.deltas.touches(index, &GATED) {
            self.update_gates(compute, (index, layer), batch, buffers);
        }
        buffers.inner.fill(compute, layer.down.form(compute.isa), |_, _| {});
        layer.down.apply(compute, &buffers.inner, Product::Add(&mut buffers.residual));
        let out = Part { rows: &mut buffers.residual, stride: self.sizes.hidden, first: 0 };
        batch.deltas.add(compute, (index, Target::Down), buffers.inner.rows(), out);
    }

    /// Computes gates and what they gate apart, with their updates, for the tokens that have any.
    /// The others keep what they have: their result must not depend on who is beside them.
    fn update_gates(
        &self,
        compute: &Compute,
        (index, layer): (usize, &LayerWeights),
        batch: &Batch<'_>,
        buffers: &mut Buffers,
    ) {
        let width = self.sizes.feed_forward;
        let Buffers { gate, up, normed, inner, .. } = buffers;
        let x = &*normed;
        let parts = [(&layer.gate, Target::Gate, &mut *gate), (&layer.up, Target::Up, &mut *up)];
        for (linear, target, rows) in parts {
            rows.resize(batch.tokens * width);
            linear.apply(compute, x, Product::Set(rows));
            let out = Part { rows, stride: width, first: 0 };
            batch.deltas.add(compute, (index, target), x.rows(), out);
        }
        let out = inner.floats(batch.tokens, width);
        for span in batch.deltas.spans(index, GATED) {
            let own = span.start * width..span.end * width;
            swiglu(compute.isa, &mut gate[own.clone()], &up[own.clone()]);
            out[own.clone()].copy_from_slice(&gate[own]);
        }
    }

    /// Normalises the residual stream, for matrices that want this of it.
    fn normalize(&self, compute: &Compute, weight: &[f32], form: Form, buffers: &mut Buffers) {
        let (hidden, residual) = (self.sizes.hidden, &buffers.residual);
        buffers.normed.floats(residual.len() / hidden, hidden);
        buffers.normed.fill(compute, form, |row, out| {
            let residual = &residual[row * hidden..][..hidden];
            rms_norm(compute.isa, residual, weight, self.sizes.norm_epsilon, out);
        });
    }
}

/// Puts neighbouring tokens of a sequence together, up to `most` of them.
fn groups<'a>(tokens: impl Iterator<Item = &'a Position<'a>>, most: usize) -> Vec<Group<'a>> {
    let mut groups: Vec<Group<'a>> = Vec::new();
    for token in tokens {
        match groups.last_mut() {
            Some(group)
                if group.tokens < most
                    && group.position + group.tokens == token.position
                    && std::ptr::eq(group.blocks, token.blocks) =>
            {
                group.tokens += 1;
            }
            _ => groups.push(Group { tokens: 1, position: token.position, blocks: token.blocks }),
        }
    }
    groups
}

impl LayerWeights {
    /// Makes of a row of the product, `[queries, keys, values]`, what attention takes: biases are
    /// added, heads normalised where the family does so, queries and keys turned.
    fn finish_heads(&self, isa: Isa, sizes: &Hyperparameters, row: &mut [f32], turns: &[f32]) {
        if let Some(biases) = &self.biases {
            add(isa, row, biases);
        }
        let heads = &mut row[..sizes.query_width() + sizes.kv_width()];
        if let Some([query, key]) = &self.head_norms {
            let (queries, keys) = heads.split_at_mut(sizes.query_width());
            normalize_heads(isa, queries, query, sizes.norm_epsilon);
            normalize_heads(isa, keys, key, sizes.norm_epsilon);
        }
        rotate(isa, heads, sizes.head_dim, turns);
    }
}
