//! Attention of all tokens of a pass, shared among the threads.
//!
//! A group with so much behind it that the others would wait for its thread is deep: its KV heads
//! are shared out, or even the segments of each, and what they gave is folded when all are there.

use std::cmp::Reverse;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::kernel::{Queries, Scratch, finish, fold};
use super::lanes::attend;
use super::{Cache, Layer, SEGMENT_TOKENS};
use crate::cpu::linear::Compute;
use crate::runner::BlockId;

/// Rows that a register of keys or values should serve, if there are neighbours enough.
const ROWS: usize = 12;

/// Pieces of work that a thread should have, so that none waits long for the last one.
const ITEMS_PER_THREAD: usize = 4;

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
    threads: Vec<Mutex<Own>>,
    /// Of the deep groups: `[group][KV head][piece][row][state]`.
    states: Vec<f32>,
}

/// A thread's memory.
#[derive(Debug, Default)]
struct Own {
    scratch: Scratch,
    states: Vec<f32>,
}

/// A group, its first token's index in the pass, and where its result goes.
struct Part<'a, 'o> {
    group: &'a Group<'a>,
    token: usize,
    out: &'o mut [f32],
}

/// What a thread does at a time.
enum Item<'q, 'o> {
    /// Attends to some KV heads; their result lies in one piece.
    Heads { part: Part<'q, 'o>, heads: Range<usize> },
    /// Attends to some segments of one KV head, for states.
    Segments { queries: &'q Queries<'q>, segments: Range<usize>, states: &'o mut [f32] },
}

/// A group that is shared out.
struct Deep<'a, 'o> {
    /// For each KV head.
    queries: Vec<Queries<'a>>,
    /// Whether segments are shared out and not only KV heads.
    by_segment: bool,
    out: &'o mut [f32],
}

impl<'a> Deep<'a, '_> {
    /// Returns what is computed at a time of a KV head: some segments.
    fn pieces(&self, queries: &Queries<'a>) -> impl ExactSizeIterator<Item = Range<usize>> + use<> {
        let all = queries.segments();
        let size = if self.by_segment { 1 } else { all.len().max(1) };
        all.clone().step_by(size).map(move |first| first..(first + size).min(all.end))
    }

