//! Measures both encoders of a model file's tokenizer, on one thread:
//! `cargo run --release --example tokenize_speed MODEL`.
#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a measurement for people")]

use std::time::Instant;

use openai_bridge::Tokenizer;
use worker::model::Checkpoint;

/// About 60,000 tokens of English.
const BYTES: usize = 240_000;

fn main() {
    let path = std::env::args().nth(1).expect("usage: tokenize_speed MODEL");
    let vocabulary = Checkpoint::open(path.as_ref()).unwrap().tokens.vocabulary;

    let text = include_str!("../ARCHITECTURE.md").to_owned() + include_str!("../CONTRIBUTING.md");
    let mut text = text.repeat(BYTES / text.len() + 1);
    text.truncate((0..=BYTES).rfind(|&end| text.is_char_boundary(end)).unwrap());
    let start = Instant::now();
    let fast = Tokenizer::new(&vocabulary).unwrap();
    println!("load with check: {:?}; fast path: {}", start.elapsed(), fast.is_fast());
    let start = Instant::now();
    let cold = Tokenizer::new(&vocabulary).unwrap().with_cache_bytes(0);
    println!("load again:      {:?}", start.elapsed());
    measure("ours, no cache", &cold, &text);
    measure("ours, cached", &fast, &text);
    if let Ok(reference) = Tokenizer::reference(&vocabulary) {
        measure("library", &reference, &text);
    }
}

fn measure(name: &str, tokenizer: &Tokenizer, text: &str) {
    for round in ["first", "second", "third", "fourth"] {
        let start = Instant::now();
        let tokens = tokenizer.encode(text, false).unwrap().len();
        let took = start.elapsed();
        let rate = tokens as f64 / took.as_secs_f64() / 1e6;
        println!("{name:15} {round:7} {tokens} tokens in {took:?}, {rate:.1} M tokens/s");
    }
}
