//! Guessing ahead: tokens that followed the same tokens before are likely to follow them again.
//!
//! A guess is only ever a saving: the pass that computes it gives a row of logits for each of its
//! tokens, each row is drawn from as if it had come alone, and the first token that is not the
//! guessed one ends the guess. So an answer with guesses is the answer without.

use std::ops::Range;

use engine::TokenId;

/// The longest end of a text that is looked for, and the shortest.
const LONGEST: usize = 4;
const SHORTEST: usize = 2;

/// How far back it is looked for.
const REACH: usize = 8192;

/// The most steps without a guess, after guesses that were wrong.
const MOST_PAUSED: u32 = 64;

/// How guesses did for one continuation.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Drafter {
    /// Wrong guesses since the last right one.
    failures: u32,
    /// Steps without a guess that are left.
    paused: u32,
}

impl Drafter {
    /// Returns where in `tokens` the guess of at most `most` next tokens stands; often nowhere.
    pub(super) fn guess(&mut self, tokens: &[TokenId], most: usize) -> Range<usize> {
        if self.paused > 0 {
            self.paused -= 1;
            return 0..0;
        }
        let found = (SHORTEST..=LONGEST).rev().find_map(|length| last_place(tokens, length));
        let start = found.unwrap_or(tokens.len());
        start..tokens.len().min(start + most)
    }

    /// Notes how many tokens of a guess were right: guesses pause for longer and longer when
    /// none are.
    pub(super) fn note(&mut self, accepted: usize) {
        if accepted > 0 {
            self.failures = 0;
            return;
        }
        self.failures += 1;
        self.paused = (1 << self.failures.min(16)).min(MOST_PAUSED);
    }
}

/// Returns what is behind the last place, before the end, where the last `length` tokens stand.
fn last_place(tokens: &[TokenId], length: usize) -> Option<usize> {
    let end = tokens.len().checked_sub(length).filter(|&end| end > 0)?;
    let (from, wanted) = (end.saturating_sub(REACH), &tokens[end..]);
    let before = &tokens[from..tokens.len() - 1];
    let place = before.windows(length).rposition(|window| window == wanted)?;
    Some(from + place + length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_followed_the_longest_known_end_is_guessed() {
        let table: [(&[TokenId], &[TokenId]); 6] = [
            (&[], &[]),
            (&[1], &[]),
            (&[1, 2, 3, 1, 2], &[3, 1, 2]),
            (&[7, 7, 7], &[7]),
            (&[1, 2, 9, 5, 1, 2, 8, 6, 5, 1, 2], &[8, 6, 5, 1]),
            (&[5, 1, 2, 9, 0, 6, 1, 2, 8, 5, 1, 2], &[9, 0, 6, 1]),
        ];
        for (tokens, expected) in table {
            assert_eq!(&tokens[Drafter::default().guess(tokens, 4)], expected, "{tokens:?}");
        }
    }

    #[test]
    fn wrong_guesses_become_rare_and_right_ones_common_again() {
        let tokens = [1; 10];
        let mut drafter = Drafter::default();
        let mut guesses = 0;
        for _ in 0..1000 {
            if !drafter.guess(&tokens, 4).is_empty() {
                guesses += 1;
                drafter.note(0);
            }
        }
        assert!(guesses < 25, "{guesses}");
        while drafter.guess(&tokens, 4).is_empty() {}
        drafter.note(1);
        assert!(!drafter.guess(&tokens, 4).is_empty());
    }
}
