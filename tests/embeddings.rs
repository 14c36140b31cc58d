//! The vectors of a real encoder, all-MiniLM-L6-v2, against those of sentence-transformers.
//!
//! The golden file was made by `scripts/golden_embeddings.py`.

#[path = "support/real_models.rs"]
mod real_models;

use std::path::PathBuf;

use openai_bridge::{Input, TextBridge};
use worker::encode::{Encoder, EncoderOptions, Loaded, is_encoder};

use real_models::real_model;

fn model() -> PathBuf {
    real_model("all-MiniLM-L6-v2")
}

fn cosine_distance(a: &[f32], b: &[f64]) -> f64 {
    let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let a: Vec<f64> = a.iter().map(|&value| f64::from(value)).collect();
    1.0 - product(&a, b) / (product(&a, &a) * product(b, b)).sqrt()
}

#[test]
fn vectors_are_those_of_sentence_transformers() {
    let path = model();
    assert!(is_encoder(&path).unwrap());
    let mut seen: Option<Vec<Vec<f32>>> = None;
    for threads in [1, 2] {
        let options = EncoderOptions { threads, context_length: None };
        let Loaded { mut encoder, card, vocabulary } = Encoder::load(&path, &options).unwrap();
        let bridge = TextBridge::encoder(&card, &vocabulary).unwrap();
        let golden: serde_json::Value =
            serde_json::from_str(include_str!("data/minilm.json")).unwrap();
        let (mut requests, mut expected) = (Vec::new(), Vec::new());
        for case in golden.as_array().unwrap() {
            let input = Input::Text(case["text"].as_str().unwrap().to_owned());
            let truncation = case["is_cut"].as_bool().unwrap().then_some(usize::MAX);
            let request = bridge.embedding(&input, truncation).unwrap();
            assert_eq!(request.tokens.len() as u64, case["tokens"], "{input:?}");
            requests.push(request);
            let vector = case["vector"].as_array().unwrap().iter();
            expected.push(vector.map(|value| value.as_f64().unwrap()).collect::<Vec<_>>());
        }
        assert!(requests.len() >= 20, "the golden file has only {} texts", requests.len());
        let texts: Vec<&[u32]> = requests.iter().map(|request| &request.tokens[..]).collect();
        let vectors: Vec<Vec<f32>> =
            encoder.embed(&texts).into_iter().map(|vector| vector.values).collect();
        for (index, (got, expected)) in vectors.iter().zip(&expected).enumerate() {
            let distance = cosine_distance(got, expected);
            assert!(distance <= 1e-6, "text {index}: cosine distance {distance:e}");
            let alone = &encoder.embed(&texts[index..=index])[0].values;
            assert_eq!(alone, got, "text {index} alone");
        }
        assert_eq!(*seen.get_or_insert_with(|| vectors.clone()), vectors, "{threads} threads");
    }
}
