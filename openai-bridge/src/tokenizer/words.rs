//! Remembers how words were encoded: the same few thousand make up most of every text.

use engine::TokenId;

/// The longest word that is remembered, in bytes.
const MAX_BYTES: usize = 24;

/// The most tokens of a remembered word.
const MAX_TOKENS: usize = 7;

/// Places, a power of two: 2 MiB.
const SLOTS: usize = 1 << 15;

/// A table of words, each in the one place that its hash gives it; the newest stays.
#[derive(Debug)]
pub(super) struct Words {
    slots: Vec<Slot>,
}

/// A word in its place: one line of the processor's cache. Unused ones have no length.
#[derive(Clone, Copy, Debug, Default)]
#[repr(align(64))]
struct Slot {
    key: Key,
    length: u8,
    count: u8,
    tokens: [TokenId; MAX_TOKENS],
}

type Key = [u64; MAX_BYTES / 8];

/// A word that can be remembered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Word {
    key: Key,
    length: u8,
    slot: usize,
}

impl Default for Words {
    fn default() -> Self {
        Self { slots: vec![Slot::default(); SLOTS] }
    }
}

impl Word {
    /// Reads a word out of a text; none if it is too long, or empty.
    #[inline]
    pub(super) fn new(text: &[u8], start: usize, end: usize) -> Option<Self> {
        let length = end - start;
        if length == 0 || length > MAX_BYTES {
            return None;
        }
        let mut bytes = [0; MAX_BYTES];
        match text[start..].first_chunk::<MAX_BYTES>() {
            // Copying a known number of bytes and clearing the rest is far faster.
            Some(chunk) => bytes = *chunk,
            None => bytes[..length].copy_from_slice(&text[start..end]),
        }
        let mut key = [0; MAX_BYTES / 8];
        for (index, (word, chunk)) in key.iter_mut().zip(bytes.as_chunks::<8>().0).enumerate() {
            let kept = length.saturating_sub(index * 8).min(8) as u32;
            let mask = u64::MAX.checked_shr(64 - 8 * kept).unwrap_or(0);
            *word = u64::from_le_bytes(*chunk) & mask;
        }
        let [a, b, c] = key;
        let mixed = (a ^ 0x9E37_79B9_7F4A_7C15).wrapping_mul(0xBF58_476D_1CE4_E5B9)
            ^ b.wrapping_mul(0x94D0_49BB_1331_11EB).rotate_left(23)
            ^ c.wrapping_mul(0xD6E8_FEB8_6659_FD93).rotate_left(41);
        let mixed = (mixed ^ mixed >> 29).wrapping_mul(0xFF51_AFD7_ED55_8CCD);
        Some(Self { key, length: length as u8, slot: (mixed >> 40) as usize % SLOTS })
    }
}

impl Words {
    /// Returns the tokens of a word, if they are remembered.
    #[inline]
    pub(super) fn get(&self, word: &Word) -> Option<&[TokenId]> {
        let slot = &self.slots[word.slot];
        let is_it = slot.length == word.length && slot.key == word.key;
        is_it.then(|| &slot.tokens[..slot.count as usize])
    }

    /// Remembers a word's tokens, unless they are many.
    pub(super) fn insert(&mut self, word: &Word, tokens: &[TokenId]) {
        if tokens.len() <= MAX_TOKENS {
            let Word { key, length, slot } = *word;
            let mut place = Slot { key, length, count: tokens.len() as u8, ..Slot::default() };
            place.tokens[..tokens.len()].copy_from_slice(tokens);
            self.slots[slot] = place;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_word_is_itself_wherever_it_stands(
            before in "[ab]{0,30}", word in "[ab\\x00]{0,26}", other in "[ab\\x00]{0,26}", after in "[ab]{0,30}",
        ) {
            let text = [&before[..], &word, &after].concat();
            let (start, end) = (before.len(), before.len() + word.len());
            let Some(read) = Word::new(text.as_bytes(), start, end) else {
                prop_assert!(word.is_empty() || word.len() > MAX_BYTES);
                return Ok(());
            };
            let mut words = Words::default();
            words.insert(&read, &[1, 2]);
            let alone = Word::new(word.as_bytes(), 0, word.len()).unwrap();
            prop_assert_eq!(words.get(&alone), Some(&[1, 2][..]));
            if let Some(other_word) = Word::new(other.as_bytes(), 0, other.len()) {
                prop_assert_eq!(words.get(&other_word).is_some(), other == word);
            }
        }
    }

    #[test]
    fn a_word_of_many_tokens_is_not_remembered() {
        let mut words = Words::default();
        let word = Word::new(b"abc", 0, 3).unwrap();
        words.insert(&word, &[0; MAX_TOKENS + 1]);
        assert_eq!(words.get(&word), None);
        words.insert(&word, &[]);
        assert_eq!(words.get(&word), Some(&[][..]));
    }
}
