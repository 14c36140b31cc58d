//! One sequence in the batch: its tokens, its blocks, what is computed, what it is for.
//!
//! A sequence knows all its tokens, asked and drawn, and how many of them are computed. What is
//! left is computed in chunks or, when it is one token, as a step of decoding; so a sequence that
//! lost its blocks is computed again by the same code that computed it first.

use std::slice::ChunksExact;
use std::sync::Arc;

use bytes::Bytes;
use engine::{Adapter, Context, Error, KvBlocks, KvHandoff, SequenceHash, TokenId};

use super::draft::Drafter;
use super::drawing::{Drawing, Scratch};
use super::output::Writer;
use super::pooling::Pooling;
use super::waiting::{Generation, Job, Key, Work};
use crate::kv::{BlockPool, Table};
use crate::runner::{Entry, Limits, Outputs, Wants};

/// How urgent a sequence is: its request, then which of its continuations it is.
pub(super) type Urgency = (Key, u32);

/// One sequence of a request.
#[derive(Debug)]
pub(super) struct Sequence {
    pub output: Arc<Writer>,
    pub urgency: Urgency,
    pub context: Context,
    pub table: Table,
    /// It has ended and only its blocks are left.
    pub is_over: bool,
    /// It lost its blocks and has to leave the batch.
    pub is_preempted: bool,
    /// Tokens of the next forward pass.
    pub planned: usize,
    /// The last forward pass that it had a part in.
    pub served: u64,
    tokens: Vec<TokenId>,
    /// How many of the tokens were asked.
    prompt: usize,
    /// Tokens of which keys and values are in the cache.
    computed: usize,
    goal: SequenceKind,
    drafter: Drafter,
    /// The token drawn last and what is guessed to follow it; empty without a guess.
    draft: Vec<TokenId>,
    /// The other continuations, as long as the prompt that all share is not computed.
    followers: Vec<Drawing>,
    /// It was computed before.
    is_resumed: bool,
    /// What it is computed with; held as long as it is.
    adapter: Option<Adapter>,
    /// Blocks that another engine computed, as long as one of them may be of use.
    handed: Option<KvBlocks>,
}

/// What a sequence is for.
#[derive(Debug)]
enum SequenceKind {
    /// To be continued.
    Draw(Box<Drawing>),
    /// To become one vector.
    Pool(Pooling),
}

/// What is left of a forward pass's rows.
#[derive(Debug)]
pub(super) struct Rows<'a> {
    logits: ChunksExact<'a, f32>,
    hidden: ChunksExact<'a, f32>,
}

impl<'a> Rows<'a> {
    pub(super) fn new(outputs: &Outputs<'a>) -> Self {
        Self { logits: outputs.logits_rows(), hidden: outputs.hidden_rows() }
    }
}

/// What sequences need of the scheduler when they take their rows.
#[derive(Debug)]
pub(super) struct Tools<'a> {
    pub pool: &'a mut BlockPool,
    pub eos_tokens: &'a [TokenId],
    pub scratch: &'a mut Scratch,
    /// Continuations that go their own way from now on.
    pub forks: &'a mut Vec<Sequence>,
    /// Guessed tokens that were right.
    pub accepted: &'a mut u64,
}

impl Sequence {
    /// Makes the sequence of a request; it stands for all continuations until their prompt is
    /// computed.
    pub(super) fn new(job: Job, key: Key, limits: &Limits) -> Self {
        let mut followers = Vec::new();
        let adapter = job.work.adapter().cloned();
        let (mut generated, mut handed) = (0, None);
        let (tokens, goal) = match &job.work {
            Work::Generate(generation) => {
                let Generation { request, guide } = &**generation;
                let room = limits.context_length - request.tokens.len();
                let drawing = |index| Drawing::new(request, guide.clone(), index, room);
                generated = request.generated as usize;
                handed = match &request.handoff {
                    Some(KvHandoff::Here(blocks)) if job.salt.is_some() => Some(blocks.clone()),
                    _ => None,
                };
                followers.extend((1..request.choices.get()).map(drawing));
                (request.tokens.to_vec(), SequenceKind::Draw(Box::new(drawing(0))))
            }
            Work::Embed(request) => {
                (request.tokens.to_vec(), SequenceKind::Pool(Pooling::default()))
            }
        };
        Self {
            output: job.output,
            urgency: (key, 0),
            context: job.context,
            table: Table::new(job.names, job.salt),
            is_over: false,
            is_preempted: false,
            planned: 0,
            served: 0,
            prompt: tokens.len() - generated,
            tokens,
            computed: 0,
            goal,
            drafter: Drafter::default(),
            draft: Vec::new(),
            followers,
            is_resumed: false,
            adapter,
            handed,
        }
    }

    /// Returns how many places in the batch it takes.
    pub(super) fn places(&self) -> usize {
        1 + self.followers.len()
    }

    /// Returns all its tokens.
    pub(super) fn tokens(&self) -> &[TokenId] {
        &self.tokens
    }

    /// Returns how many tokens are computed.
    pub(super) fn computed(&self) -> usize {
        self.computed
    }

