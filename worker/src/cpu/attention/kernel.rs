//! Attention of some query rows to one KV head, the same for every instruction set.
//!
//! Rows are taken several at a time, so that a register of keys or values serves them all. The
//! sum of each number runs in the order of dimensions or tokens, whatever the number of rows.

use std::ops::Range;

use super::BlockId;
use super::lanes::Lanes;
use super::{BLOCK_TOKENS, Layer, SEGMENT_TOKENS};
use crate::cpu::isa::dispatched;
use crate::cpu::vector::{LANES, exp, largest, multiply_add};

/// The most rows of a tile.
const TILE_ROWS: usize = 12;

/// Rows from which on the processor computes longer than it reads, so that it can fetch what comes.
const FETCHING_ROWS: usize = 6;

/// The queries of neighbouring tokens of one sequence that share a KV head.
#[derive(Clone, Copy, Debug)]
pub(super) struct Queries<'a> {
    /// The first token's queries, `[heads, head_dim]`; those of the next begin `stride` later.
    pub rows: &'a [f32],
    /// Numbers from one token's queries to the next one's.
    pub stride: usize,
    /// Query heads that share the KV head.
    pub heads: usize,
    /// The tokens.
    pub tokens: usize,
    /// The place of the first token in its sequence.
    pub position: usize,
    /// The most tokens that one attends to, itself and those before it.
    pub window: usize,
    /// What the products of queries and keys are multiplied with.
    pub scale: f32,
    /// The layer of the cache.
    pub layer: Layer<'a>,
    /// The KV head.
    pub head: usize,
    /// The sequence's blocks.
    pub blocks: &'a [BlockId],
}

impl Queries<'_> {
    /// Returns the segments that these tokens attend to.
    pub(super) fn segments(&self) -> Range<usize> {
        let first = (self.position + 1).saturating_sub(self.window);
        first / SEGMENT_TOKENS..(self.position + self.tokens).div_ceil(SEGMENT_TOKENS)
    }

    /// Returns the dimensions of a head.
    pub(super) fn head_dim(&self) -> usize {
        self.layer.geometry.head_dim
    }

    /// Returns the length of a row's state.
    pub(super) fn state_width(&self) -> usize {
        self.layer.geometry.state_width()
    }

    /// Returns how many rows there are: the heads of the first token, of the second, and so on.
    pub(super) fn row_count(&self) -> usize {
        self.tokens * self.heads
    }

    /// Returns what a row attends to.
    fn range(&self, row: usize) -> Range<usize> {
        let end = self.position + row / self.heads + 1;
        end.saturating_sub(self.window)..end
    }
}

/// Memory of attention; kept between uses.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// `[head_dim][rows of the tile]`
    queries: Vec<f32>,
    /// `[rows of the tile][SEGMENT_TOKENS]`
    scores: Vec<f32>,
    /// `[rows of the tile][state]`
    states: Vec<f32>,
}

/// What [`attend`](super::lanes::attend) does, on given lanes.
#[inline(always)]
pub(super) fn attend_body<L: Lanes, const FMA: bool>(
    lanes: L,
    queries: &Queries<'_>,
    segments: Range<usize>,
    scratch: &mut Scratch,
    states: &mut [f32],
) {
    let width = queries.state_width();
    let mut first = 0;
    while first < queries.row_count() {
        let states = &mut states[first * width..];
        let tile = Tile { lanes, queries, first };
        let segments = segments.clone();
        first += match (queries.row_count() - first, L::IS_WIDE) {
            (12.., true) => tile.compute::<FMA, 12, 1>(segments, scratch, states),
            (8.., true) => tile.compute::<FMA, 8, 2>(segments, scratch, states),
            (6.., true) => tile.compute::<FMA, 6, 2>(segments, scratch, states),
            (6.., false) => tile.compute::<FMA, 6, 1>(segments, scratch, states),
            (4.., true) => tile.compute::<FMA, 4, 4>(segments, scratch, states),
            (3.., true) => tile.compute::<FMA, 3, 4>(segments, scratch, states),
            (3.., false) => tile.compute::<FMA, 3, 2>(segments, scratch, states),
            (2.., _) => tile.compute::<FMA, 2, 2>(segments, scratch, states),
            _ => tile.compute::<FMA, 1, 4>(segments, scratch, states),
        };
    }
}

