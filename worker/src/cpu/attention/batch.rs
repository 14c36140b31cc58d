//! Attention of all tokens of a pass, shared among the threads.

use std::sync::{Mutex, PoisonError};

use super::kernel::{Queries, Scratch, finish, fold};
use super::lanes::attend;
use super::{Cache, Layer};
use crate::cpu::linear::Compute;
use crate::runner::BlockId;

/// Rows that a register of keys or values should serve, if there are neighbours enough.
const ROWS: usize = 12;

/// Neighbouring tokens of one sequence.
#[derive(Clone, Copy, Debug)]
pub struct Group<'a> {
    /// How many.
    pub tokens: usize,
    /// The place of the first in its sequence.
    pub position: usize,
    /// The sequence's blocks.
    pub blocks: &'a [BlockId],
}

/// How a layer attends.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Query heads that share a KV head.
    pub heads: usize,
    /// The most tokens that one attends to, itself and those before it.
    pub window: usize,
    /// What the products of queries and keys are multiplied with.
    pub scale: f32,
}

impl Shape {
    /// Returns how many neighbouring tokens should be a group.
    pub fn group_tokens(&self) -> usize {
        (ROWS / self.heads).max(1)
    }
}

/// Memory of attention; kept between passes.
#[derive(Debug, Default)]
pub struct Buffers {
    threads: Vec<Mutex<(Scratch, Vec<f32>)>>,
    states: Vec<f32>,
}

/// The queries of a pass in one layer.
#[derive(Clone, Copy, Debug)]
pub struct Pass<'a> {
    /// The tokens in their order.
    pub groups: &'a [Group<'a>],
    /// `[tokens, heads, head_dim]`, with more behind each token's.
    pub queries: &'a [f32],
    /// Numbers from one token's queries to the next one's.
    pub stride: usize,
    /// How to attend.
    pub shape: Shape,
    /// The layer of the cache.
    pub layer: Layer<'a>,
}

impl<'a> Pass<'a> {
    /// Makes the pass of one layer.
    pub fn new(
        (cache, layer): (&'a Cache, usize),
        groups: &'a [Group<'a>],
        (queries, stride): (&'a [f32], usize),
        shape: Shape,
    ) -> Self {
        Self { groups, queries, stride, shape, layer: cache.layer(layer) }
    }

    /// Computes attention: `out` is `[tokens, heads, head_dim]`.
    pub fn attend(&self, compute: &Compute, buffers: &mut Buffers, out: &mut [f32]) {
        buffers.threads.resize_with(compute.pool.threads(), Mutex::default);
        let kv_heads = self.layer.geometry.kv_heads;
        let are_few = self.groups.len() * kv_heads < 4 * compute.pool.threads();
        let are_alone = self.groups.iter().all(|group| group.tokens == 1);
        match are_few && are_alone && compute.pool.threads() > 1 {
            true => self.attend_by_segments(compute, buffers, out),
            false => self.attend_by_tokens(compute, buffers, out),
        }
    }

    /// Shares tokens and heads: for many.
    fn attend_by_tokens(&self, compute: &Compute, buffers: &Buffers, out: &mut [f32]) {
        let (kv_heads, dim) = (self.layer.geometry.kv_heads, self.layer.geometry.head_dim);
        let part = self.shape.heads * dim;
        let mut items = Vec::with_capacity(self.groups.len() * kv_heads);
        let (mut token, mut rest) = (0, out);
        for group in self.groups {
            let out;
            (out, rest) = rest.split_at_mut(group.tokens * kv_heads * part);
            // A single token's heads lie one behind the other and can be shared out, too.
            let size = if group.tokens == 1 { 1 } else { kv_heads };
            let outs = out.chunks_mut(group.tokens * size * part);
            items.extend((0..kv_heads).step_by(size).zip(outs).map(|(head, out)| {
                let heads = head..head + size;
                (group, token, heads, out)
            }));
            token += group.tokens;
        }
        compute.pool.each(items.into_iter(), |thread, (group, token, heads, out)| {
            let mut own = buffers.threads[thread].lock().unwrap_or_else(PoisonError::into_inner);
            let (scratch, states) = &mut *own;
            for (index, head) in heads.clone().enumerate() {
                let queries = self.queries(group, token, head);
                let width = queries.state_width();
                states.resize(queries.row_count() * width, 0.0);
                attend(compute.isa, &queries, queries.segments(), scratch, states);
                for (row, state) in states.chunks_exact(width).enumerate() {
                    let (token, row) = (row / self.shape.heads, row % self.shape.heads);
                    let at = (token * heads.len() + index) * part + row * dim;
                    finish(compute.isa, state, &mut out[at..][..dim]);
                }
            }
        });
    }

    /// Shares segments, too: for few tokens with much behind them.
    fn attend_by_segments(&self, compute: &Compute, buffers: &mut Buffers, out: &mut [f32]) {
        let (kv_heads, dim) = (self.layer.geometry.kv_heads, self.layer.geometry.head_dim);
        let all: Vec<Queries<'_>> = (0..self.groups.len() * kv_heads)
            .map(|item| {
                self.queries(&self.groups[item / kv_heads], item / kv_heads, item % kv_heads)
            })
            .collect();
        let Some(width) = all.first().map(Queries::state_width) else { return };
        let size = self.shape.heads * width;
        let segments = all.iter().map(|queries| queries.segments().len()).sum::<usize>();
        buffers.states.resize(segments * size, 0.0);
        let items = all
            .iter()
            .flat_map(|queries| queries.segments().map(move |segment| (queries, segment)));
        let items: Vec<_> = items.zip(buffers.states.chunks_mut(size)).collect();
        let threads = &buffers.threads;
        compute.pool.each(items.into_iter(), |thread, ((queries, segment), states)| {
            let mut own = threads[thread].lock().unwrap_or_else(PoisonError::into_inner);
            attend(compute.isa, queries, segment..segment + 1, &mut own.0, states);
        });
        let mut rest = &mut buffers.states[..];
        for (queries, out) in all.iter().zip(out.chunks_exact_mut(self.shape.heads * dim)) {
            let (own, others) = rest.split_at_mut(queries.segments().len() * size);
            let (first, later) = own.split_at_mut(size);
            for later in later.chunks_exact(size) {
                for (state, later) in first.chunks_exact_mut(width).zip(later.chunks_exact(width)) {
                    fold(compute.isa, state, later);
                }
            }
            for (state, out) in first.chunks_exact(width).zip(out.chunks_exact_mut(dim)) {
                finish(compute.isa, state, out);
            }
            rest = others;
        }
    }

    /// Returns a group's queries to one KV head; `token` is its first.
    fn queries(&self, group: &Group<'a>, token: usize, head: usize) -> Queries<'a> {
        let part = self.shape.heads * self.layer.geometry.head_dim;
        Queries {
            rows: &self.queries[token * self.stride + head * part..],
            stride: self.stride,
            heads: self.shape.heads,
            tokens: group.tokens,
            position: group.position,
            window: self.shape.window,
            scale: self.shape.scale,
            layer: self.layer,
            head,
            blocks: group.blocks,
        }
    }
}
