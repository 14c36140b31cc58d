//! The real model's tokenizer, read from its GGUF file, against ids of the reference tokenizer.
//!
//! The golden file was made by `openai-bridge/tests/golden/make_ids.py`.

#[path = "support/real_models.rs"]
mod real_models;

use std::path::PathBuf;

use openai_bridge::Tokenizer;
use worker::model::Checkpoint;

use real_models::real_model;

fn model() -> PathBuf {
    real_model("SmolLM2-135M-Instruct.Q4_1.gguf")
}

#[test]
fn ids_are_those_of_the_reference() {
    let vocabulary = Checkpoint::open(&model()).unwrap().tokens.vocabulary;
    let tokenizer = Tokenizer::new(&vocabulary).unwrap();
    let golden = include_str!("../openai-bridge/tests/golden/smollm2_ids.json");
    let golden: serde_json::Value = serde_json::from_str(golden).unwrap();
    let cases = golden.as_array().unwrap();
    assert!(cases.len() >= 30, "the golden file has only {} texts", cases.len());
    for case in cases {
        let text = case["text"].as_str().unwrap();
        let expected: Vec<u64> =
            case["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect();
        let ids: Vec<u64> =
            tokenizer.encode(text, false).unwrap().into_iter().map(u64::from).collect();
        assert_eq!(ids, expected, "{text:?}");
    }
}

#[test]
fn the_fast_path_gives_the_librarys_ids_on_long_texts() {
    let vocabulary = Checkpoint::open(&model()).unwrap().tokens.vocabulary;
    let ours = Tokenizer::new(&vocabulary).unwrap();
    let library = Tokenizer::reference(&vocabulary).unwrap();
    assert!(ours.is_fast() && !library.is_fast());
    // Prose, code, numbers, then every character that is not rare.
    let golden = include_str!("../openai-bridge/tests/golden/smollm2_ids.json");
    let prose = [include_str!("../ARCHITECTURE.md"), include_str!("tidy.rs"), golden].concat();
    let characters: String = ('\0'..='\u{FFFF}').chain('\u{1F300}'..='\u{1FAFF}').collect();
    let scattered: String = characters.chars().flat_map(|c| [c, ' ', c, 'a']).collect();
    for text in [prose, characters, scattered] {
        let ids = ours.encode(&text, false).unwrap();
        assert_eq!(ids, library.encode(&text, false).unwrap());
        assert_eq!(ids, ours.encode(&text, false).unwrap(), "remembered");
    }
}
