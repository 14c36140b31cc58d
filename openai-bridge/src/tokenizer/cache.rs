//! Remembers the tokens of long texts, so that a conversation's next turn encodes only what is new.
//!
//! Added tokens are found first and cut a text; what lies between two of them has the same tokens
//! wherever it stands. So each message of a conversation is remembered by itself: it is found
//! again in the next turn, and in another conversation with the same system prompt.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use ahash::{AHashMap, RandomState};
use engine::TokenId;

/// The shortest text that is remembered, in bytes: shorter ones are encoded as fast.
const MIN_TEXT: usize = 256;

/// What an entry takes beside its text and tokens, in bytes.
const OVERHEAD: usize = 200;

/// Texts and their tokens, the least recently used of which give way.
#[derive(Debug)]
pub(super) struct Cache {
    max_bytes: usize,
    hasher: RandomState,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    entries: AHashMap<u64, Entry>,
    /// Entries by the time of their last use.
    uses: BTreeMap<u64, u64>,
    clock: u64,
    bytes: usize,
}

#[derive(Debug)]
struct Entry {
    known: Arc<Known>,
    last_use: u64,
}

#[derive(Debug)]
struct Known {
    text: String,
    is_first: bool,
    tokens: Vec<TokenId>,
}

impl Cache {
    /// Makes a cache of at most so many bytes; 0 remembers nothing.
    pub(super) fn new(max_bytes: usize) -> Self {
        // Seeds differ in every process, so that a client cannot choose texts that collide.
        Self { max_bytes, hasher: RandomState::new(), table: Mutex::default() }
    }

    /// Appends the tokens of a text, by `encode` unless they are remembered. `is_first` says
    /// whether the text begins the prompt, which may change its tokens.
    pub(super) fn encode(
        &self,
        text: &str,
        is_first: bool,
        tokens: &mut Vec<TokenId>,
        encode: impl FnOnce(&mut Vec<TokenId>),
    ) {
        if text.len() < MIN_TEXT || text.len() >= self.max_bytes {
            return encode(tokens);
        }
        let hash = self.hasher.hash_one((text, is_first));
        if let Some(known) = self.find(hash)
            && known.text == text
            && known.is_first == is_first
        {
            return tokens.extend_from_slice(&known.tokens);
        }
        let start = tokens.len();
        encode(tokens);
        let known = Known { text: text.to_owned(), is_first, tokens: tokens[start..].to_vec() };
        self.insert(hash, known);
    }

    fn find(&self, hash: u64) -> Option<Arc<Known>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner).touch(hash)
    }

    fn insert(&self, hash: u64, known: Known) {
        if known.size() <= self.max_bytes {
            let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
            table.insert(hash, known, self.max_bytes);
        }
    }
}

impl Table {
    fn touch(&mut self, hash: u64) -> Option<Arc<Known>> {
        let entry = self.entries.get_mut(&hash)?;
        self.uses.remove(&entry.last_use);
        self.clock += 1;
        entry.last_use = self.clock;
        self.uses.insert(self.clock, hash);
        Some(entry.known.clone())
    }

    fn insert(&mut self, hash: u64, known: Known, max_bytes: usize) {
        self.remove(hash);
        self.bytes += known.size();
        self.clock += 1;
        self.uses.insert(self.clock, hash);
        self.entries.insert(hash, Entry { known: Arc::new(known), last_use: self.clock });
        while self.bytes > max_bytes
            && let Some((_, oldest)) = self.uses.first_key_value()
        {
            self.remove(*oldest);
        }
    }

    fn remove(&mut self, hash: u64) {
        if let Some(entry) = self.entries.remove(&hash) {
            self.bytes -= entry.known.size();
            self.uses.remove(&entry.last_use);
        }
    }
}

impl Known {
    fn size(&self) -> usize {
        self.text.len() + self.tokens.len() * size_of::<TokenId>() + OVERHEAD
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Asks for a text; returns whether it had to be encoded.
    fn ask(cache: &Cache, text: &str, is_first: bool) -> bool {
        let (mut tokens, mut was_encoded) = (vec![7], false);
        cache.encode(text, is_first, &mut tokens, |tokens| {
            was_encoded = true;
            tokens.extend(text.bytes().map(u32::from));
        });
        let expected: Vec<u32> = [7].into_iter().chain(text.bytes().map(u32::from)).collect();
        assert_eq!(tokens, expected);
        was_encoded
    }

    #[test]
    fn the_least_recently_used_text_gives_way() {
        let text = |letter: &str| letter.repeat(1000);
        // Two texts of 1000 bytes and 1000 tokens fit, three do not.
        let cache = Cache::new(11_000);
        assert!(ask(&cache, &text("a"), true) && ask(&cache, &text("b"), true));
        assert!(!ask(&cache, &text("a"), true));
        assert!(ask(&cache, &text("c"), true));
        assert!(!ask(&cache, &text("a"), true));
        assert!(ask(&cache, &text("b"), true));
        assert!(ask(&cache, &text("b"), false), "the place of a text is part of the question");
        assert!(cache.table.lock().unwrap().bytes <= 11_000);
    }

    #[test]
    fn short_and_giant_texts_are_not_remembered() {
        let cache = Cache::new(3000);
        let asked = [&"a".repeat(100), &"a".repeat(4000), &"a".repeat(2500)];
        for text in asked.into_iter().chain(asked) {
            assert!(ask(&cache, text, true));
        }
        assert!(ask(&Cache::new(0), &"a".repeat(1000), true));
        assert_eq!(cache.table.lock().unwrap().bytes, 0);
    }

    #[test]
    fn texts_of_one_hash_are_told_apart() {
        let cache = Cache::new(1 << 20);
        let (a, b) = ("a".repeat(300), "b".repeat(300));
        assert!(ask(&cache, &a, true));
        let hash = |text: &String| cache.hasher.hash_one((text.as_str(), true));
        let mut table = cache.table.lock().unwrap();
        let entry = table.entries.remove(&hash(&a)).unwrap();
        table.entries.insert(hash(&b), entry);
        drop(table);
        assert!(ask(&cache, &b, true));
    }

    #[test]
    fn a_panic_while_the_table_is_held_does_no_harm() {
        let cache = Cache::new(1 << 20);
        let held = || {
            let _table = cache.table.lock().unwrap();
            panic!("on purpose");
        };
        let poisoned = std::panic::catch_unwind(std::panic::AssertUnwindSafe(held)).is_err();
        assert!(poisoned && ask(&cache, &"a".repeat(300), true));
        assert!(!ask(&cache, &"a".repeat(300), true));
    }
}
