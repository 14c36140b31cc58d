//! Byte-level BPE: words of bytes, each byte a token to begin with.

use ahash::AHashMap;
use engine::TokenId;

use super::fast::Memory;
use super::merges::{Merge, Merges};
use super::splitter::{self, Splitter};
use super::words::Word;

/// No token.
const NONE: u32 = u32::MAX;

/// The model.
#[derive(Debug)]
pub(super) struct ByteLevel {
    splitter: Splitter,
    /// The token of each byte. Bytes without one are left out, as the reference does.
    bytes: Box<[TokenId; 256]>,
    merges: Merges,
    /// Words that are tokens whatever the merges say.
    whole: AHashMap<Box<[u8]>, TokenId>,
    /// Whether a text that does not begin with a space gets one.
    adds_space: bool,
}

/// What the model is made of: tokens and merges in the letters that stand for bytes.
#[derive(Debug)]
pub(super) struct ByteLevelParts<'a, P> {
    pub(super) ids: &'a AHashMap<&'a str, TokenId>,
    /// Best first.
    pub(super) merges: &'a [(&'a str, &'a str)],
    pub(super) splits: &'a [P],
    pub(super) ignores_merges: bool,
    pub(super) adds_space: bool,
}

impl ByteLevel {
    /// Makes the model, or says why it cannot.
    pub(super) fn new<P: AsRef<str>>(parts: &ByteLevelParts<'_, P>) -> Result<Self, String> {
        let letters = super::detokenizer::letters();
        let spelled = |token: &str| {
            token.chars().map(|letter| letters.get(&letter).copied()).collect::<Option<Vec<u8>>>()
        };
        let mut bytes = Box::new([NONE; 256]);
        for (letter, byte) in &letters {
            let token = parts.ids.get(letter.encode_utf8(&mut [0; 4]) as &str);
            bytes[usize::from(*byte)] = token.copied().unwrap_or(NONE);
        }
        let mut whole = AHashMap::new();
        if parts.ignores_merges {
            let words = parts.ids.iter().filter_map(|(token, id)| Some((spelled(token)?, *id)));
            whole.extend(words.map(|(bytes, id)| (bytes.into_boxed_slice(), id)));
        }
        Ok(Self {
            splitter: Splitter::new(parts.splits)?,
            bytes,
            merges: merges(parts.ids, parts.merges)?,
            whole,
            adds_space: parts.adds_space,
        })
    }

    pub(super) fn splitter_memory(&self) -> splitter::Memory {
        self.splitter.memory()
    }

    /// Appends the tokens of a text.
    pub(super) fn encode(&self, text: &str, memory: &mut Memory, tokens: &mut Vec<TokenId>) {
        let with_space;
        let text = match self.adds_space && !text.starts_with(' ') {
            true => {
                with_space = format!(" {text}");
                &with_space
            }
            false => text,
        };
        let bytes = text.as_bytes();
        let Memory { words, splitter, merges, symbols } = memory;
        self.splitter.split(text, splitter, &mut |start, end| {
            let word = Word::new(bytes, start, end);
            if let Some(known) = word.as_ref().and_then(|word| words.get(word)) {
                return tokens.extend_from_slice(known);
            }
            symbols.clear();
            let piece = &bytes[start..end];
            match self.whole.get(piece) {
                Some(token) => symbols.push(*token),
                None => {
                    let ids = piece.iter().map(|&byte| self.bytes[usize::from(byte)]);
                    symbols.extend(ids.filter(|&token| token != NONE));
                    self.merges.apply(symbols, merges);
                }
            }
            tokens.extend_from_slice(symbols);
            if let Some(word) = word {
                words.insert(&word, symbols);
            }
        });
    }
}

/// Makes the table of merges from rules in the tokens' spelling, best first.
pub(super) fn merges(
    ids: &AHashMap<&str, TokenId>,
    rules: &[(&str, &str)],
) -> Result<Merges, String> {
    let id = |token: &str| {
        ids.get(token).copied().ok_or_else(|| format!("merges: `{token}` is no token"))
    };
    let mut merges = Merges::default();
    for (rank, (left, right)) in (0..).zip(rules) {
        let symbol = id(&[*left, *right].concat())?;
        merges.insert(id(left)?, id(right)?, Merge { rank, symbol });
    }
    Ok(merges)
}