    /// Returns how many pieces a KV head has, and the length of the states of one.
    fn sizes(&self) -> (usize, usize) {
        let size = |queries: &Queries<'a>| {
            (self.pieces(queries).len(), queries.row_count() * queries.state_width())
        };
        self.queries.first().map_or((0, 0), size)
    }

    /// Returns the length of all states.
    fn states_len(&self) -> usize {
        let (pieces, size) = self.sizes();
        self.queries.len() * pieces * size
    }
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
        let Buffers { threads, states } = buffers;
        threads.resize_with(compute.pool.threads(), Mutex::default);
        let (deep, mut items) = self.parts(compute.pool.threads(), out);
        let length = deep.iter().map(Deep::states_len).sum();
        if states.len() < length {
            states.resize(length, 0.0);
        }
        let mut rest = &mut states[..length];
        for deep in &deep {
            let (_, size) = deep.sizes();
            for queries in &deep.queries {
                for segments in deep.pieces(queries) {
                    let states;
                    (states, rest) = rest.split_at_mut(size);
                    items.push(Item::Segments { queries, segments, states });
                }
            }
        }
        items.sort_by_key(|item| Reverse(self.cost(item)));
        compute.pool.each(items.into_iter(), |thread, item| {
            let mut own = threads[thread].lock().unwrap_or_else(PoisonError::into_inner);
            match item {
                Item::Segments { queries, segments, states } => {
                    attend(compute.isa, queries, segments, &mut own.scratch, states);
                }
                Item::Heads { part, heads } => self.attend_heads(compute, part, heads, &mut own),
            }
        });
        self.fold(compute, threads, deep, states);
    }

    /// Returns the groups that are shared out, and what the others are computed as.
    fn parts<'o>(
        &self,
        threads: usize,
        out: &'o mut [f32],
    ) -> (Vec<Deep<'a, 'o>>, Vec<Item<'a, 'o>>) {
        let kv_heads = self.layer.geometry.kv_heads;
        let all: usize = self.groups.iter().map(|group| self.reach(group)).sum();
        let most = if threads > 1 { all / (ITEMS_PER_THREAD * threads) } else { all };
        let (mut deep, mut others) = (Vec::new(), Vec::new());
        let (mut token, mut rest) = (0, out);
        for group in self.groups {
            let out;
            (out, rest) = rest.split_at_mut(group.tokens * kv_heads * self.head_width());
            // A single token's heads lie one behind the other.
            let heads = if group.tokens == 1 { 1 } else { kv_heads };
            let by_segment = self.reach(group) / kv_heads > most;
            if by_segment || self.reach(group) * heads / kv_heads > most {
                let queries = (0..kv_heads).map(|head| self.queries(group, token, head)).collect();
                deep.push(Deep { queries, by_segment, out });
            } else {
                let outs = out.chunks_mut(group.tokens * heads * self.head_width());
                others.extend((0..kv_heads).step_by(heads).zip(outs).map(|(head, out)| {
                    Item::Heads { part: Part { group, token, out }, heads: head..head + heads }
                }));
            }
            token += group.tokens;
        }
        (deep, others)
    }

    /// Returns how many tokens a group's attend to, those of each added up.
    fn reach(&self, group: &Group<'_>) -> usize {
        group.tokens * (group.position + group.tokens).min(self.shape.window)
    }

    /// Returns how much there is to do, beside others.
    fn cost(&self, item: &Item<'_, '_>) -> usize {
        match item {
            Item::Heads { part, heads } => self.reach(part.group) * heads.len(),
            Item::Segments { queries, segments, .. } => {
                queries.tokens * segments.len() * SEGMENT_TOKENS
            }
        }
    }

    /// Returns the numbers of a token's result that come of one KV head.
    fn head_width(&self) -> usize {
        self.shape.heads * self.layer.geometry.head_dim
    }

    /// Attends to some KV heads from the first segment to the last.
    fn attend_heads(
        &self,
        compute: &Compute,
        Part { group, token, out }: Part<'_, '_>,
        heads: Range<usize>,
        Own { scratch, states }: &mut Own,
    ) {
        let dim = self.layer.geometry.head_dim;
        for (index, head) in heads.clone().enumerate() {
            let queries = self.queries(group, token, head);
            let width = queries.state_width();
            states.resize(queries.row_count() * width, 0.0);
            attend(compute.isa, &queries, queries.segments(), scratch, states);
            for (row, state) in states.chunks_exact(width).enumerate() {
                let (token, row) = (row / self.shape.heads, row % self.shape.heads);
                let at = (token * heads.len() + index) * self.head_width() + row * dim;
                finish(compute.isa, state, &mut out[at..][..dim]);
            }
        }
    }

    /// Folds what the pieces of deep groups gave, in their order, and writes the results.
    fn fold(
        &self,
        compute: &Compute,
        threads: &[Mutex<Own>],
        deep: Vec<Deep<'_, '_>>,
        states: &[f32],
    ) {
        let (dim, kv_heads) = (self.layer.geometry.head_dim, self.layer.geometry.kv_heads);
        let (mut items, mut rest) = (Vec::new(), states);
        for deep in deep {
            let (pieces, size) = deep.sizes();
            let states;
            (states, rest) = rest.split_at(deep.states_len());
            let outs = deep.out.chunks_exact_mut(kv_heads * self.head_width()).enumerate();
            items.extend(outs.map(|(token, out)| ((states, pieces, size), token, out)));
        }
        compute.pool.each(items.into_iter(), |thread, ((states, pieces, size), token, out)| {
            let mut own = threads[thread].lock().unwrap_or_else(PoisonError::into_inner);
            let width = self.layer.geometry.state_width();
            let outs = out.chunks_exact_mut(self.head_width());
            for (states, out) in states.chunks_exact(pieces * size).zip(outs) {
                for (head, out) in out.chunks_exact_mut(dim).enumerate() {
                    let row = (token * self.shape.heads + head) * width;
                    let mut rows = states.chunks_exact(size).map(|rows| &rows[row..][..width]);
                    let state = &mut own.states;
                    state.clear();
                    state.extend(rows.by_ref().take(1).flatten());
                    rows.for_each(|later| fold(compute.isa, state, later));
                    finish(compute.isa, state, out);
                }
            }
        });
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
