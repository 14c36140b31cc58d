//! Tokens to text, one at a time, without ever giving half of a character.

use engine::{TokenId, TokenKind, Vocabulary};

/// The bytes of every token, in one piece of memory.
#[derive(Debug)]
pub(crate) struct TokenTable {
    bytes: Vec<u8>,
    /// Where each token begins, and the end of the last.
    starts: Vec<u32>,
    /// Whether a token steers the model and is not text.
    is_control: Vec<bool>,
}

impl TokenTable {
    /// Makes the table of a byte-level vocabulary.
    pub(crate) fn new(vocabulary: &Vocabulary) -> Self {
        let letters = letters();
        let mut table = Self {
            bytes: Vec::new(),
            starts: vec![0],
            is_control: Vec::with_capacity(vocabulary.tokens.len()),
        };
        for (index, token) in vocabulary.tokens.iter().enumerate() {
            let kind = vocabulary.kinds.get(index).copied().unwrap_or_default();
            let is_spelled = !matches!(kind, TokenKind::Control | TokenKind::UserDefined);
            let spelled: Option<Vec<u8>> =
                token.chars().map(|letter| letters.get(&letter).copied()).collect();
            match spelled.filter(|_| is_spelled) {
                Some(bytes) => table.bytes.extend(bytes),
                None => table.bytes.extend(token.as_bytes()),
            }
            table.starts.push(table.bytes.len() as u32);
            table.is_control.push(kind == TokenKind::Control);
        }
        table
    }

    /// Returns the bytes that a token stands for; a control token is text only if it is shown.
    pub(crate) fn bytes(&self, token: TokenId, shows_control: bool) -> &[u8] {
        let index = token as usize;
        match self.is_control.get(index) {
            Some(is_control) if shows_control || !is_control => {
                &self.bytes[self.starts[index] as usize..self.starts[index + 1] as usize]
            }
            _ => &[],
        }
    }
}

/// Returns the byte that each letter of byte-level BPE stands for: printable bytes are
/// themselves, the others follow from U+0100 on.
fn letters() -> std::collections::HashMap<char, u8> {
    let is_printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let hidden = (0..=u8::MAX).filter(|&byte| !is_printable(byte));
    let hidden = ('\u{100}'..).zip(hidden);
    (0..=u8::MAX)
        .filter(|&byte| is_printable(byte))
        .map(|byte| (char::from(byte), byte))
        .chain(hidden)
        .collect()
}

/// Joins bytes to text and holds back the beginning of an unfinished character.
#[derive(Clone, Debug, Default)]
pub(crate) struct Decoder {
    held: Vec<u8>,
}

impl Decoder {
    /// Adds bytes and moves all whole characters to `out`; what is no UTF-8 becomes U+FFFD.
    pub(crate) fn push(&mut self, bytes: &[u8], out: &mut String) {
        if self.held.is_empty()
            && let Ok(text) = std::str::from_utf8(bytes)
        {
            return out.push_str(text);
        }
        self.held.extend_from_slice(bytes);
        let mut done = 0;
        for chunk in self.held.utf8_chunks() {
            out.push_str(chunk.valid());
            done += chunk.valid().len();
            let rest = &self.held[done..];
            // Only the end of the text can still become a character.
            let is_unfinished =
                std::str::from_utf8(rest).is_err_and(|error| error.error_len().is_none());
            if chunk.invalid().is_empty() || is_unfinished && rest.len() == chunk.invalid().len() {
                break;
            }
            out.push(char::REPLACEMENT_CHARACTER);
            done += chunk.invalid().len();
        }
        self.held.drain(..done);
    }

    /// Ends the text: an unfinished character becomes U+FFFD.
    pub(crate) fn finish(&mut self, out: &mut String) {
        if !self.held.is_empty() {
            out.push(char::REPLACEMENT_CHARACTER);
            self.held.clear();
        }
    }
}