    /// Returns how many tokens are not computed; never none while it runs.
    pub(super) fn left(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// Returns whether only the token drawn last is left.
    pub(super) fn is_decoding(&self) -> bool {
        self.left() == 1 && self.tokens.len() > self.prompt
    }

    /// Returns whether each token of its prompt costs a row of logits.
    pub(super) fn scores_prompt(&self) -> bool {
        matches!(&self.goal, SequenceKind::Draw(drawing) if drawing.scores_prompt())
    }

    /// Returns whether tokens may be found instead of computed.
    pub(super) fn may_skip(&self) -> bool {
        matches!(&self.goal, SequenceKind::Draw(drawing) if !drawing.scores_prompt())
    }

    /// Takes over blocks that others computed, as far as they can be found, and returns the
    /// tokens of its prompt that were found for the first time.
    pub(super) fn attach(&mut self, pool: &mut BlockPool) -> usize {
        let (size, start) = (pool.block_tokens(), self.computed);
        if !self.may_skip() || !start.is_multiple_of(size) {
            return 0;
        }
        while self.computed + size < self.tokens.len()
            && self.table.extend(pool, &self.tokens[self.computed..][..size])
        {
            self.computed += size;
        }
        self.found(self.computed - start)
    }

    /// Notes that its next block is there without being computed, and returns what
    /// [`attach`](Sequence::attach) does.
    pub(super) fn restored(&mut self, pool: &mut BlockPool) -> usize {
        self.computed += pool.block_tokens();
        self.table.commit(pool, &self.tokens, self.computed);
        self.found(pool.block_tokens())
    }

    fn found(&mut self, count: usize) -> usize {
        match &mut self.goal {
            SequenceKind::Draw(drawing) if !self.is_resumed => {
                drawing.cached_tokens += count as u32;
                count
            }
            _ => 0,
        }
    }

    /// Returns the place and the name of the block that it computes next, if it would rather
    /// find it.
    pub(super) fn next_block(&self, size: usize) -> Option<(usize, SequenceHash)> {
        let place = self.computed / size;
        let is_whole = self.computed.is_multiple_of(size) && self.left() > size;
        let name = self.table.names().get(place).filter(|_| is_whole && self.may_skip());
        name.map(|&name| (place, name))
    }

    /// Returns the block at a place, if another engine has computed it for this sequence.
    pub(super) fn handed(&self, place: usize) -> Option<Bytes> {
        self.handed.as_ref()?.get(place).cloned()
    }

    /// Returns how many tokens it computes at most before a block that another engine has computed
    /// for it: as many as there are in front of the first one, which it may no longer find.
    pub(super) fn until_handed(&self, size: usize) -> usize {
        let places = self.handed.as_ref().map(KvBlocks::places).filter(|_| self.may_skip());
        let first = places.filter(|places| !places.is_empty()).map(|places| places.start);
        let before = first.and_then(|first| first.saturating_mul(size).checked_sub(self.computed));
        before.filter(|&before| before > 0).unwrap_or(usize::MAX)
    }

    /// Lets go of the blocks that another engine computed, once none of them can be put back.
    fn drop_handed(&mut self, size: usize) {
        // The last token is always computed.
        let last = (self.tokens.len() - 1) / size;
        let computed = self.computed;
        self.handed.take_if(|blocks| computed >= blocks.places().end.min(last) * size);
    }

    /// Returns whether it is going to compute a block that others could find.
    pub(super) fn promises(&self, (place, name): (usize, SequenceHash), size: usize) -> bool {
        self.table.salt().is_some()
            && self.computed < (place + 1) * size
            && self.table.names().get(place) == Some(&name)
    }

    /// Guesses at most `most` tokens that follow the one drawn last, and returns how many.
    pub(super) fn guess(&mut self, most: usize) -> usize {
        let SequenceKind::Draw(drawing) = &self.goal else {
            return 0;
        };
        let guess = self.drafter.guess(&self.tokens, most.min(drawing.left().saturating_sub(1)));
        if !guess.is_empty() {
            self.draft.clear();
            self.draft.extend(self.tokens.last());
            self.draft.extend_from_slice(&self.tokens[guess]);
        }
        self.draft.len().saturating_sub(1)
    }

    /// Forgets the guess.
    pub(super) fn drop_guess(&mut self) {
        self.draft.clear();
    }

    /// Returns what this sequence brings to the next forward pass.
    pub(super) fn entry(&self) -> Entry<'_> {
        let tokens = match self.draft.is_empty() {
            true => &self.tokens[self.computed..],
            false => &self.draft[..],
        };
        Entry {
            tokens: &tokens[..self.planned],
            start: self.computed,
            blocks: self.table.blocks(),
            prompt: self.prompt,
            adapter: self.adapter.as_ref().map(Adapter::id),
            wants: self.wants(),
        }
    }

