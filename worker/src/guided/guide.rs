//! Where one continuation stands in its constraint.

use std::fmt;
use std::sync::Arc;

use engine::{Error, Result, TokenId};
use llguidance::Matcher;
use llguidance::api::StopReason;
use llguidance::toktrie::SimpleVob;

use super::spelling::SPECIAL;

/// The state of one continuation's constraint; a clone goes its own way.
#[derive(Clone)]
pub(crate) struct Guide {
    matcher: Matcher,
    /// What is still waited for; none: the constraint holds.
    wait: Option<Wait>,
    words: Arc<[Vec<u8>]>,
}

/// The free text before the constraint.
#[derive(Clone)]
struct Wait {
    marker: Vec<u8>,
    /// The end of the text, always shorter than the marker.
    tail: Vec<u8>,
}

/// Where a marker ends relative to a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meeting {
    /// The marker is not complete with it.
    No,
    /// The marker ends with it.
    Exact,
    /// Bytes of the token follow the marker.
    Beyond,
}

/// The tokens that may come next.
#[derive(Debug)]
pub(crate) struct Allowed(SimpleVob);

impl Allowed {
    /// Returns a bit for each token, the lowest first.
    pub(crate) fn words(&self) -> &[u32] {
        self.0.as_slice()
    }
}

/// What a token made of the constraint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Something may follow.
    Open,
    /// The text is complete and nothing may follow.
    Complete,
}

impl Guide {
    /// Starts a constraint, behind the first place of `marker` if that is not empty.
    pub(super) fn new(matcher: Matcher, marker: &[u8], words: Arc<[Vec<u8>]>) -> Self {
        let wait = Wait { marker: marker.to_vec(), tail: Vec::new() };
        Self { matcher, wait: (!marker.is_empty()).then_some(wait), words }
    }

    /// Returns whether the constraint holds already; before, all but an end may come.
    pub(crate) fn holds(&self) -> bool {
        self.wait.is_none()
    }

    /// Returns whether nothing may follow.
    pub(crate) fn is_complete(&self) -> bool {
        self.holds() && self.matcher.is_stopped()
    }

    /// Returns the tokens that may come next, those that end the text among them when it may
    /// end; none: all may. Cost: up to some 100 microseconds, bounded at a few milliseconds.
    ///
    /// Errors: invalid, if no token can go on or the constraint became too costly.
    pub(crate) fn allowed(&mut self) -> Result<Option<Allowed>> {
        if !self.holds() {
            return Ok(None);
        }
        let mask = self.matcher.compute_mask_or_eos();
        mask.map(|mask| Some(Allowed(mask))).map_err(|error| self.failure(&error.to_string()))
    }

    /// Returns the tokens that do not reach beyond the text that is waited for, if `token` does.
    /// What a constraint says of half a token is not looked at: there is always another spelling.
    pub(crate) fn instead_of(&self, token: TokenId) -> Option<Allowed> {
        let wait = self.wait.as_ref()?;
        if wait.meeting(self.word(token)) != Meeting::Beyond {
            return None;
        }
        let mut mask = SimpleVob::alloc_ones(self.words.len());
        for (word, token) in self.words.iter().zip(0..) {
            if wait.meeting(plain(word)) == Meeting::Beyond {
                mask.disallow_token(token);
            }
        }
        Some(Allowed(mask))
    }

    /// Goes on by a token that was allowed and did not end the text.
    ///
    /// Errors: invalid, if the constraint became too costly.
    pub(crate) fn accept(&mut self, token: TokenId) -> Result<Progress> {
        let words = self.words.clone();
        let word = words.get(token as usize).map_or(&[][..], |word| plain(word));
        if let Some(wait) = &mut self.wait {
            match wait.meeting(word) {
                Meeting::No => wait.extend(word),
                _ => self.wait = None,
            }
            return Ok(Progress::Open);
        }
        if let Err(error) = self.matcher.consume_token(token) {
            return Err(self.failure(&error.to_string()));
        }
        Ok(if self.matcher.is_stopped() { Progress::Complete } else { Progress::Open })
    }

    fn word(&self, token: TokenId) -> &[u8] {
        self.words.get(token as usize).map_or(&[], |word| plain(word))
    }

    /// Says why the parser gave up.
    fn failure(&self, text: &str) -> Error {
        let error = match self.matcher.stop_reason() {
            StopReason::NoExtensionBias => no_token(),
            _ => refusal(text),
        };
        error.with_code("invalid_constraint")
    }
}

impl Wait {
    /// Says where the marker ends if `word` comes next.
    fn meeting(&self, word: &[u8]) -> Meeting {
        if word.is_empty() {
            return Meeting::No;
        }
        let text: Vec<u8> = self.tail.iter().chain(word).copied().collect();
        let place = text.windows(self.marker.len()).position(|window| window == self.marker);
        match place.map(|place| place + self.marker.len()) {
            None => Meeting::No,
            Some(end) if end == text.len() => Meeting::Exact,
            Some(_) => Meeting::Beyond,
        }
    }

    fn extend(&mut self, word: &[u8]) {
        self.tail.extend_from_slice(word);
        let kept = self.marker.len() - 1;
        self.tail.drain(..self.tail.len().saturating_sub(kept));
    }
}

/// Returns the bytes of a word without the mark of a control token: one may be waited for.
fn plain(word: &[u8]) -> &[u8] {
    word.strip_prefix(&[SPECIAL]).unwrap_or(word)
}

/// Makes an error for the client of what the parser says, without its inner life.
pub(super) fn refusal(text: &str) -> Error {
    // The library's name for it, where it tells of it as a text.
    if text.contains("NoExtensionBias") {
        return no_token();
    }
    let shown = text.split("\n<").next().unwrap_or_default().trim();
    if shown.is_empty() || shown.starts_with("panic") {
        tracing::debug!(error = text, "the parser of constraints gave up");
        return Error::invalid("the constraint is too complex or holds what is not supported");
    }
    Error::invalid(format!("the constraint cannot be kept: {shown}"))
}

fn no_token() -> Error {
    Error::invalid("no token of the vocabulary can continue what the constraint asks")
}

impl fmt::Debug for Guide {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guide").field("holds", &self.holds()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_parser_says_of_itself_is_not_for_clients() {
        for text in ["NoExtensionBias", "parser error: NoExtensionBias; <<BUG>>"] {
            assert_eq!(refusal(text).message(), no_token().message(), "{text}");
        }
        for text in ["", "panicked at parser.rs", "\n<state>1</state>"] {
            assert!(refusal(text).message().contains("too complex"), "{text}");
        }
        let shown = refusal("Too many items (limit 5)\n<state>tokens: 7</state>");
        assert_eq!(shown.message(), "the constraint cannot be kept: Too many items (limit 5)");
    }
}
