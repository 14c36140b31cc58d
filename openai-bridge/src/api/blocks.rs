//! The blocks of one continuation: text, thoughts and calls, each begun, grown and ended in turn.
//!
//! The law: a block begins after the one before it has ended, so whoever is told of the steps can
//! write them down as they come.

use crate::parser::Event;
use crate::{Delta, Score};

/// What a block is.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Kind {
    /// What the model says.
    Text,
    /// What it thinks.
    Thought,
    /// What it calls.
    Call {
        /// Counts the calls from 0.
        number: u32,
        /// The id that the model gave it, if it did.
        id: Option<String>,
        /// What is called.
        name: String,
    },
}

/// A block as far as it has grown.
#[derive(Clone, Debug)]
pub(super) struct Block {
    /// Counts the blocks from 0.
    pub index: usize,
    pub kind: Kind,
    /// The text, or the JSON text of a call's arguments.
    pub text: String,
    /// The log-probabilities of a text's tokens.
    pub scores: Vec<Score>,
}

/// What happens to a block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Step<'a> {
    Begin,
    Grow(&'a str, &'a [Score]),
    /// It ends; whether it was cut off.
    End(bool),
}

/// The blocks so far: the last may be open, the others have been told.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    open: Option<Block>,
    begun: usize,
}

impl Blocks {
    /// Takes the events of a delta; `tell` gets each step with its block.
    pub(super) fn take(&mut self, delta: &Delta, mut tell: impl FnMut(&Block, Step<'_>)) {
        // The tokens of a delta belong to what it says.
        let mut scores = &delta.logprobs[..];
        for event in &delta.events {
            match event {
                Event::Content(text) => {
                    self.reach(Kind::Text, &mut tell);
                    self.grow(text, std::mem::take(&mut scores), &mut tell);
                }
                Event::Reasoning(text) => {
                    self.reach(Kind::Thought, &mut tell);
                    self.grow(text, &[], &mut tell);
                }
                Event::CallBegun { index, id, name } => {
                    let call = Kind::Call { number: *index, id: id.clone(), name: name.clone() };
                    self.reach(call, &mut tell);
                }
                Event::Arguments { index, text } => {
                    let is_own = |open: &Block| matches!(open.kind, Kind::Call { number, .. } if number == *index);
                    if self.open.as_ref().is_some_and(is_own) {
                        self.grow(text, &[], &mut tell);
                    }
                }
            }
        }
    }

    /// Begins an empty text if there is no block at all.
    pub(super) fn at_least_one(&mut self, mut tell: impl FnMut(&Block, Step<'_>)) {
        if self.begun == 0 {
            self.reach(Kind::Text, &mut tell);
        }
    }

    /// Ends the open block.
    pub(super) fn end(&mut self, is_cut_off: bool, mut tell: impl FnMut(&Block, Step<'_>)) {
        if let Some(block) = self.open.take() {
            tell(&block, Step::End(is_cut_off));
        }
    }

    /// Sees to it that a block of a kind is open.
    fn reach(&mut self, kind: Kind, tell: &mut impl FnMut(&Block, Step<'_>)) {
        if self.open.as_ref().is_some_and(|open| open.kind == kind) {
            return;
        }
        self.end(false, &mut *tell);
        let block = Block { index: self.begun, kind, text: String::new(), scores: Vec::new() };
        self.begun += 1;
        tell(self.open.insert(block), Step::Begin);
    }

    fn grow(&mut self, text: &str, scores: &[Score], tell: &mut impl FnMut(&Block, Step<'_>)) {
        if let Some(open) = &mut self.open {
            open.text.push_str(text);
            open.scores.extend_from_slice(scores);
            tell(open, Step::Grow(text, scores));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_begins_after_the_one_before_it_has_ended() {
        let call = |index, name: &str| Event::CallBegun { index, id: None, name: name.into() };
        let arguments = |index, text: &str| Event::Arguments { index, text: text.into() };
        let events = vec![
            Event::Reasoning("t".into()),
            Event::Content("a".into()),
            Event::Content("b".into()),
            call(0, "f"),
            arguments(0, "{}"),
            call(1, "f"),
            arguments(1, "[]"),
            arguments(0, "lost"),
        ];
        let (mut blocks, mut told) = (Blocks::default(), Vec::new());
        let mut tell = |block: &Block, step: Step<'_>| {
            told.push(match step {
                Step::Begin => format!("+{}", block.index),
                Step::Grow(text, _) => text.to_owned(),
                Step::End(is_cut_off) => format!("-{}{}", block.text, u8::from(is_cut_off)),
            });
        };
        for event in events {
            blocks.take(&Delta { events: vec![event], ..Delta::default() }, &mut tell);
        }
        blocks.end(true, &mut tell);
        blocks.end(true, &mut tell);
        let expected =
            ["+0", "t", "-t0", "+1", "a", "b", "-ab0", "+2", "{}", "-{}0", "+3", "[]", "-[]1"];
        assert_eq!(told, expected);
    }
}
