//! The laws of both encoders: ours gives the library's tokens, remembering changes nothing.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use engine::{TokenKind, Vocabulary};
use proptest::prelude::*;

use super::*;

/// One name for each way to cut a text.
const PRE_TOKENIZERS: [&str; 16] = [
    "gpt-2",
    "smollm",
    "llama-bpe",
    "qwen2",
    "qwen35",
    "deepseek-r1-qwen",
    "deepseek-llm",
    "deepseek-coder",
    "deepseek-v3",
    "falcon",
    "gpt-4o",
    "tekken",
    "seed-coder",
    "minicpm5",
    "bailingmoe",
    "viking",
];

/// Words that the vocabulary has merges for, all of which are tokens.
const WORDS: [&str; 16] = [
    "the", " the", " quick", " don", "'t", " 12", "123", "  ", "\n\n", " \n", "é", " né", "世界",
    "ing", " HTTP", "()",
];

/// Returns a byte-level vocabulary with merges that make up [`WORDS`] from left to right.
fn vocabulary(pre_tokenizer: &str, lacks_bytes: bool) -> Vocabulary {
    let letters: std::collections::HashMap<u8, char> =
        detokenizer::letters().into_iter().map(|(letter, byte)| (byte, letter)).collect();
    let is_kept = |byte: &u8| !lacks_bytes || !matches!(byte, 4 | 6 | b'Q' | 0xF1);
    let mut tokens: Vec<String> =
        (0..=255u8).filter(is_kept).map(|byte| letters[&byte].to_string()).collect();
    let mut merges = Vec::new();
    let mut known = BTreeSet::new();
    for word in WORDS {
        let spelled: Vec<char> = word.bytes().map(|byte| letters[&byte]).collect();
        let mut left = spelled[0].to_string();
        for letter in &spelled[1..] {
            let merged = format!("{left}{letter}");
            if known.insert(merged.clone()) {
                merges.push(format!("{left} {letter}"));
                tokens.push(merged.clone());
            }
            left = merged;
        }
    }
    // A token that no merge makes: only those that ignore merges find it.
    tokens.push("Ġwhole".into());
    let mut kinds = vec![TokenKind::Normal; tokens.len()];
    tokens.extend(["<|end|>", "<|end|>>", "<tool>"].map(str::to_owned));
    kinds.extend([TokenKind::Control, TokenKind::Control, TokenKind::UserDefined]);
    let (model, pre_tokenizer) = ("gpt2".into(), pre_tokenizer.into());
    Vocabulary { model, pre_tokenizer, tokens, kinds, merges, ..Vocabulary::default() }
}

/// Pairs of ours and the library's tokenizer.
static PAIRS: LazyLock<Vec<(Tokenizer, Tokenizer)>> = LazyLock::new(|| {
    let vocabularies = PRE_TOKENIZERS.map(|name| vocabulary(name, false));
    let lacking = ["gpt-2", "llama-bpe"].map(|name| vocabulary(name, true));
    let pair = |vocabulary: &Vocabulary| {
        (Tokenizer::new(vocabulary).unwrap(), Tokenizer::reference(vocabulary).unwrap())
    };
    vocabularies.iter().chain(&lacking).map(pair).collect()
});

/// Texts of all that tokenizers disagree about.
pub(super) fn text() -> impl Strategy<Value = String> {
    let known = prop::sample::select(&WORDS[..]).prop_map(str::to_owned);
    let hard = [
        "<|end|>",
        "<|end|>>",
        "<tool>",
        "<|en",
        " whole",
        "e\u{301}",
        "\u{1100}\u{1161}",
        "ſ",
        "'S",
        "'LL",
        "\r\n",
        "\t",
        "\u{a0}",
        "\u{3000}",
        "\u{2028}",
        "\u{85}",
        "½",
        "٣",
        "Ⅷ",
        "👩‍👩‍👧‍👦",
        "\u{fffd}",
        "\u{0}",
        "_",
        "$",
        "`",
        "।",
        "…",
        "가나다",
        "カタ",
        "ǅu",
        "AbC",
        "1234567",
        "Q",
        "\u{4}",
        "ñ",
    ];
    let hard = prop::sample::select(hard.to_vec()).prop_map(str::to_owned);
    let any =
        prop_oneof!["[ -~]{1,12}", "\\PC{1,4}", "[a-z]{1,40}", "[ \\n\\t]{1,6}", "[0-9]{1,7}"];
    let piece = prop_oneof![4 => known, 3 => hard, 3 => any];
    prop::collection::vec(piece, 0..30).prop_map(|pieces| pieces.concat())
}

#[test]
fn every_way_to_cut_a_text_is_fast() {
    for ((ours, _), name) in PAIRS.iter().zip(PRE_TOKENIZERS) {
        assert!(ours.is_fast(), "{name} is left to the library");
    }
}

#[test]
fn what_differs_from_the_library_is_left_to_it() {
    let vocabulary = vocabulary("llama-bpe", false);
    let preset = presets::preset("llama-bpe").unwrap();
    let reference = gguf::reference(&vocabulary, &preset).unwrap();
    let other = presets::Preset { ignores_merges: false, ..preset };
    let fast = gguf::fast(&vocabulary, &other);
    let encoder = Encoder::checked(reference, fast, &vocabulary.tokens);
    assert!(matches!(encoder, Encoder::Reference(_)));
}

#[test]
fn words_longer_than_any_memory_are_the_librarys_too() {
    let text = ["the".repeat(3000), " ".repeat(3000), "世界".repeat(3000), "é\n".repeat(3000)];
    for (ours, library) in PAIRS.iter().step_by(3) {
        let text = text.concat();
        assert_eq!(ours.encode(&text, false).unwrap(), library.encode(&text, false).unwrap());
    }
}

proptest! {
    #[test]
    fn ours_gives_the_tokens_of_the_library(text in text()) {
        for (index, (ours, library)) in PAIRS.iter().enumerate() {
            let ids = ours.encode(&text, false).unwrap();
            prop_assert_eq!(ids, library.encode(&text, false).unwrap(), "{:?}", PRE_TOKENIZERS.get(index));
        }
    }

    /// A conversation grows turn by turn; what is remembered is little, so that texts give way.
    #[test]
    fn remembering_changes_nothing(turns in prop::collection::vec(text(), 1..6), repeats in 1usize..20) {
        let vocabulary = vocabulary("gpt-2", false);
        let plain = Tokenizer::new(&vocabulary).unwrap().with_cache_bytes(0);
        let remembering = Tokenizer::new(&vocabulary).unwrap().with_cache_bytes(20_000);
        let mut prompt = String::new();
        for turn in turns {
            prompt.push_str(&turn.repeat(repeats));
            prompt.push_str("<|end|>");
            let expected = plain.encode(&prompt, false).unwrap();
            prop_assert_eq!(&remembering.encode(&prompt, false).unwrap(), &expected);
            prop_assert_eq!(&remembering.encode(&prompt, false).unwrap(), &expected);
        }
    }
}
