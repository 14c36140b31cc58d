//! A tokenizer for scripts: a vocabulary on the first line, then texts, as JSON; a line of ids each.
//!
//! The first line is a `tokenizer.json`, or the tables of a GGUF file: `{"model": "gpt2",
//! "pre_tokenizer": …, "tokens": […], "kinds": […], "merges": […], "scores": […],
//! "add_space_prefix": …}`. Each text is answered by `{"ids": […], "text": …, "is_fast": …}`, where
//! the text is that of the ids, without control tokens.
#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a tool for tests")]

use engine::{TokenKind, Vocabulary};
use openai_bridge::Tokenizer;
use serde_json::{Value, json};

fn main() {
    let mut lines = std::io::stdin().lines();
    let first = lines.next().expect("a vocabulary on the first line").unwrap();
    let description: Value = serde_json::from_str(&first).unwrap();
    let tokenizer = match description["model"].is_string() {
        true => Tokenizer::new(&vocabulary(&description)),
        false => Tokenizer::from_json(first.as_bytes()),
    };
    let tokenizer = tokenizer.unwrap_or_else(|error| panic!("{error}"));
    for line in lines {
        let text: String = serde_json::from_str(&line.unwrap()).unwrap();
        let ids = tokenizer.encode(&text, false).unwrap();
        let text = tokenizer.detokenize(&ids, false);
        println!("{}", json!({"ids": ids, "text": text, "is_fast": tokenizer.is_fast()}));
    }
}

fn vocabulary(json: &Value) -> Vocabulary {
    let list = |key: &str| json[key].as_array().into_iter().flatten();
    let texts = |key| list(key).map(|text| text.as_str().unwrap().to_owned()).collect();
    let kind = |kind: &Value| match kind.as_u64().unwrap() {
        2 => TokenKind::Unknown,
        3 => TokenKind::Control,
        4 => TokenKind::UserDefined,
        5 => TokenKind::Unused,
        6 => TokenKind::Byte,
        _ => TokenKind::Normal,
    };
    Vocabulary {
        model: json["model"].as_str().unwrap().to_owned(),
        pre_tokenizer: json["pre_tokenizer"].as_str().unwrap_or_default().to_owned(),
        tokens: texts("tokens"),
        kinds: list("kinds").map(kind).collect(),
        merges: texts("merges"),
        scores: list("scores").map(|score| score.as_f64().unwrap() as f32).collect(),
        add_space_prefix: json["add_space_prefix"].as_bool().unwrap_or_default(),
        ..Vocabulary::default()
    }
}
