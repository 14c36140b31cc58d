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

/// A tokenizer of `a`, `b` and `ab` with a decoder.
fn json(decoder: &str) -> String {
    let model = r#"{"type": "BPE", "vocab": {"▁": 0, "a": 1, "b": 2, "ab": 3}, "merges": ["a b"]}"#;
    let added = r#"[{"id": 4, "content": "<s>", "special": true, "single_word": false,
        "lstrip": false, "rstrip": false, "normalized": false}]"#;
    let before =
        r#"{"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false}"#;
    let after = r#"{"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>",
        "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}], "pair": [{"Sequence":
        {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}], "special_tokens":
        {"<s>": {"id": "<s>", "ids": [4], "tokens": ["<s>"]}}}"#;
    format!(
        r#"{{"version": "1.0", "model": {model}, "added_tokens": {added}, "decoder": {decoder},
        "pre_tokenizer": {before}, "post_processor": {after}, "normalizer": null}}"#
    )
}

#[test]
fn a_tokenizer_json_counts_more_than_tables() {
    let metaspace = r#"{"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first"}"#;
    let tokenizer = Tokenizer::from_json(json(metaspace).as_bytes()).unwrap();
    assert!(tokenizer.is_fast());
    assert_eq!(tokenizer.encode("ab b", true).unwrap(), [4, 0, 3, 0, 2]);
    assert_eq!(tokenizer.encode("<s>ab", false).unwrap(), [4, 3]);
    assert_eq!(tokenizer.detokenize(&[0, 3, 0, 2, 4], false), "ab b");
    assert_eq!(tokenizer.detokenize(&[0, 3, 4], true), "ab<s>");

    let vocabulary = Vocabulary { json: Some(json(metaspace)), ..vocabulary() };
    let tokenizer = Tokenizer::new(&vocabulary).unwrap();
    assert_eq!(tokenizer.encode("ab", false).unwrap(), [0, 3]);
}

#[test]
fn a_tokenizer_json_that_cannot_be_decoded_is_refused_by_name() {
    let refusal = |json: &str| Tokenizer::from_json(json.as_bytes()).unwrap_err().to_string();
    let letters = r###"{"type": "BPEDecoder", "suffix": "</w>"}"###;
    assert!(refusal(&json(letters)).contains("decoder `BPEDecoder` is not known"));
    assert!(refusal(&json("null")).contains("decoder `null` is not known"));
    assert!(refusal("{").contains("`tokenizer.json`"));
}

#[test]
fn sentence_piece_merges_the_best_score_first_and_the_leftmost_of_equals() {
    let tokens = ["<unk>", "▁", "a", "b", "ab", "ba", "▁a", "aa", "x"];
    let scores = vec![0.0, -9.0, -9.0, -9.0, -1.0, -0.5, -2.0, -3.0, -9.0];
    let kinds = [vec![TokenKind::Unknown], vec![TokenKind::Normal; tokens.len() - 1]].concat();
    let tokens = tokens.map(str::to_owned).to_vec();
    let vocabulary =
        Vocabulary { model: "llama".into(), tokens, kinds, scores, ..Vocabulary::default() };
    let tokenizer = Tokenizer::new(&vocabulary).unwrap();
    let encode = |text: &str| tokenizer.encode(text, false).unwrap();
    assert_eq!(encode("ab"), [4]);
    assert_eq!(encode("aba"), [2, 5]);
    assert_eq!(encode("aaa"), [7, 2]);
    assert_eq!(encode(" ax"), [6, 8]);
    assert_eq!(encode("a??b"), [2, 0, 3]);
    assert_eq!(tokenizer.detokenize(&[6, 0, 3], false), " ab");

    // Time in proportion to the text, whatever it is made of.
    assert_eq!(encode(&" ".repeat(200_000)).len(), 200_000);
    assert_eq!(encode(&"ba".repeat(100_000)), [5; 100_000]);

    let spaced = Tokenizer::new(&Vocabulary { add_space_prefix: true, ..vocabulary }).unwrap();
    assert_eq!(spaced.encode("a", false).unwrap(), [6]);
    assert_eq!(spaced.detokenize(&[6, 1, 3], false), "a b");
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

/// An encoder's file: words and their endings, `[CLS]` and `[SEP]` around a text.
const WORD_PIECES: &str = r###"{
    "truncation": {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
    "padding": {"strategy": {"Fixed": 9}, "direction": "Right", "pad_id": 0, "pad_type_id": 0,
                "pad_token": "[PAD]", "pad_to_multiple_of": null},
    "added_tokens": [
        {"id": 0, "content": "[PAD]", "special": true, "single_word": false, "lstrip": false,
         "rstrip": false, "normalized": false},
        {"id": 2, "content": "[CLS]", "special": true, "single_word": false, "lstrip": false,
         "rstrip": false, "normalized": false},
        {"id": 3, "content": "[SEP]", "special": true, "single_word": false, "lstrip": false,
         "rstrip": false, "normalized": false}],
    "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                   "strip_accents": null, "lowercase": true},
    "pre_tokenizer": {"type": "BertPreTokenizer"},
    "post_processor": {"type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}},
                   {"Sequence": {"id": "A", "type_id": 0}},
                   {"SpecialToken": {"id": "[SEP]", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]},
                           "[SEP]": {"id": "[SEP]", "ids": [3], "tokens": ["[SEP]"]}}},
    "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
    "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
              "max_input_chars_per_word": 100,
              "vocab": {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "cat": 4, "##s": 5,
                        "sleep": 6, ".": 7, "é": 8, "e": 9}}}"###;

#[test]
fn a_framing_tokenizer_puts_whole_texts_between_tokens() {
    let tokenizer = Tokenizer::framing(WORD_PIECES.as_bytes()).unwrap();
    let long = [2, 4, 5, 6, 7, 4, 5, 3];
    assert_eq!(tokenizer.encode("Cats SLEEP. cats", true).unwrap(), long, "neither cut nor padded");
    assert_eq!(tokenizer.encode("Cats sleep.", false).unwrap(), [4, 5, 6, 7]);
    assert_eq!(tokenizer.encode("É dogs", true).unwrap(), [2, 9, 1, 3]);
    assert_eq!(tokenizer.encode("", true).unwrap(), [2, 3]);
    let cut = |most| tokenizer.encode_cut("Cats SLEEP. cats", most).unwrap();
    assert_eq!(cut(8), long);
    assert_eq!(cut(5), [2, 4, 5, 6, 3], "the frame stays");
    assert_eq!((cut(2), cut(1)), (vec![2, 3], vec![2]));
    assert_eq!(tokenizer.detokenize(&long, false), "cats sleep. cats");
    assert_eq!(tokenizer.detokenize(&long, true), "[CLS] cats sleep. cats [SEP]");
}
