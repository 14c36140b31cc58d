//! Small hand-made vocabularies; the real one is tested end to end.

use proptest::prelude::*;

use engine::TokenKind;

use super::*;

/// Byte tokens 0..256, then `he`, `Ġt`, a control token and a user-defined one.
fn vocabulary() -> Vocabulary {
    let mut tokens: Vec<String> = (0..=255u8).map(spelling).collect();
    tokens.extend(["he", "Ġt", "<|end|>", "<tool>"].map(str::to_owned));
    let mut kinds = vec![TokenKind::Normal; 258];
    kinds.extend([TokenKind::Control, TokenKind::UserDefined]);
    Vocabulary {
        model: "gpt2".into(),
        pre_tokenizer: "smollm".into(),
        tokens,
        kinds,
        merges: vec!["h e".into(), "Ġ t".into()],
        bos: Some(258),
        add_bos: true,
        ..Vocabulary::default()
    }
}

fn spelling(byte: u8) -> String {
    let printable = |b: &u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    if printable(&byte) {
        return char::from(byte).to_string();
    }
    let rank = (0..byte).filter(|b| !printable(b)).count() as u32;
    char::from_u32(0x100 + rank).unwrap().to_string()
}

fn decode(ids: &[TokenId], shows_control: bool) -> String {
    let table = TokenTable::new(&vocabulary());
    let (mut decoder, mut text) = (Decoder::default(), String::new());
    for id in ids {
        decoder.push(table.bytes(*id, shows_control), &mut text);
    }
    decoder.finish(&mut text);
    text
}

#[test]
fn merges_and_added_tokens_are_found() {
    let tokenizer = Tokenizer::new(&vocabulary()).unwrap();
    assert_eq!(tokenizer.encode("he t", false).unwrap(), [256, 257]);
    assert_eq!(tokenizer.encode("he", true).unwrap(), [258, 256]);
    assert_eq!(tokenizer.encode("<|end|>he<tool>", false).unwrap(), [258, 256, 259]);
    assert_eq!(tokenizer.encode("12", false).unwrap(), [49, 50]);
    assert_eq!(tokenizer.encode("", false).unwrap(), [] as [TokenId; 0]);
    assert_eq!(tokenizer.least_tokens(70), 10);
}

#[test]
fn control_tokens_are_shown_on_demand() {
    assert_eq!(decode(&[256, 258, 259], false), "he<tool>");
    assert_eq!(decode(&[256, 258, 259], true), "he<|end|><tool>");
    assert_eq!(decode(&[9999], true), "");
}

#[test]
fn half_a_character_waits_for_its_other_half() {
    let table = TokenTable::new(&vocabulary());
    let mut decoder = Decoder::default();
    let mut push = |byte: u8| {
        let mut text = String::new();
        decoder.push(table.bytes(byte.into(), false), &mut text);
        text
    };
    let pieces: Vec<String> = "é€".bytes().map(&mut push).collect();
    assert_eq!(pieces, ["", "é", "", "", "€"]);
    assert_eq!(decode(&[0xE2, 0x82], false), "\u{FFFD}");
    assert_eq!(decode(&[0xE2, b'a'.into(), 0xFF, b'b'.into()], false), "\u{FFFD}a\u{FFFD}b");
}

#[test]
fn unknown_kinds_are_refused_by_name() {
    let refusal = |change: fn(&mut Vocabulary)| {
        let mut vocabulary = vocabulary();
        change(&mut vocabulary);
        Tokenizer::new(&vocabulary).unwrap_err().to_string()
    };
    assert!(refusal(|v| v.model = "bert".into()).contains("tokenizer `bert` is not known"));
    assert!(refusal(|v| v.pre_tokenizer = "x".into()).contains("pre-tokenizer `x` is not known"));
    assert!(refusal(|v| v.merges.push("abc".into())).contains("merge `abc`"));
}

proptest! {
    #[test]
    fn any_text_survives_the_round_trip(text in "\\PC{0,40}") {
        let tokenizer = Tokenizer::new(&vocabulary()).unwrap();
        let ids = tokenizer.encode(&text, false).map_err(|e| TestCaseError::fail(e.to_string()))?;
        prop_assert_eq!(decode(&ids, true), text);
    }

    #[test]
    fn any_bytes_decode_as_the_standard_library_decodes_them(bytes: Vec<u8>) {
        let ids: Vec<TokenId> = bytes.iter().map(|&byte| byte.into()).collect();
        prop_assert_eq!(decode(&ids, false), String::from_utf8_lossy(&bytes));
    }
}
