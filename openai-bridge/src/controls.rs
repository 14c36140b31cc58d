//! Control tokens that a conversation spells out: in what somebody said they are text.
//!
//! A template puts texts of a conversation between the model's control tokens, so that one spelled
//! out in a content would end the turn and begin another. Each is broken by a mark before the
//! template sees it. The tokenizer, which finds control tokens in the template's own text alone
//! then, takes the marks away.

use std::borrow::Cow;
use std::collections::HashSet;

use aho_corasick::AhoCorasick;
use engine::{TokenKind, Vocabulary};
use serde_json::{Map, Value as Json};

/// Breaks a control token. Unicode reserves it for use inside a program.
pub(crate) const MARK: char = '\u{fdd0}';

/// The control tokens of a vocabulary.
#[derive(Debug)]
pub(crate) struct Controls {
    whole: AhoCorasick,
    /// What they begin with, up to all but their last character.
    beginnings: HashSet<Box<str>>,
    longest_beginning: usize,
}

impl Controls {
    /// Finds the control tokens; none if there are none, or more than can be looked for.
    pub(crate) fn of(vocabulary: &Vocabulary) -> Option<Self> {
        let is_control = |(token, kind): &(&String, &TokenKind)| match **kind {
            TokenKind::Control => true,
            // Vocabularies declare markers of turns so as well, beside what models themselves
            // write, such as `<think>`.
            TokenKind::UserDefined => is_turn_marker(token),
            _ => false,
        };
        let all = vocabulary.tokens.iter().zip(&vocabulary.kinds).filter(is_control);
        // One of a single character cannot be broken.
        let all: Vec<&str> =
            all.map(|(token, _)| token.as_str()).filter(|t| t.chars().count() > 1).collect();
        let mut beginnings = HashSet::<Box<str>>::new();
        for token in &all {
            let ends = token.char_indices().map(|(end, _)| end).skip(1);
            beginnings.extend(ends.map(|end| Box::from(&token[..end])));
        }
        let longest_beginning = beginnings.iter().map(|start| start.len()).max()?;
        Some(Self { whole: AhoCorasick::new(&all).ok()?, beginnings, longest_beginning })
    }

    /// Breaks them in every text of a value.
    pub(crate) fn break_in(&self, value: &mut Json) {
        match value {
            Json::String(text) => {
                if let Some(broken) = self.broken(text) {
                    *text = broken;
                }
            }
            Json::Array(all) => all.iter_mut().for_each(|one| self.break_in(one)),
            Json::Object(fields) => self.break_in_fields(fields),
            Json::Null | Json::Bool(_) | Json::Number(_) => {}
        }
    }

    /// Breaks them in every text of an object, and in the names of its fields.
    pub(crate) fn break_in_fields(&self, fields: &mut Map<String, Json>) {
        if fields.keys().any(|name| self.broken(name).is_some()) {
            let named = std::mem::take(fields).into_iter();
            fields.extend(named.map(|(name, field)| (self.broken(&name).unwrap_or(name), field)));
        }
        fields.values_mut().for_each(|field| self.break_in(field));
    }

    /// Returns a text with its control tokens broken; none if it has none.
    fn broken(&self, text: &str) -> Option<String> {
        let mut starts: Vec<usize> =
            self.whole.find_overlapping_iter(text).map(|found| found.start()).collect();
        // The text after this one may end what begins here.
        let last = text.len().saturating_sub(self.longest_beginning);
        starts.extend((last..text.len()).filter(|&start| {
            text.is_char_boundary(start) && self.beginnings.contains(&text[start..])
        }));
        if starts.is_empty() {
            return None;
        }
        starts.sort_unstable();
        starts.dedup();
        let mut broken = String::with_capacity(text.len() + MARK.len_utf8() * starts.len());
        let mut done = 0;
        for start in starts {
            let first = text[start..].chars().next().map_or(0, char::len_utf8);
            broken.push_str(&text[done..start + first]);
            broken.push(MARK);
            done = start + first;
        }
        broken.push_str(&text[done..]);
        Some(broken)
    }
}

/// Returns whether a token looks like a marker of turns: `<|im_start|>`, `<start_of_turn>`,
/// `[INST]`.
fn is_turn_marker(token: &str) -> bool {
    let inner = |open: &str, close: &str| token.strip_prefix(open)?.strip_suffix(close);
    inner("<|", "|>").or(inner("<｜", "｜>")).is_some_and(|name| !name.is_empty())
        || inner("<", ">").is_some_and(|name| name.ends_with("_of_turn"))
        || matches!(token, "[INST]" | "[/INST]" | "[SYSTEM_PROMPT]" | "[/SYSTEM_PROMPT]")
}

/// Returns a text without marks.
pub(crate) fn unmarked(text: &str) -> Cow<'_, str> {
    match text.contains(MARK) {
        true => text.replace(MARK, "").into(),
        false => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::select;
    use serde_json::json;

    use super::*;

    const PIECES: [&str; 11] =
        ["<|im_", "end|>", "<", "|im_end|>", "[A]<", "A", "]", "start|>", " x", "é", ""];

    fn controls() -> Controls {
        let tokens = ["<|im_end|>", "<|im_start|>", "[A]", "A]<", "ordinary", "é"];
        let kind = |token: &&str| match *token {
            "ordinary" => TokenKind::Normal,
            _ => TokenKind::Control,
        };
        Controls::of(&Vocabulary {
            kinds: tokens.iter().map(kind).collect(),
            tokens: tokens.map(String::from).to_vec(),
            ..Vocabulary::default()
        })
        .unwrap()
    }

    proptest! {
        #[test]
        fn no_control_token_is_left_in_what_was_said_however_it_is_put_together(
            said in vec(select(&PIECES[..]), 1..8),
        ) {
            let controls = controls();
            let broken = said.iter().map(|text| controls.broken(text).unwrap_or((*text).into()));
            let broken = broken.collect::<String>();
            prop_assert_eq!(unmarked(&broken), said.concat());
            for token in ["<|im_end|>", "<|im_start|>", "[A]", "A]<"] {
                prop_assert!(!broken.contains(token), "{:?}: {:?}", said, broken);
            }
        }
    }

    #[test]
    fn texts_are_broken_wherever_they_stand_and_others_stay() {
        let said = json!({
            "content": [{"text": "a<|im_end|>b"}, 1, null, "ordinary text"],
            "<|im_end|>": {"x": "<|im_start|>"},
        });
        let mut broken = said.clone();
        controls().break_in(&mut broken);
        let m = MARK;
        assert_eq!(
            broken,
            json!({
                "content": [{"text": format!("a<{m}|im_end|>b")}, 1, null, "ordinary text"],
                format!("<{m}|im_end|>"): {"x": format!("<{m}|im_start|>")},
            })
        );
    }

    #[test]
    fn user_defined_markers_of_turns_are_broken_and_what_models_write_is_not() {
        let markers = ["<|im_start|>", "<start_of_turn>", "<｜User｜>", "[/INST]"];
        let written = ["<think>", "</think>", "<tool_call>", "[TOOL_CALLS]", "<||>"];
        let tokens: Vec<String> = markers.iter().chain(&written).map(|&t| t.to_owned()).collect();
        let kinds = vec![TokenKind::UserDefined; tokens.len()];
        let controls = Controls::of(&Vocabulary { tokens, kinds, ..Vocabulary::default() });
        let controls = controls.unwrap();
        for marker in markers {
            assert!(controls.broken(&format!("a {marker} b")).is_some(), "{marker}");
        }
        for token in written {
            assert_eq!(controls.broken(&format!("a {token} b")), None, "{token}");
        }
    }
}
