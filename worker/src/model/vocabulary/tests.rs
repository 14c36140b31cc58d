//! The tokenizer's files of a directory: what is read of them and what is refused.

use std::path::Path;

use engine::TokenKind;
use serde_json::json;

use super::*;
use crate::Error;
use crate::weights::Json;

/// Reads the tokens of a directory that holds these files.
fn read(files: &[(&str, serde_json::Value)]) -> Result<Tokens, Error> {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
    let mut config = json!({"vocab_size": 8});
    for (name, value) in files {
        match (*name, value.as_str()) {
            ("config.json", _) => config = value.clone(),
            (name, Some(text)) => write(name, text),
            (name, None) => write(name, &value.to_string()),
        }
    }
    let config = Json::parse("config.json", config.to_string().as_bytes()).unwrap();
    Tokens::from_directory(Path::new(directory.path()), &config)
}

fn tokenizer() -> serde_json::Value {
    json!({
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]},
        "added_tokens": [
            {"id": 3, "content": "<s>", "special": true},
            {"id": 4, "content": "</s>", "special": true},
            {"id": 5, "content": "<turn>", "special": true},
            {"id": 6, "content": "<think>", "special": false}
        ],
        "decoder": {"type": "ByteLevel"},
        "post_processor": {"type": "Sequence", "processors": [{"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [3]}}}]}
    })
}

#[test]
fn the_files_of_a_directory_make_one_vocabulary() {
    let settings = json!({"eos_token": {"content": "<turn>"}, "chat_template": [
        {"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]});
    let generation = json!({"eos_token_id": [4, 5]});
    let tokens = read(&[
        ("tokenizer.json", tokenizer()),
        ("tokenizer_config.json", settings),
        ("generation_config.json", generation),
    ])
    .unwrap();
    let vocabulary = tokens.vocabulary;
    assert_eq!(vocabulary.tokens, ["a", "b", "ab", "<s>", "</s>", "<turn>", "<think>", ""]);
    let (control, defined) = (TokenKind::Control, TokenKind::UserDefined);
    assert_eq!(
        vocabulary.kinds[2..],
        [TokenKind::Normal, control, control, control, defined, TokenKind::Unused]
    );
    assert_eq!((vocabulary.bos, vocabulary.add_bos, vocabulary.eos), (Some(3), true, Some(5)));
    assert_eq!(tokens.eos, [5, 4]);
    assert_eq!(vocabulary.chat_template.as_deref(), Some("plain"));
    assert_eq!(vocabulary.model, "gpt2");
}

#[test]
fn settings_and_newer_files_count_more() {
    let tokens = read(&[
        ("config.json", json!({"vocab_size": 8, "eos_token_id": 4, "bos_token_id": 3})),
        ("tokenizer.json", tokenizer()),
        ("tokenizer_config.json", json!({"add_bos_token": false, "chat_template": "old"})),
        ("chat_template.jinja", json!("new")),
    ])
    .unwrap();
    assert_eq!(tokens.eos, [4]);
    assert_eq!((tokens.vocabulary.bos, tokens.vocabulary.add_bos), (Some(3), false));
    assert_eq!(tokens.vocabulary.chat_template.as_deref(), Some("new"));
}

#[test]
fn pieces_have_bytes_and_an_unknown_token() {
    let tokenizer = json!({
        "model": {"type": "BPE", "unk_token": "<unk>",
            "vocab": {"<unk>": 0, "<0x0A>": 1, "\u{2581}a": 2}, "merges": []},
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}]}
    });
    let vocabulary = read(&[("tokenizer.json", tokenizer)]).unwrap().vocabulary;
    assert_eq!(vocabulary.model, "llama");
    let kinds = [TokenKind::Unknown, TokenKind::Byte, TokenKind::Normal, TokenKind::Unused];
    assert_eq!(vocabulary.kinds[..4], kinds);
}

#[test]
fn refusals_name_file_and_field() {
    let with = |name, value| read(&[("tokenizer.json", tokenizer()), (name, value)]);
    let broken = |value| read(&[("tokenizer.json", value)]);
    let large = json!({"model": {"vocab": {"a": 99999999999u64}}});
    let mut far = tokenizer();
    far["post_processor"]["processors"][0]["special_tokens"]["<s>"]["ids"][0] = 8.into();
    let cases = [
        (read(&[]), "tokenizer.json"),
        (broken(far), "`tokenizer.json`: `post_processor`: token 8 is not one of the 8"),
        (broken(json!("[")), "`tokenizer.json`: invalid type: sequence"),
        (broken(json!({})), "`tokenizer.json`: `model`: is missing"),
        (broken(json!({"model": {}})), "`vocab`: expected an object or a list"),
        (broken(large), "`vocab`: token 99999999999 is not one of the 8 of `vocab_size`"),
        (broken(json!({"model": {"vocab": {"a": -1}}})), "`vocab`: expected a number"),
        (
            with("tokenizer_config.json", json!({"eos_token": "<nothing>"})),
            "`tokenizer_config.json`: `eos_token`: is no token of `tokenizer.json`",
        ),
        (
            with("generation_config.json", json!({"eos_token_id": [1, 8]})),
            "`generation_config.json`: `eos_token_id`: expected numbers of tokens below 8",
        ),
        (
            with("tokenizer_config.json", json!({"chat_template": [{"name": "x"}]})),
            "`chat_template`: expected a template called `default`",
        ),
        (with("config.json", json!({})), "`config.json`: `vocab_size`: is missing"),
    ];
    for (outcome, expected) in cases {
        let error = outcome.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}\nexpected {expected}");
    }
}
