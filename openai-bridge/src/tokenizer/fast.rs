//! The fast path: the same tokens as the reference's, without its copies and offsets.
//!
//! A text is cut at its added tokens, what lies between them is normalised and cut into words, and
//! words are merged, or remembered. What this cannot do as the reference does is refused when it
//! is made, not guessed.

use std::borrow::Cow;
use std::sync::{Mutex, PoisonError};

use aho_corasick::{AhoCorasick, MatchKind};
use engine::TokenId;
use unicode_normalization_alignments::{IsNormalized, UnicodeNormalization, is_nfc_quick};

use super::byte_level::ByteLevel;
use super::pieces::Pieces;
use super::words::Words;
use super::{merges, splitter};
use crate::controls::unmarked;

/// Most working memories that are kept for the next text, of some MiB each.
const KEPT_MEMORIES: usize = 16;

/// An encoder.
#[derive(Debug)]
pub(super) struct Fast {
    raw: Added,
    normalized: Added,
    composes: bool,
    model: Model,
    memories: Mutex<Vec<Memory>>,
}

/// What an encoder is made of.
#[derive(Debug)]
pub(super) struct Parts {
    /// Tokens that are found in the text as it came.
    pub(super) raw: Vec<(String, TokenId)>,
    /// Tokens that are found in the rest once it is normalised.
    pub(super) normalized: Vec<(String, TokenId)>,
    /// Whether the text is brought to Unicode's normal form C.
    pub(super) composes: bool,
    pub(super) model: Model,
}

/// How words are found and merged.
#[derive(Debug)]
pub(super) enum Model {
    Bytes(ByteLevel),
    Pieces(Pieces),
}

/// Working memory of one text at a time.
#[derive(Debug)]
pub(super) struct Memory {
    pub(super) words: Words,
    pub(super) splitter: splitter::Memory,
    pub(super) merges: merges::Memory,
    pub(super) symbols: Vec<u32>,
}

/// A piece of a text that was cut at added tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part<'t> {
    Token(TokenId),
    /// What lies between tokens, and whether the text begins with it.
    Text(&'t str, bool),
}

/// Finds added tokens: the leftmost, of several there the longest.
#[derive(Debug)]
struct Added {
    automaton: Option<AhoCorasick>,
    tokens: Vec<TokenId>,
}

impl Fast {
    /// Makes an encoder, or says why it cannot.
    pub(super) fn new(parts: Parts) -> Result<Self, String> {
        Ok(Self {
            raw: Added::new(&parts.raw)?,
            normalized: Added::new(&parts.normalized)?,
            composes: parts.composes,
            model: parts.model,
            memories: Mutex::new(Vec::new()),
        })
    }

    /// Cuts a text at the tokens that are found in it as it came. Each part's tokens depend on
    /// that part alone.
    pub(super) fn parts<'t>(&'t self, text: &'t str) -> impl Iterator<Item = Part<'t>> {
        self.raw.parts(text)
    }

    /// Appends the tokens of a text without added tokens, or of what lies between two.
    pub(super) fn encode(&self, text: &str, is_first: bool, tokens: &mut Vec<TokenId>) {
        self.encode_parts(text, is_first, tokens, |part| Cow::Borrowed(part));
    }

    /// Appends the tokens of such a text with marks, which are no part of it.
    pub(super) fn encode_marked(&self, text: &str, is_first: bool, tokens: &mut Vec<TokenId>) {
        self.encode_parts(text, is_first, tokens, unmarked);
    }

    fn encode_parts(
        &self,
        text: &str,
        is_first: bool,
        tokens: &mut Vec<TokenId>,
        clean: for<'t> fn(&'t str) -> Cow<'t, str>,
    ) {
        let mut memory = self.memory();
        let text = if self.composes { compose(text) } else { Cow::Borrowed(text) };
        // SentencePiece puts its space in front of all of it, not in front of every part.
        let text = match &self.model {
            Model::Bytes(_) => text,
            Model::Pieces(pieces) => Cow::Owned(pieces.normalize(&text)),
        };
        for part in self.normalized.parts(&text) {
            match (part, &self.model) {
                (Part::Token(token), _) => tokens.push(token),
                (Part::Text(text, _), Model::Bytes(model)) => {
                    model.encode(&clean(text), &mut memory, tokens);
                }
                (Part::Text(text, starts), Model::Pieces(model)) => {
                    model.encode(&clean(text), is_first && starts, &mut memory, tokens);
                }
            }
        }
        self.keep(memory);
    }

    /// Takes a working memory, the one used last.
    fn memory(&self) -> Memory {
        // A panic elsewhere leaves no memory half written: it is taken out while it is used.
        let mut memories = self.memories.lock().unwrap_or_else(PoisonError::into_inner);
        memories.pop().unwrap_or_else(|| Memory {
            words: Words::default(),
            splitter: match &self.model {
                Model::Bytes(model) => model.splitter_memory(),
                Model::Pieces(_) => splitter::Memory::default(),
            },
            merges: merges::Memory::default(),
            symbols: Vec::new(),
        })
    }

    fn keep(&self, mut memory: Memory) {
        memory.shrink();
        let mut memories = self.memories.lock().unwrap_or_else(PoisonError::into_inner);
        if memories.len() < KEPT_MEMORIES {
            memories.push(memory);
        }
    }
}

impl Memory {
    /// Gives back what one giant word took.
    fn shrink(&mut self) {
        const KEPT: usize = 1 << 16;
        if self.symbols.capacity() > KEPT {
            self.symbols = Vec::new();
            self.merges = merges::Memory::default();
        }
    }
}

impl Added {
    fn new(tokens: &[(String, TokenId)]) -> Result<Self, String> {
        let tokens: Vec<_> = tokens.iter().filter(|(text, _)| !text.is_empty()).collect();
        let automaton = (!tokens.is_empty()).then(|| {
            let mut builder = AhoCorasick::builder();
            builder.match_kind(MatchKind::LeftmostLongest);
            builder.build(tokens.iter().map(|(text, _)| text))
        });
        let automaton = automaton.transpose().map_err(|error| format!("added tokens: {error}"))?;
        Ok(Self { automaton, tokens: tokens.into_iter().map(|(_, token)| *token).collect() })
    }

    fn parts<'t>(&'t self, text: &'t str) -> impl Iterator<Item = Part<'t>> {
        let mut position = 0;
        let matches = self.automaton.iter().flat_map(move |automaton| automaton.find_iter(text));
        let matches = matches.map(|found| Some((found.start(), found.end(), found.pattern())));
        matches.chain([None]).flat_map(move |found| {
            let (start, end, token) = match found {
                Some((start, end, pattern)) => {
                    (start, end, Some(Part::Token(self.tokens[pattern.as_usize()])))
                }
                None => (text.len(), text.len(), None),
            };
            let between = &text[position..start];
            let between = (!between.is_empty()).then_some(Part::Text(between, position == 0));
            position = end;
            between.into_iter().chain(token)
        })
    }
}

/// Brings a text to normal form C; most are in it.
fn compose(text: &str) -> Cow<'_, str> {
    if text.is_ascii() || is_nfc_quick(text.chars()) == IsNormalized::Yes {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.nfc().map(|(letter, _)| letter).collect())
}
