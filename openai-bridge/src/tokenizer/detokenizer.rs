//! Tokens to text, one at a time, without ever giving half of a character.

use engine::{TokenId, TokenKind, Vocabulary};

use super::pieces::SPACE;

/// The bytes of every token, in one piece of memory.
#[derive(Debug)]
pub(crate) struct TokenTable {
    bytes: Vec<u8>,
    /// Where each token begins, and the end of the last.
    starts: Vec<u32>,
    /// Whether a token steers the model and is not text.
    is_control: Vec<bool>,
    /// Whether a space at the start of a whole text is not part of it.
    strips_space: bool,
}

/// How a vocabulary spells bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spelling {
    /// One letter for each byte, as GPT-2 has it.
    Letters,
    /// Text in which `▁` is a space, and tokens like `<0x0A>` for single bytes.
    Pieces {
        /// Whether a space at the start of a whole text is not part of it.
        strips_space: bool,
    },
    /// Words of which those that begin with `##` continue the one before, as BERT has them.
    Words {
        /// Whether no space stands before punctuation and endings like `'s`.
        cleans: bool,
    },
}

/// What has no space before it where a decoder cleans up.
const CLOSING: [&str; 10] = [".", "?", "!", ",", "n't", "'m", "'s", "'ve", "'re", "'"];

impl TokenTable {
    /// Makes the table of a model file's vocabulary.
    pub(crate) fn new(vocabulary: &Vocabulary) -> Self {
        let spelling = match vocabulary.model.as_str() {
            "llama" => Spelling::Pieces { strips_space: vocabulary.add_space_prefix },
            _ => Spelling::Letters,
        };
        let kind = |index: usize| vocabulary.kinds.get(index).copied().unwrap_or_default();
        let tokens = vocabulary.tokens.iter().enumerate();
        Self::spelled(spelling, tokens.map(|(index, token)| (token.as_str(), kind(index))))
    }

    /// Makes the table of tokens in the order of their ids.
    pub(super) fn spelled<'a>(
        spelling: Spelling,
        tokens: impl Iterator<Item = (&'a str, TokenKind)>,
    ) -> Self {
        let letters = letters();
        let strips_space = match spelling {
            Spelling::Letters => false,
            Spelling::Pieces { strips_space } => strips_space,
            Spelling::Words { .. } => true,
        };
        let (bytes, starts, is_control) = (Vec::new(), vec![0], Vec::new());
        let mut table = Self { bytes, starts, is_control, strips_space };
        for (token, kind) in tokens {
            let is_text = !matches!(kind, TokenKind::Control | TokenKind::UserDefined);
            match spelling {
                Spelling::Letters => {
                    let bytes = token.chars().map(|letter| letters.get(&letter).copied());
                    match bytes.collect::<Option<Vec<u8>>>().filter(|_| is_text) {
                        Some(bytes) => table.bytes.extend(bytes),
                        None => table.bytes.extend(token.as_bytes()),
                    }
                }
                Spelling::Pieces { .. } => match byte(token).filter(|_| is_text) {
                    Some(byte) => table.bytes.push(byte),
                    None => table.bytes.extend(token.replace(SPACE, " ").as_bytes()),
                },
                Spelling::Words { cleans } => match token.strip_prefix("##") {
                    Some(rest) if !rest.is_empty() => table.bytes.extend(rest.as_bytes()),
                    _ => {
                        let is_closing = cleans && CLOSING.contains(&token);
                        table.bytes.extend(if is_closing { &b""[..] } else { b" " });
                        table.bytes.extend(token.as_bytes());
                    }
                },
            }
            table.starts.push(table.bytes.len() as u32);
            let is_unknown = kind == TokenKind::Unknown && spelling != Spelling::Letters;
            table.is_control.push(kind == TokenKind::Control || is_unknown);
        }
        table
    }

    /// Returns whether there is a token of this id.
    pub(crate) fn has(&self, token: TokenId) -> bool {
        (token as usize) < self.is_control.len()
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

    /// Returns a whole text. What continues a text is decoded token by token, since the space that
    /// begins it belongs to it.
    pub(crate) fn text(&self, tokens: &[TokenId], shows_control: bool) -> String {
        let (mut decoder, mut text) = (Decoder::default(), String::new());
        for token in tokens {
            decoder.push(self.bytes(*token, shows_control), &mut text);
        }
        decoder.finish(&mut text);
        if self.strips_space && text.starts_with(' ') {
            text.remove(0);
        }
        text
    }
}

/// Returns the byte of a token like `<0x0A>`.
pub(super) fn byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    let is_byte = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    is_byte.then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

/// Returns the byte that each letter of byte-level BPE stands for: printable bytes are
/// themselves, the others follow from U+0100 on.
pub(super) fn letters() -> std::collections::HashMap<char, u8> {
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
