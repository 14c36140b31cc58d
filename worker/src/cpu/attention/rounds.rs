//! The KV heads that are shared out in pieces, in rounds that need no more than a fixed memory.
//!
//! A piece gives a state for each row, and the longer a context the more pieces there are. So a
//! round takes only as many as it may, and folds what they gave into one running state for each
//! row before the next round begins. A row's states are folded one by one in the order of its
//! segments, however the rounds cut them, so that they do not change a bit.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::kernel::{Queries, Scratch, finish, fold};
use crate::cpu::Isa;
use crate::cpu::linear::Compute;

/// Numbers of states up to which it takes longer to share them out than to fold them.
const ALONE: usize = 8192;

/// A thread's memory; kept between uses.
#[derive(Debug, Default)]
pub(super) struct Own {
    pub scratch: Scratch,
    pub states: Vec<f32>,
}

/// The states of rounds; kept between uses.
#[derive(Debug, Default)]
pub(super) struct States {
    /// What the pieces of a round give: `[piece][row][state]`.
    pieces: Vec<f32>,
    /// Of the KV head in whose midst the last round ended, all that it gave so far: `[row][state]`.
    running: Vec<f32>,
    /// The same for this round.
    next: Vec<f32>,
}

impl States {
    /// Makes room for the pieces of a round, and for one KV head that it does not end.
    fn reserve(&mut self, pieces: usize, head: usize) {
        for (states, length) in
            [(&mut self.pieces, pieces), (&mut self.running, head), (&mut self.next, head)]
        {
            // No more than is needed, since this is never given back.
            states.reserve_exact(length.saturating_sub(states.len()));
            states.resize(length.max(states.len()), 0.0);
        }
    }

    /// Returns how many numbers there is room for.
    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.pieces.capacity() + self.running.capacity() + self.next.capacity()
    }
}

/// A KV head of a group, whose pieces are shared out.
pub(super) struct Shared<'o> {
    queries: Queries<'o>,
    /// The segments that no round has had yet.
    left: Range<usize>,
    /// Segments of a piece.
    step: usize,
    /// Where the results of each token go, `[heads, head_dim]`.
    outs: Vec<&'o mut [f32]>,
}

/// Some segments of a KV head, and the states that a thread shall compute.
pub(super) struct Piece<'q> {
    pub queries: &'q Queries<'q>,
    pub segments: Range<usize>,
    pub states: &'q mut [f32],
}

impl<'o> Shared<'o> {
    /// Makes one whose segments are shared out one by one, or all together.
    pub(super) fn new(queries: Queries<'o>, by_segment: bool) -> Self {
        let left = queries.segments();
        let step = if by_segment { 1 } else { left.len().max(1) };
        Self { queries, left, step, outs: Vec::with_capacity(queries.tokens) }
    }

    /// Says where the results of the next token go.
    pub(super) fn push_out(&mut self, out: &'o mut [f32]) {
        self.outs.push(out);
    }

    /// Returns the pieces that are left, in their order.
    fn pieces(&self) -> impl ExactSizeIterator<Item = Range<usize>> + use<> {
        let (left, step) = (self.left.clone(), self.step);
        left.clone().step_by(step).map(move |first| first..(first + step).min(left.end))
    }

    /// Returns the length of a token's states.
    fn token_len(&self) -> usize {
        self.queries.heads * self.queries.state_width()
    }

    /// Returns the length of the states of all tokens.
    fn states_len(&self) -> usize {
        self.queries.tokens * self.token_len()
    }
}

/// The next pieces of some KV heads.
pub(super) struct Round<'r, 'o> {
    heads: &'r mut [Shared<'o>],
    /// How many pieces of each.
    counts: Vec<usize>,
    states: &'r mut States,
}

