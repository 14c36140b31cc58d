//! The bytes that each token of a vocabulary stands for.

use std::collections::HashMap;

use engine::{TokenKind, Vocabulary};

/// Marks the name of a token that is not text; no UTF-8 has this byte.
pub(super) const SPECIAL: u8 = 0xFF;

/// The longest token that a constraint can use, in bytes.
const LONGEST: usize = 1000;

/// Returns the bytes of every token. A control token is its name behind the byte 0xFF; what can
/// never stand in a text is empty.
pub(super) fn spell(vocabulary: &Vocabulary) -> Vec<Vec<u8>> {
    let letters = letters();
    let is_sentence_piece = vocabulary.model == "llama";
    let spell = |(index, token): (usize, &String)| {
        let kind = vocabulary.kinds.get(index).copied().unwrap_or_default();
        let bytes = match kind {
            TokenKind::Control => [&[SPECIAL], token.as_bytes()].concat(),
            TokenKind::Unknown | TokenKind::Unused => Vec::new(),
            TokenKind::UserDefined => token.as_bytes().to_vec(),
            TokenKind::Byte => hexadecimal(token).into_iter().collect(),
            TokenKind::Normal if is_sentence_piece => token.replace('\u{2581}', " ").into_bytes(),
            TokenKind::Normal => {
                let bytes: Option<Vec<u8>> =
                    token.chars().map(|letter| letters.get(&letter).copied()).collect();
                bytes.unwrap_or_else(|| token.as_bytes().to_vec())
            }
        };
        let is_misleading = kind != TokenKind::Control && bytes.first() == Some(&SPECIAL);
        if is_misleading || bytes.len() > LONGEST { Vec::new() } else { bytes }
    };
    vocabulary.tokens.iter().enumerate().map(spell).collect()
}

/// Reads `<0xNN>`.
fn hexadecimal(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    u8::from_str_radix(digits, 16).ok()
}

/// Returns the byte that each letter of byte-level BPE stands for: printable bytes are
/// themselves, the others follow from U+0100 on.
fn letters() -> HashMap<char, u8> {
    let is_printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let hidden = (0..=u8::MAX).filter(|&byte| !is_printable(byte));
    let printable = (0..=u8::MAX).filter(|&byte| is_printable(byte));
    printable.map(|byte| (char::from(byte), byte)).chain(('\u{100}'..).zip(hidden)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(model: &str, cases: &[(&str, TokenKind, &[u8])]) {
        let vocabulary = Vocabulary {
            model: model.into(),
            tokens: cases.iter().map(|(token, ..)| (*token).to_owned()).collect(),
            kinds: cases.iter().map(|(_, kind, _)| *kind).collect(),
            ..Vocabulary::default()
        };
        for (bytes, (token, _, expected)) in spell(&vocabulary).iter().zip(cases) {
            assert_eq!(bytes, expected, "{model}: {token}");
        }
    }

    #[test]
    fn tokens_are_spelled_as_their_tokenizer_does() {
        check(
            "gpt2",
            &[
                ("Ġthe", TokenKind::Normal, b" the"),
                ("Ċ", TokenKind::Normal, b"\n"),
                ("Ã©", TokenKind::Normal, "é".as_bytes()),
                ("ÿ", TokenKind::Normal, b""),
                ("Ġa", TokenKind::UserDefined, "Ġa".as_bytes()),
                ("<think>", TokenKind::UserDefined, b"<think>"),
                ("<|im_end|>", TokenKind::Control, b"\xFF<|im_end|>"),
                ("x", TokenKind::Unused, b""),
            ],
        );
        check(
            "llama",
            &[
                ("▁the", TokenKind::Normal, b" the"),
                ("Ġ", TokenKind::Normal, "Ġ".as_bytes()),
                ("<0x0A>", TokenKind::Byte, b"\n"),
                ("<0xZZ>", TokenKind::Byte, b""),
                ("<unk>", TokenKind::Unknown, b""),
                ("</s>", TokenKind::Control, b"\xFF</s>"),
            ],
        );
    }

    #[test]
    fn a_token_that_is_too_long_is_no_text() {
        let long = "x".repeat(LONGEST + 1);
        check("gpt2", &[(&long, TokenKind::Normal, b"")]);
    }
}
