//! Cuts a text into words by the expressions of byte-level tokenizers, without backtracking.
//!
//! Nearly all of these expressions end in `\s+(?!\S)|\s+`: a run of spaces without its last one,
//! which belongs to the next word. That look-ahead is all that keeps them from being regular, so
//! the end is matched here by hand and the rest by an automaton, in time linear in the text.

use regex_automata::meta::{Cache, Config, Regex};
use regex_automata::nfa::thompson::WhichCaptures;
use regex_automata::{Anchored, Input};

/// How the expressions of today's tokenizers end.
const SPACES: &str = r"|\s+(?!\S)|\s+";

/// The pattern that [`Stage`] matches with for [`SPACES`].
const SPACES_PATTERN: usize = 1;

/// Cuts texts by one expression after the other.
#[derive(Debug)]
pub(super) struct Splitter {
    stages: Vec<Stage>,
}

#[derive(Debug)]
struct Stage {
    regex: Regex,
}

/// The automata's working memory, one for each stage.
#[derive(Debug, Default)]
pub(super) struct Memory(Vec<Cache>);

impl Splitter {
    /// Makes a splitter, or says why an expression is not one that it can match.
    pub(super) fn new<P: AsRef<str>>(expressions: &[P]) -> Result<Self, String> {
        let stages = expressions.iter().map(|expression| Stage::new(expression.as_ref()));
        Ok(Self { stages: stages.collect::<Result<_, _>>()? })
    }

    pub(super) fn memory(&self) -> Memory {
        Memory(self.stages.iter().map(|stage| stage.regex.create_cache()).collect())
    }

    /// Calls `found` with the start and end of every word of the text, in order.
    pub(super) fn split(
        &self,
        text: &str,
        memory: &mut Memory,
        found: &mut impl FnMut(usize, usize),
    ) {
        split(&self.stages, &mut memory.0, text, 0, found);
    }
}

/// Cuts by the first stage and hands its words to the others; words of no text are none.
fn split(
    stages: &[Stage],
    memory: &mut [Cache],
    text: &str,
    offset: usize,
    found: &mut impl FnMut(usize, usize),
) {
    let (Some((stage, stages)), Some((cache, memory))) =
        (stages.split_first(), memory.split_first_mut())
    else {
        return found(offset, offset + text.len());
    };
    let mut word = |start: usize, end: usize| {
        if start == end {
        } else if stages.is_empty() {
            found(offset + start, offset + end);
        } else {
            split(stages, memory, &text[start..end], offset + start, found);
        }
    };
    let mut position = 0;
    while position < text.len() {
        let Some((start, end)) = stage.next(text, position, cache) else {
            break;
        };
        word(position, start);
        word(start, end);
        position = end;
    }
    word(position, text.len());
}

impl Stage {
    fn new(expression: &str) -> Result<Self, String> {
        if has_possessive(expression) {
            return Err(format!("`{expression}` has a possessive quantifier"));
        }
        let (rest, spaces) = match expression.strip_suffix(SPACES) {
            Some(rest) => (rest, Some(r"\s+")),
            None => (expression, None),
        };
        let parse = |pattern: &str| {
            regex_syntax::parse(pattern).map_err(|error| format!("`{pattern}`: {error}"))
        };
        let patterns =
            [rest].into_iter().chain(spaces).map(parse).collect::<Result<Vec<_>, _>>()?;
        if patterns.iter().any(|pattern| pattern.properties().minimum_len() == Some(0)) {
            return Err(format!("`{expression}` matches the empty text"));
        }
        let config = Config::new().which_captures(WhichCaptures::Implicit);
        let regex = Regex::builder().configure(config).build_many_from_hir(&patterns);
        Ok(Self { regex: regex.map_err(|error| format!("`{expression}`: {error}"))? })
    }

    /// Returns the next match. Where it begins at once, which it nearly always does, its start
    /// need not be searched for.
    fn next(&self, text: &str, position: usize, cache: &mut Cache) -> Option<(usize, usize)> {
        let input = Input::new(text).range(position..);
        let here = input.clone().anchored(Anchored::Yes);
        let (start, end, pattern) = match self.regex.search_half_with(cache, &here) {
            Some(end) => (position, end.offset(), end.pattern()),
            None => {
                let found = self.regex.search_with(cache, &input)?;
                (found.start(), found.end(), found.pattern())
            }
        };
        if pattern.as_usize() != SPACES_PATTERN || end == text.len() {
            return Some((start, end));
        }
        // `\s+(?!\S)` leaves one space to the word that follows, unless there is only one.
        let last = text[start..end].chars().next_back().map_or(0, char::len_utf8);
        Some((start, if end - last > start { end - last } else { end }))
    }
}

/// Returns whether a quantifier forbids backtracking, which the automaton would read as another
/// repetition: `a++`, `a?+`, `a*+`, `a{1,3}+`, but not the class `\p{L}+`.
fn has_possessive(expression: &str) -> bool {
    let (mut depth, mut was_quantifier) = (0usize, false);
    let mut bytes = expression.bytes();
    let mut previous = 0;
    while let Some(byte) = bytes.next() {
        let is_outside = depth == 0;
        if is_outside && was_quantifier && byte == b'+' {
            return true;
        }
        was_quantifier = match byte {
            b'?' | b'*' | b'+' => is_outside && previous != b'(',
            b'}' => is_outside && matches!(previous, b'0'..=b'9' | b','),
            _ => false,
        };
        match byte {
            b'[' => depth += 1,
            b']' => depth = depth.saturating_sub(1),
            b'\\' => previous = bytes.next().unwrap_or_default(),
            _ => {}
        }
        if byte != b'\\' {
            previous = byte;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::presets::GPT2;

    fn words<'t>(expressions: &[&str], text: &'t str) -> Vec<&'t str> {
        let splitter = Splitter::new(expressions).unwrap();
        let mut words = Vec::new();
        splitter
            .split(text, &mut splitter.memory(), &mut |start, end| words.push(&text[start..end]));
        words
    }

    #[test]
    fn the_last_space_belongs_to_the_next_word() {
        assert_eq!(words(&[GPT2], "a  b"), ["a", " ", " b"]);
        assert_eq!(words(&[GPT2], "a \n\n b \t"), ["a", " \n\n", " b", " \t"]);
        assert_eq!(words(&[GPT2], "a\tb"), ["a", "\t", "b"]);
        assert_eq!(words(&[GPT2], "\u{3000}\u{3000}b"), ["\u{3000}", "\u{3000}", "b"]);
        assert_eq!(words(&[GPT2], "don't"), ["don", "'t"]);
        assert_eq!(words(&[GPT2], ""), [""; 0]);
    }

    #[test]
    fn later_expressions_cut_what_earlier_ones_left() {
        assert_eq!(words(&[r"\p{N}", GPT2], "ab 12"), ["ab", " ", "1", "2"]);
        assert_eq!(words(&["[0-9][0-9]"], "a123"), ["a", "12", "3"]);
    }

    #[test]
    fn what_an_automaton_cannot_match_is_refused() {
        let refusal = |expression: &str| Splitter::new(&[expression]).unwrap_err();
        assert!(refusal(r"\p{L}++").contains("possessive"));
        assert!(refusal(r"\p{N}{1,3}+").contains("possessive"));
        assert!(refusal("a*").contains("empty"));
        assert!(refusal("a(?=b)").contains("a(?=b)"));
        assert!(refusal(r"[^\r\n]?+\p{L}").contains("possessive"));
        assert!(Splitter::new(&[r"(?i:a)+|\p{L}+|\++|[*+\]?+]|[^\s\p{L}]+"]).is_ok());
    }
}