impl<'r, 'o> Round<'r, 'o> {
    /// Makes a round of the next pieces, at most `most` and at least one.
    pub(super) fn new(heads: &'r mut [Shared<'o>], most: usize, states: &'r mut States) -> Self {
        let mut free = most.max(1);
        let take = |head: &Shared<'o>| {
            let count = head.pieces().len().min(free);
            free -= count;
            (count > 0).then_some(count)
        };
        let counts: Vec<usize> = heads.iter().map_while(take).collect();
        let heads = &mut heads[..counts.len()];
        let sizes = || heads.iter().map(Shared::states_len);
        let pieces = sizes().zip(&counts).map(|(size, count)| size * count).sum();
        states.reserve(pieces, sizes().max().unwrap_or(0));
        Self { heads, counts, states }
    }

    /// Returns the pieces, to be computed in any order.
    pub(super) fn pieces(&mut self) -> Vec<Piece<'_>> {
        let (mut pieces, mut rest) = (Vec::new(), &mut self.states.pieces[..]);
        for (head, &count) in self.heads.iter().zip(&self.counts) {
            for segments in head.pieces().take(count) {
                let states;
                (states, rest) = rest.split_at_mut(head.states_len());
                pieces.push(Piece { queries: &head.queries, segments, states });
            }
        }
        pieces
    }

    /// Folds what the pieces gave and writes the results of KV heads that have no more of them.
    /// Returns how many of these there are: all, but for the last one perhaps.
    pub(super) fn fold(self, compute: &Compute, threads: &[Mutex<Own>]) -> usize {
        let Self { heads, counts, states } = self;
        let States { pieces, running, next } = &mut *states;
        let (mut folds, mut rest, mut ended, mut numbers) = (Vec::new(), &pieces[..], 0, 0);
        let token_len = heads.first().map_or(1, Shared::token_len);
        // One KV head at most, the last one, does not end and takes of these.
        let mut kept = next.chunks_exact_mut(token_len);
        for (head, count) in heads.iter_mut().zip(counts) {
            let (size, queries) = (head.states_len(), &head.queries);
            let pieces;
            (pieces, rest) = rest.split_at(count * size);
            numbers += pieces.len();
            let has_begun = head.left.start > queries.segments().start;
            let before = has_begun.then_some(&running[..size]);
            head.left.start = head.left.end.min(head.left.start + count * head.step);
            let has_ended = head.left.is_empty();
            ended += usize::from(has_ended);
            for (token, out) in head.outs.iter_mut().enumerate() {
                let goal = match has_ended {
                    true => Goal::Result(out),
                    false => Goal::Running(kept.next().expect("there is room for a KV head")),
                };
                folds.push(Fold { queries, token, before, pieces, goal });
            }
        }
        let work = |thread: usize, fold: Fold<'_>| {
            let mut own = threads[thread].lock().unwrap_or_else(PoisonError::into_inner);
            fold.compute(compute.isa, &mut own.states);
        };
        match numbers <= ALONE {
            true => folds.into_iter().for_each(|fold| work(0, fold)),
            false => compute.pool.each(folds.into_iter(), work),
        }
        std::mem::swap(&mut states.running, &mut states.next);
        ended
    }
}

/// What becomes of a token's states.
enum Goal<'r> {
    /// They are gone on with: `[head][state]`.
    Running(&'r mut [f32]),
    /// They are complete, and their result is wanted: `[heads, head_dim]`.
    Result(&'r mut [f32]),
}

/// A token's states of a round, in one KV head.
struct Fold<'r> {
    queries: &'r Queries<'r>,
    token: usize,
    /// What earlier rounds gave: `[row][state]`.
    before: Option<&'r [f32]>,
    /// What this one gave: `[piece][row][state]`.
    pieces: &'r [f32],
    goal: Goal<'r>,
}

impl Fold<'_> {
    fn compute(mut self, isa: Isa, state: &mut Vec<f32>) {
        let Queries { heads, .. } = *self.queries;
        let (dim, width) = (self.queries.head_dim(), self.queries.state_width());
        let pieces = || self.pieces.chunks_exact(self.queries.row_count() * width);
        for head in 0..heads {
            let row = (self.token * heads + head) * width;
            let mut rows =
                self.before.into_iter().chain(pieces()).map(|rows| &rows[row..][..width]);
            state.clear();
            state.extend(rows.by_ref().take(1).flatten());
            rows.for_each(|later| fold(isa, state, later));
            match &mut self.goal {
                Goal::Running(kept) => kept[head * width..][..width].copy_from_slice(state),
                Goal::Result(out) => finish(isa, state, &mut out[head * dim..][..dim]),
            }
        }
    }
}
