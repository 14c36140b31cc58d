//! One sequence in the batch: its tokens, its blocks, what is computed, what it is for.

use std::slice::ChunksExact;
use std::sync::Arc;
use std::time::Instant;

use engine::{Error, TokenId};

use super::drawing::Drawing;
use super::output::Output;
use super::pooling::Pooling;
use super::sampler::Scratch;
use super::waiting::{Generation, Job, Work};
use crate::runner::{BlockId, Entry, Limits, Outputs, Wants};

/// One sequence of a request, in the batch.
#[derive(Debug)]
pub(super) struct Sequence {
    pub output: Arc<Output>,
    pub blocks: Vec<BlockId>,
    pub deadline: Option<Instant>,
    /// It has ended and only its blocks are left.
    pub is_over: bool,
    /// Tokens of the next forward pass.
    pub planned: usize,
    prompt: Arc<[TokenId]>,
    /// Tokens of which keys and values are in the cache.
    computed: usize,
    goal: Goal,
}

/// What a sequence is for.
#[derive(Debug)]
enum Goal {
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

impl Sequence {
    /// Makes the sequence of one continuation, or of a text to embed.
    pub(super) fn new(job: &Job, index: u32, blocks: Vec<BlockId>, limits: &Limits) -> Self {
        let (prompt, goal) = match &job.work {
            Work::Generate(generation) => {
                let Generation { request, guide } = &**generation;
                let room = limits.context_length - request.tokens.len();
                let drawing = Drawing::new(request, guide.clone(), index, room);
                (&request.tokens, Goal::Draw(Box::new(drawing)))
            }
            Work::Embed(request) => (&request.tokens, Goal::Pool(Pooling::default())),
        };
        Self {
            output: job.output.clone(),
            blocks,
            deadline: job.context.deadline(),
            is_over: false,
            planned: 0,
            prompt: prompt.clone(),
            computed: 0,
            goal,
        }
    }

    /// Returns whether the whole prompt is computed.
    pub(super) fn is_decoding(&self) -> bool {
        self.computed >= self.prompt.len()
    }

    /// Returns how many tokens of the prompt are not computed.
    pub(super) fn prompt_left(&self) -> usize {
        self.prompt.len().saturating_sub(self.computed)
    }

    /// Returns whether each token of its prompt costs a row of logits.
    pub(super) fn scores_prompt(&self) -> bool {
        matches!(&self.goal, Goal::Draw(drawing) if drawing.scores_prompt())
    }

    /// Returns what this sequence brings to the next forward pass.
    pub(super) fn entry(&self) -> Entry<'_> {
        let (start, blocks) = (self.computed, &self.blocks[..]);
        let tokens = match &self.goal {
            Goal::Draw(drawing) if self.is_decoding() => &drawing.last[..],
            _ => &self.prompt[start..start + self.planned],
        };
        Entry { tokens, start, blocks, wants: self.wants() }
    }

    fn wants(&self) -> Wants {
        match &self.goal {
            Goal::Pool(_) => Wants::Hidden,
            Goal::Draw(drawing) if drawing.scores_prompt() => Wants::All,
            Goal::Draw(_) if self.prompt_left() <= self.planned => Wants::Last,
            Goal::Draw(_) => Wants::Nothing,
        }
    }

    /// Takes its rows of a forward pass and hands out what comes of them.
    pub(super) fn receive(
        &mut self,
        rows: &mut Rows<'_>,
        eos_tokens: &[TokenId],
        scratch: &mut Scratch,
    ) {
        let (wants, start) = (self.wants(), self.computed);
        self.computed += self.planned;
        match &mut self.goal {
            Goal::Pool(pooling) => {
                for _ in 0..self.planned {
                    match rows.hidden.next() {
                        Some(row) => pooling.add(row),
                        None => return self.fail(Error::internal(TOO_FEW)),
                    }
                }
                if self.computed == self.prompt.len() {
                    self.output.embed(pooling.finish());
                    self.is_over = true;
                }
            }
            Goal::Draw(drawing) => {
                if wants == Wants::All {
                    let scored = self.prompt[start + 1..].iter().take(self.planned);
                    for &token in scored {
                        match rows.logits.next() {
                            Some(row) => drawing.score(row, token),
                            None => return self.fail(Error::internal(TOO_FEW)),
                        }
                    }
                }
                if self.computed < self.prompt.len() {
                    return;
                }
                let Some(row) = rows.logits.next() else {
                    return self.fail(Error::internal(TOO_FEW));
                };
                match drawing.take(row, eos_tokens, scratch) {
                    Ok(addition) => {
                        self.is_over = addition.end.is_some();
                        self.output.push(drawing.index, addition);
                    }
                    Err(error) => self.fail(error),
                }
            }
        }
    }

    /// Ends the whole request.
    fn fail(&mut self, error: Error) {
        self.output.fail(error);
        self.is_over = true;
    }
}

/// What is said when a runner breaks its promise.
const TOO_FEW: &str = "the device gave too few rows";
