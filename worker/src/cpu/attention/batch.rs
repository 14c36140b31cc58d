//! Attention of all tokens of a pass, shared among the threads.
//!
//! A group with so much behind it that the others would wait for its thread is deep: its KV heads
//! are shared out, or even the segments of each, in rounds.

use std::cmp::Reverse;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::BlockId;
use super::kernel::{Queries, finish};
use super::lanes::attend;
use super::rounds::{Own, Piece, Round, Shared, States};
use super::{Cache, Layer, SEGMENT_TOKENS};
use crate::cpu::linear::Compute;

/// Rows that a register of keys or values should serve, if there are neighbours enough.
const ROWS: usize = 12;

/// Pieces of work that a thread should have, so that none waits long for the last one.
const ITEMS_PER_THREAD: usize = 4;

/// The most pieces of deep groups in a round, for each thread. The states of 12 rows take 3 to
/// 12 KiB with heads of 64 to 256 dimensions, so those of a round take less than 1 MiB a thread,
/// and in proportion more where more than 12 query heads share a KV head. There are enough of them
/// that waiting for the last one of a round takes little of its time.
pub(super) const PIECES_PER_THREAD: usize = 64;

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

/// Memory of attention; kept between passes. It does not grow with the length of contexts.
#[derive(Debug, Default)]
pub struct Buffers {
    threads: Vec<Mutex<Own>>,
    /// Of the deep groups.
    states: States,
}

impl Buffers {
    /// Returns how many numbers there is room for in the states of deep groups.
    #[cfg(test)]
    pub(super) fn states_capacity(&self) -> usize {
        self.states.capacity()
    }
}

/// A group, its first token's index in the pass, and where its result goes.
struct Part<'o> {
    group: &'o Group<'o>,
    token: usize,
    out: &'o mut [f32],
}

/// What a thread does at a time.
enum Item<'o> {
    /// Attends to some KV heads; their result lies in one piece.
    Heads { part: Part<'o>, heads: Range<usize> },
    /// Attends to some segments of one KV head, for states.
    Piece(Piece<'o>),
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
        let most = PIECES_PER_THREAD * compute.pool.threads();
        self.attend_in_rounds(most, compute, buffers, out);
    }

    /// Computes attention with at most `most` pieces of deep groups at a time.
    pub(super) fn attend_in_rounds(
        &self,
        most: usize,
        compute: &Compute,
        buffers: &mut Buffers,
        out: &mut [f32],
    ) {
        let Buffers { threads, states } = buffers;
        threads.resize_with(compute.pool.threads(), Mutex::default);
        let (mut deep, mut others) = self.parts(compute.pool.threads(), out);
        let mut ended = 0;
        loop {
            let mut round = Round::new(&mut deep[ended..], most, states);
            // The other groups are computed beside the first round.
            let mut items: Vec<Item<'_>> = std::mem::take(&mut others);
            items.extend(round.pieces().into_iter().map(Item::Piece));
            let ends = self.sort(&mut items, compute.pool.threads());
            compute.pool.each_of_parts(
                items,
                |thread| ends[thread],
                |thread, item| {
                    let mut own = threads[thread].lock().unwrap_or_else(PoisonError::into_inner);
                    match item {
                        Item::Piece(Piece { queries, segments, states }) => {
                            attend(compute.isa, queries, segments, &mut own.scratch, states);
                        }
                        Item::Heads { part, heads } => {
                            self.attend_heads(compute, part, heads, &mut own);
                        }
                    }
                },
            );
            ended += round.fold(compute, threads);
            if ended == deep.len() {
                return;
            }
        }
    }

    /// Returns the KV heads that are shared out, and what the others are computed as.
    fn parts<'o>(&self, threads: usize, out: &'o mut [f32]) -> (Vec<Shared<'o>>, Vec<Item<'o>>)
    where
        'a: 'o,
    {
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
                let first = deep.len();
                let queries = (0..kv_heads).map(|head| self.queries(group, token, head));
                deep.extend(queries.map(|queries| Shared::new(queries, by_segment)));
                for (index, out) in out.chunks_exact_mut(self.head_width()).enumerate() {
                    deep[first + index % kv_heads].push_out(out);
                }
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

    /// Divides the items, which are in the order of their tokens but for the pieces of deep groups at
    /// the end, into a part for each thread that has as much to do as another's, and puts the largest
    /// first in each; returns where each part ends.
    ///
    /// So the thread that writes a sequence's keys and values mostly reads them as well.
    fn sort(&self, items: &mut [Item<'_>], threads: usize) -> Vec<usize> {
        let costs: Vec<usize> = items.iter().map(|item| self.cost(item)).collect();
        let ends = divide(&costs, threads);
        let mut start = 0;
        for &end in &ends {
            items[start..end].sort_by_key(|item| Reverse(self.cost(item)));
            start = end;
        }
        ends
    }

    /// Returns how many tokens a group's attend to, those of each added up.
    fn reach(&self, group: &Group<'_>) -> usize {
        group.tokens * (group.position + group.tokens).min(self.shape.window)
    }

    /// Returns how much there is to do, beside others.
    fn cost(&self, item: &Item<'_>) -> usize {
        match item {
            Item::Heads { part, heads } => self.reach(part.group) * heads.len(),
            Item::Piece(Piece { queries, segments, .. }) => {
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
        Part { group, token, out }: Part<'_>,
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

/// Returns where the part of each thread ends: where those before it and it itself have at least
/// their share of the costs.
fn divide(costs: &[usize], threads: usize) -> Vec<usize> {
    let all: usize = costs.iter().sum();
    let (mut end, mut before) = (0, 0);
    let mut ends = Vec::with_capacity(threads);
    for thread in 1..=threads {
        while end < costs.len() && before * threads < all * thread {
            before += costs[end];
            end += 1;
        }
        ends.push(end);
    }
    ends
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_have_even_parts_in_the_order_of_the_items() {
        assert_eq!(divide(&[1; 12], 3), [4, 8, 12]);
        assert_eq!(divide(&[1; 10], 3), [4, 7, 10]);
        assert_eq!(divide(&[100, 1, 1, 1], 2), [1, 4], "what is too large is a part of its own");
        assert_eq!(divide(&[1, 1, 1, 100], 2), [4, 4], "nothing is left for the second");
        assert_eq!(divide(&[5, 5, 2, 2, 2, 2, 2], 2), [2, 7]);
        assert_eq!(divide(&[3], 3), [1, 1, 1]);
        assert_eq!(divide(&[], 2), [0, 0]);
    }
}