/// Makes an array of what a function says, whose loop is always part of the kernel: that of
/// [`std::array::from_fn`] may stay a function of its own, without the kernel's instructions.
#[inline(always)]
fn filled<T: Copy, const N: usize>(any: T, make: impl Fn(usize) -> T) -> [T; N] {
    let mut all = [any; N];
    for (index, element) in all.iter_mut().enumerate() {
        *element = make(index);
    }
    all
}

/// Some rows from `first` on.
#[derive(Clone, Copy)]
struct Tile<'a, L: Lanes> {
    lanes: L,
    queries: &'a Queries<'a>,
    first: usize,
}

impl<L: Lanes> Tile<'_, L> {
    /// Computes the states of `M` rows, with `N` registers of keys or values at a time.
    #[inline(always)]
    fn compute<const FMA: bool, const M: usize, const N: usize>(
        self,
        segments: Range<usize>,
        scratch: &mut Scratch,
        states: &mut [f32],
    ) -> usize {
        let width = self.queries.state_width();
        scratch.scores.resize(TILE_ROWS * SEGMENT_TOKENS, 0.0);
        scratch.states.resize(TILE_ROWS * width, 0.0);
        self.gather::<M>(scratch);
        states[..M * width].chunks_exact_mut(width).for_each(clear);
        let ranges: [Range<usize>; M] = std::array::from_fn(|m| self.queries.range(self.first + m));
        for segment in segments {
            let start = segment * SEGMENT_TOKENS;
            let end = ranges[M - 1].end.min(start + SEGMENT_TOKENS);
            if end <= start {
                break;
            }
            let blocks = start / BLOCK_TOKENS..end.div_ceil(BLOCK_TOKENS);
            let blocks = &self.queries.blocks[blocks];
            self.score::<M, N>(blocks, scratch);
            // What each row attends to in this segment.
            let rows: [Range<usize>; M] = std::array::from_fn(|m| {
                let range = &ranges[m];
                range.start.clamp(start, end) - start..range.end.clamp(start, end) - start
            });
            for (m, row) in rows.iter().enumerate() {
                let scores = &mut scratch.scores[m * SEGMENT_TOKENS..][..SEGMENT_TOKENS];
                let state = &mut scratch.states[m * width..][..width];
                weigh::<FMA>(scores, row.clone(), blocks.len() * BLOCK_TOKENS, state);
            }
            self.blend_rows::<M, N>(blocks, &rows, scratch);
            let partials = scratch.states.chunks_exact(width);
            for (state, partial) in states[..M * width].chunks_exact_mut(width).zip(partials) {
                fold_body::<FMA>(state, partial);
            }
        }
        M
    }

    /// Puts the scaled queries of `M` rows side by side.
    #[inline(always)]
    fn gather<const M: usize>(self, scratch: &mut Scratch) {
        let (queries, dim) = (self.queries, self.queries.layer.geometry.head_dim);
        scratch.queries.resize(TILE_ROWS * dim, 0.0);
        for m in 0..M {
            let (token, head) =
                ((self.first + m) / queries.heads, (self.first + m) % queries.heads);
            let row = &queries.rows[token * queries.stride + head * dim..][..dim];
            for (query, out) in row.iter().zip(scratch.queries.as_chunks_mut::<M>().0) {
                out[m] = query * queries.scale;
            }
        }
    }

    /// Writes the products of `M` rows and the keys of some blocks.
    #[inline(always)]
    fn score<const M: usize, const N: usize>(self, blocks: &[BlockId], scratch: &mut Scratch) {
        let (several, rest) = blocks.as_chunks::<N>();
        let rows = scratch.queries.as_chunks::<M>().0;
        for (index, own) in several.iter().enumerate() {
            let next = blocks.get((index + 1) * N..).unwrap_or_default();
            self.score_blocks::<M, N>(own, next, rows, (index * N, &mut scratch.scores));
        }
        for (index, block) in rest.iter().enumerate() {
            let index = several.len() * N + index;
            self.score_blocks::<M, 1>(&[*block], &[], rows, (index, &mut scratch.scores));
        }
    }

    #[inline(always)]
    fn score_blocks<const M: usize, const N: usize>(
        self,
        blocks: &[BlockId; N],
        next: &[BlockId],
        rows: &[[f32; M]],
        (first, scores): (usize, &mut [f32]),
    ) {
        let (lanes, layer) = (self.lanes, self.queries.layer);
        let dim = layer.geometry.head_dim;
        let head = |block| layer.head(block, self.queries.head);
        let keys: [&[[u16; LANES]]; N] = filled(&[], |n| &head(blocks[n]).0[..dim]);
        // What is read next: these tokens' values, and the keys of the next ones.
        let soon: [[&[[u16; LANES]]; 2]; N] = filled([&[], &[]], |n| {
            [head(blocks[n]).1, next.get(n).map_or(head(blocks[n]).1, |block| head(*block).0)]
        });
        let mut sums = [[lanes.splat(0.0); N]; M];
        for (dimension, row) in rows[..dim].iter().enumerate() {
            let keys: [L::Floats; N] =
                filled(lanes.splat(0.0), |n| lanes.widen(&keys[n][dimension]));
            if M >= FETCHING_ROWS && dimension % 2 == 0 {
                for halves in soon.as_flattened() {
                    lanes.fetch(&halves[dimension.min(halves.len() - 1)]);
                }
            }
            for (query, sums) in row.iter().zip(&mut sums) {
                let query = lanes.splat(*query);
                for (sum, keys) in sums.iter_mut().zip(keys) {
                    *sum = lanes.multiply_add(query, keys, *sum);
                }
            }
        }
        for (m, sums) in sums.iter().enumerate() {
            let out = &mut scores[m * SEGMENT_TOKENS + first * BLOCK_TOKENS..][..N * LANES];
            for (out, sum) in out.as_chunks_mut().0.iter_mut().zip(sums) {
                lanes.store(*sum, out);
            }
        }
    }

    /// Adds the weighted values of some blocks to the states of `M` rows.
    ///
    /// Tokens that only some rows attend to are added row by row, so that a row's sums never meet
    /// a value that is not its own, not even as a product with zero.
    #[inline(always)]
    fn blend_rows<const M: usize, const N: usize>(
        self,
        blocks: &[BlockId],
        rows: &[Range<usize>; M],
        scratch: &mut Scratch,
    ) {
        let width = self.queries.state_width();
        let start = rows.iter().map(|row| row.start).max().unwrap_or(0);
        let end = rows.iter().map(|row| row.end).min().unwrap_or(0).max(start);
        let Scratch { scores, states, .. } = scratch;
        for (m, row) in rows.iter().enumerate() {
            let (scores, state) = (&scores[m * SEGMENT_TOKENS..], &mut states[m * width..]);
            let before = row.start..row.end.min(start);
            self.blend::<1, 4>(blocks, before, scores, state);
        }
        self.blend::<M, N>(blocks, start..end, scores, states);
        for (m, row) in rows.iter().enumerate() {
            let (scores, state) = (&scores[m * SEGMENT_TOKENS..], &mut states[m * width..]);
            let after = row.start.max(end)..row.end;
            self.blend::<1, 4>(blocks, after, scores, state);
        }
    }

    /// Adds the weighted values of some tokens to the states of `M` rows.
    #[inline(always)]
    fn blend<const M: usize, const N: usize>(
        self,
        blocks: &[BlockId],
        tokens: Range<usize>,
        scores: &[f32],
        states: &mut [f32],
    ) {
        if tokens.is_empty() {
            return;
        }
        let strips = self.queries.layer.geometry.value_width() / LANES;
        let mut strip = 0;
        while strip + N <= strips {
            self.blend_strips::<M, N>(blocks, tokens.clone(), scores, (states, strip));
            strip += N;
        }
        while strip < strips {
            self.blend_strips::<M, 1>(blocks, tokens.clone(), scores, (states, strip));
            strip += 1;
        }
    }

    #[inline(always)]
    fn blend_strips<const M: usize, const N: usize>(
        self,
        blocks: &[BlockId],
        tokens: Range<usize>,
        scores: &[f32],
        (states, strip): (&mut [f32], usize),
    ) {
        let (lanes, layer, width) = (self.lanes, self.queries.layer, self.queries.state_width());
        let strips = layer.geometry.value_width() / LANES;
        let place = |m: usize, n: usize| m * width + (strip + n) * LANES;
        let zero = lanes.splat(0.0);
        let mut sums = [[zero; N]; M];
        for (m, sums) in sums.iter_mut().enumerate() {
            for (n, sum) in sums.iter_mut().enumerate() {
                *sum = lanes.load(&states[place(m, n)..].as_chunks().0[0]);
            }
        }
        let first = tokens.start / BLOCK_TOKENS;
        let last = tokens.end.div_ceil(BLOCK_TOKENS);
        for (block, id) in blocks[..last].iter().enumerate().skip(first) {
            let values = layer.head(*id, self.queries.head).1;
            let weights: [&[f32; BLOCK_TOKENS]; M] = filled(&[0.0; BLOCK_TOKENS], |m| {
                let scores = &scores[m * SEGMENT_TOKENS..][..SEGMENT_TOKENS];
                &scores.as_chunks().0[block]
            });
            let begin = tokens.start.saturating_sub(block * BLOCK_TOKENS);
            let end = (tokens.end - block * BLOCK_TOKENS).min(BLOCK_TOKENS);
            for (token, values) in (begin..end).zip(values[begin * strips..].chunks_exact(strips)) {
                let values = &values[strip..][..N];
                let values: [L::Floats; N] = filled(zero, |n| lanes.widen(&values[n]));
                for (weights, sums) in weights.iter().zip(&mut sums) {
                    let weight = lanes.splat(weights[token % BLOCK_TOKENS]);
                    for (sum, values) in sums.iter_mut().zip(values) {
                        *sum = lanes.multiply_add(weight, values, *sum);
                    }
                }
            }
        }
        for (m, sums) in sums.iter().enumerate() {
            for (n, sum) in sums.iter().enumerate() {
                lanes.store(*sum, &mut states[place(m, n)..].as_chunks_mut().0[0]);
            }
        }
    }
}

