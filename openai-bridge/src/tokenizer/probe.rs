//! The text on which the fast encoder is compared with the reference when a model is loaded.

use super::detokenizer::letters;
use super::fast::{Fast, Part};

/// What tokenizers disagree about: contractions, digits, spaces, lines, scripts, marks, emoji.
const TEXT: &str = "The quick brown fox didn't jump; IT'S we'LL they\u{2019}re 'ſ I'd've.\n\n\
    x = [1, 22, 333, 4444, 1234567]  # comment\r\n\tif (a != b) {\r\n\t\treturn a->b++;\n    }\n\n\n\
    3.14159 \u{0663}\u{0664}\u{0665} ½ ² Ⅷ HTTPServer camelCase snake_case SCREAMING \u{01C5}ungla\n\
     leading and trailing   spaces \t \n \u{00A0}\u{2003}\u{3000} é e\u{0301} \u{1100}\u{1161} ñandú\n\
    Привет, мир! Γειά σου Κόσμε; שָׁלוֹם مرحبا بالعالم नमस्ते दुनिया สวัสดี 안녕하세요 世界你好，こんにちは。カタカナ\n\
    👍🏽 👩‍👩‍👧‍👦 🇫🇷 \u{FE0F} \u{200B}\u{200D} \u{FFFD} \u{10FFFF} \u{0} \u{7F} \u{85} https://a.b/c?d=e&f=g%20h <b>&amp;</b> \
    !!! ... --- ??!? $100 €5 ©® ~`^|\\ 'quoted' \"double\" «guillemets» /path/to//file \
    aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa \
                                                                      end ";

/// How many of the vocabulary's own tokens are spelled out besides.
const SPELLED: usize = 4000;

/// Returns whether both give the same tokens.
pub(super) fn agrees(reference: &tokenizers::Tokenizer, fast: &Fast, tokens: &[String]) -> bool {
    let letters = letters();
    let mut text = TEXT.to_owned();
    for token in tokens.iter().step_by(tokens.len() / SPELLED + 1) {
        let bytes: Option<Vec<u8>> =
            token.chars().map(|letter| letters.get(&letter).copied()).collect();
        let bytes = bytes.unwrap_or_else(|| token.as_bytes().to_vec());
        text.push_str(&String::from_utf8_lossy(&bytes));
    }
    // A second time, from the memory of the first.
    text.push_str(TEXT);
    super::encode(reference, &text).is_ok_and(|expected| encode(fast, &text) == expected)
}

fn encode(fast: &Fast, text: &str) -> Vec<engine::TokenId> {
    let mut tokens = Vec::new();
    for part in fast.parts(text) {
        match part {
            Part::Token(token) => tokens.push(token),
            Part::Text(text, is_first) => fast.encode(text, is_first, &mut tokens),
        }
    }
    tokens
}
