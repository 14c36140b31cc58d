//! BPE over characters, as SentencePiece has it: spaces are `▁`, what is no token becomes bytes.

use ahash::AHashMap;
use engine::TokenId;

use super::fast::Memory;
use super::merges::{Merge, Merges};
use super::words::Word;

/// The letter that stands for a space.
pub(super) const SPACE: char = '▁';

/// Marks a symbol that is a character without a token; the rest is the character.
const CHARACTER: u32 = 1 << 31;

/// The model.
#[derive(Debug)]
pub(super) struct Pieces {
    characters: AHashMap<char, TokenId>,
    merges: Merges,
    prefix: Prefix,
    /// The tokens of single bytes, if there is one for each.
    bytes: Option<Box<[TokenId; 256]>>,
    unknown: Option<TokenId>,
    /// Whether neighbours that are unknown are one.
    fuses_unknown: bool,
    /// Whether no token has a space after another character, so that words merge by themselves.
    has_words: bool,
}

/// Where a space is put in front of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Prefix {
    /// Nowhere.
    Never,
    /// In front of each text between two added tokens.
    Always,
    /// In front of each text between two added tokens that does not begin with a space.
    IfMissing,
    /// In front of the whole text if it does not begin with a space.
    FirstIfMissing,
}

/// What the model is made of.
#[derive(Debug)]
pub(super) struct PiecesParts<'a> {
    /// The tokens that text can become.
    pub(super) ids: &'a AHashMap<&'a str, TokenId>,
    pub(super) merges: Merges,
    pub(super) prefix: Prefix,
    pub(super) bytes: Option<Box<[TokenId; 256]>>,
    pub(super) unknown: Option<TokenId>,
    pub(super) fuses_unknown: bool,
}

impl Pieces {
    pub(super) fn new(parts: PiecesParts<'_>) -> Self {
        let tokens = || parts.ids.iter();
        let characters = tokens().filter_map(|(token, id)| Some((single(token)?, *id))).collect();
        let has_late_space = |token: &str| token.trim_start_matches(SPACE).contains(SPACE);
        Self {
            characters,
            has_words: parts.ids.contains_key("▁") && !tokens().any(|(t, _)| has_late_space(t)),
            merges: parts.merges,
            prefix: parts.prefix,
            bytes: parts.bytes,
            unknown: parts.unknown,
            fuses_unknown: parts.fuses_unknown,
        }
    }

    /// Writes spaces as the vocabulary does, with one in front if that is always so.
    pub(super) fn normalize(&self, text: &str) -> String {
        let mut spelled = String::with_capacity(text.len() + text.len() / 2);
        if self.prefix == Prefix::Always && !text.is_empty() {
            spelled.push(SPACE);
        }
        for (index, word) in text.split(' ').enumerate() {
            if index > 0 {
                spelled.push(SPACE);
            }
            spelled.push_str(word);
        }
        spelled
    }

    /// Appends the tokens of a text that was normalised.
    pub(super) fn encode(
        &self,
        text: &str,
        is_first: bool,
        memory: &mut Memory,
        tokens: &mut Vec<TokenId>,
    ) {
        let wants_space = match self.prefix {
            Prefix::Never | Prefix::Always => false,
            Prefix::IfMissing => true,
            Prefix::FirstIfMissing => is_first,
        };
        let with_space;
        let text = match wants_space && !text.starts_with(SPACE) {
            true => {
                with_space = format!("{SPACE}{text}");
                &with_space
            }
            false => text,
        };
        let mut start = 0;
        if self.has_words {
            for (end, _) in text.match_indices(SPACE) {
                // A run of spaces is one word with what follows it.
                if end > start && !text[..end].ends_with(SPACE) {
                    self.encode_word(text, start, end, memory, tokens);
                    start = end;
                }
            }
        }
        self.encode_word(text, start, text.len(), memory, tokens);
    }

    fn encode_word(
        &self,
        text: &str,
        start: usize,
        end: usize,
        memory: &mut Memory,
        tokens: &mut Vec<TokenId>,
    ) {
        let word = Word::new(text.as_bytes(), start, end);
        if let Some(known) = word.as_ref().and_then(|word| memory.words.get(word)) {
            return tokens.extend_from_slice(known);
        }
        let symbols = &mut memory.symbols;
        symbols.clear();
        let is_dropped = self.bytes.is_none() && self.unknown.is_none();
        symbols.extend(text[start..end].chars().filter_map(|letter| {
            let character = (!is_dropped).then_some(CHARACTER | letter as u32);
            self.characters.get(&letter).copied().or(character)
        }));
        self.merges.apply(symbols, &mut memory.merges);
        let first = tokens.len();
        for &symbol in symbols.iter() {
            self.finish(symbol, &tokens[first..].last().copied(), tokens);
        }
        if let Some(word) = word {
            memory.words.insert(&word, &tokens[first..]);
        }
    }

    /// Appends a symbol as it is after all merges.
    fn finish(&self, symbol: u32, previous: &Option<TokenId>, tokens: &mut Vec<TokenId>) {
        if symbol & CHARACTER == 0 {
            return tokens.push(symbol);
        }
        match (&self.bytes, self.unknown) {
            (Some(bytes), _) => {
                let letter = char::from_u32(symbol & !CHARACTER).unwrap_or_default();
                let spelled = letter.encode_utf8(&mut [0; 4]).as_bytes().to_vec();
                tokens.extend(spelled.iter().map(|&byte| bytes[usize::from(byte)]));
            }
            (None, Some(unknown)) if self.fuses_unknown && *previous == Some(unknown) => {}
            (None, unknown) => tokens.extend(unknown),
        }
    }
}

/// Makes the merges that scores imply: two neighbours become one if together they are a token, the
/// best token first.
pub(super) fn merges(ids: &AHashMap<&str, TokenId>, scores: &[f32]) -> Merges {
    let score = |id: TokenId| scores.get(id as usize).copied().unwrap_or_default();
    let mut ordered: Vec<TokenId> = ids.values().copied().collect();
    ordered.sort_by(|a, b| score(*b).total_cmp(&score(*a)));
    let mut ranks = AHashMap::with_capacity(ordered.len());
    let mut rank = 0;
    for (index, id) in ordered.iter().enumerate() {
        // Tokens of one score are of one rank, so that the leftmost pair of them is first.
        if index > 0 && score(*id) != score(ordered[index - 1]) {
            rank += 1;
        }
        ranks.insert(*id, rank);
    }
    // A character without a token can still be part of one.
    let symbol =
        |part: &str| ids.get(part).copied().or_else(|| Some(CHARACTER | single(part)? as u32));
    let mut merges = Merges::default();
    for (token, id) in ids {
        for (place, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(place);
            if let (Some(left), Some(right)) = (symbol(left), symbol(right)) {
                merges.insert(left, right, Merge { rank: ranks[id], symbol: *id });
            }
        }
    }
    merges
}

/// Returns the character of a token that is only one.
fn single(token: &str) -> Option<char> {
    let mut letters = token.chars();
    letters.next().filter(|_| letters.next().is_none())
}