/// Turns a row's scores into weights, zeros outside of `range` up to `end`, and begins its state.
#[inline(always)]
fn weigh<const FMA: bool>(scores: &mut [f32], range: Range<usize>, end: usize, state: &mut [f32]) {
    clear(state);
    if range.is_empty() {
        return scores[..end].fill(0.0);
    }
    scores[..range.start].fill(f32::NEG_INFINITY);
    scores[range.end..end].fill(f32::NEG_INFINITY);
    let scores = scores[..end].as_chunks_mut::<LANES>().0;
    let mut most = [f32::NEG_INFINITY; LANES];
    for scores in scores.iter() {
        for (most, &score) in most.iter_mut().zip(scores) {
            *most = if score > *most { score } else { *most };
        }
    }
    let most = largest(most);
    let mut sums = [0f32; LANES];
    for scores in scores.iter_mut() {
        for (sum, score) in sums.iter_mut().zip(scores) {
            let weight = exp::<FMA>(*score - most);
            *score = if *score == f32::NEG_INFINITY { 0.0 } else { weight };
            *sum += *score;
        }
    }
    let [.., largest, sum] = state else { return };
    *largest = most;
    *sum = sums.iter().sum();
}

fn clear(state: &mut [f32]) {
    state.fill(0.0);
    if let [.., largest, _] = state {
        *largest = f32::NEG_INFINITY;
    }
}