    fn wants(&self) -> Wants {
        match &self.goal {
            SequenceKind::Pool(_) => Wants::Hidden,
            SequenceKind::Draw(drawing) if drawing.scores_prompt() => Wants::All,
            SequenceKind::Draw(_) if !self.draft.is_empty() => Wants::All,
            SequenceKind::Draw(_) if self.left() <= self.planned => Wants::Last,
            SequenceKind::Draw(_) => Wants::Nothing,
        }
    }

    /// Takes its rows of a forward pass and hands out what comes of them.
    pub(super) fn receive(&mut self, rows: &mut Rows<'_>, tools: &mut Tools<'_>) {
        if self.take(rows, tools).is_none() {
            self.fail(Error::internal("the device gave too few rows"));
        }
    }

    fn take(&mut self, rows: &mut Rows<'_>, tools: &mut Tools<'_>) -> Option<()> {
        if !self.draft.is_empty() {
            return self.verify(rows, tools);
        }
        let (start, wants) = (self.computed, self.wants());
        self.computed += self.planned;
        self.drop_handed(tools.pool.block_tokens());
        self.table.commit(tools.pool, &self.tokens, self.computed);
        match &mut self.goal {
            SequenceKind::Pool(pooling) => {
                for position in start..self.computed {
                    pooling.add(position, rows.hidden.next()?);
                }
                if self.computed == self.tokens.len() {
                    match pooling.finish() {
                        Ok(vector) => self.output.embed(vector),
                        Err(error) => self.output.fail(error),
                    }
                    self.is_over = true;
                }
            }
            SequenceKind::Draw(drawing) => {
                let mut last = None;
                if wants == Wants::All {
                    for position in start + 1..=self.computed {
                        let row = rows.logits.next()?;
                        match self.tokens.get(position) {
                            Some(&token) => drawing.score(row, position, token, tools.scratch),
                            None => last = Some(row),
                        }
                    }
                }
                if self.computed == self.tokens.len() {
                    let row = last.or_else(|| rows.logits.next())?;
                    self.fork(row, tools);
                    self.draw(row, tools);
                }
            }
        }
        Some(())
    }

    /// Draws from the rows of a guess as long as it is right.
    fn verify(&mut self, rows: &mut Rows<'_>, tools: &mut Tools<'_>) -> Option<()> {
        let mut draft = std::mem::take(&mut self.draft);
        draft.truncate(self.planned);
        let mut accepted = 0;
        let mut is_right = true;
        for place in 0..draft.len() {
            let row = rows.logits.next()?;
            if !is_right {
                continue;
            }
            self.computed += 1;
            self.draw(row, tools);
            is_right = !self.is_over && self.tokens.last() == draft.get(place + 1);
            accepted += usize::from(is_right);
        }
        self.table.commit(tools.pool, &self.tokens, self.computed);
        if draft.len() > 1 {
            self.drafter.note(accepted);
            *tools.accepted += accepted as u64;
        }
        draft.clear();
        self.draft = draft;
        Some(())
    }

    /// Lets the other continuations draw from the same row as the first one and go their ways.
    fn fork(&mut self, row: &[f32], tools: &mut Tools<'_>) {
        for mut drawing in std::mem::take(&mut self.followers) {
            if let SequenceKind::Draw(first) = &self.goal {
                drawing.cached_tokens = first.cached_tokens;
            }
            let mut fork = Self {
                output: self.output.clone(),
                context: self.context.clone(),
                urgency: (self.urgency.0, drawing.index),
                table: self.table.fork(tools.pool, self.computed),
                tokens: self.tokens.clone(),
                goal: SequenceKind::Draw(Box::new(drawing)),
                draft: Vec::new(),
                followers: Vec::new(),
                adapter: self.adapter.clone(),
                handed: None,
                ..*self
            };
            fork.draw(row, tools);
            tools.forks.push(fork);
        }
    }

    fn draw(&mut self, row: &[f32], tools: &mut Tools<'_>) {
        let SequenceKind::Draw(drawing) = &mut self.goal else {
            return;
        };
        match drawing.take(row, tools.eos_tokens, tools.scratch) {
            Ok(addition) => {
                self.is_over = addition.end.is_some();
                self.tokens.extend(addition.token.as_ref().map(|(token, _)| *token));
                self.output.push(drawing.index, addition);
            }
            Err(error) => self.fail(error),
        }
    }

    /// Gives its blocks back; it will be computed again, with all that it has drawn.
    pub(super) fn preempt(&mut self, pool: &mut BlockPool) {
        self.table.release(pool);
        (self.computed, self.planned) = (0, 0);
        self.draft.clear();
        (self.is_preempted, self.is_resumed) = (true, true);
    }

    /// Ends because it fills the whole memory alone.
    pub(super) fn exhaust(&mut self, pool: &mut BlockPool) {
        self.table.release(pool);
        (self.is_over, self.planned) = (true, 0);
        match &self.goal {
            SequenceKind::Draw(drawing) => self.output.push(drawing.index, drawing.exhaust()),
            SequenceKind::Pool(_) => self.output.fail(Error::internal("KV blocks were miscounted")),
        }
    }

    /// Ends the whole request.
    fn fail(&mut self, error: Error) {
        self.output.fail(error);
        self.is_over = true;
    }
}