dispatched! {
    /// Folds a row's state of later segments into that of earlier ones.
    pub(super) fn fold(state: &mut [f32], later: &[f32]) = fold_body
}

#[inline(always)]
fn fold_body<const FMA: bool>(state: &mut [f32], later: &[f32]) {
    let ([sums @ .., largest, weight], [later_sums @ .., later_largest, later_weight]) =
        (&mut *state, later)
    else {
        return;
    };
    if *later_weight == 0.0 {
        return;
    }
    if *weight == 0.0 {
        return state.copy_from_slice(later);
    }
    let most = if *later_largest > *largest { *later_largest } else { *largest };
    let (own, other) = (exp::<FMA>(*largest - most), exp::<FMA>(*later_largest - most));
    for (sum, later) in sums.iter_mut().zip(later_sums) {
        *sum = multiply_add::<FMA>(*later, other, *sum * own);
    }
    *weight = multiply_add::<FMA>(*later_weight, other, *weight * own);
    *largest = most;
}

dispatched! {
    /// Writes the result of a row, `[head_dim]`.
    pub(super) fn finish(state: &[f32], out: &mut [f32]) = finish_body
}

#[inline(always)]
fn finish_body<const FMA: bool>(state: &[f32], out: &mut [f32]) {
    let [sums @ .., _, weight] = state else { return };
    let inverse = 1.0 / weight;
    for (out, sum) in out.iter_mut().zip(sums) {
        *out = sum * inverse;
    }
}
