//! Measures draws of one token from a model's logits: `draw_speed LOGITS.f16 VOCABULARY`, with the rows
//! that `tests/golden/make_golden.py` writes, `[rows, vocabulary]`.
//!
//! For each choice of sampling parameters it prints the median time of a draw and that of the fastest
//! quarter.

use std::time::Instant;

use engine::Sampling;
use half::f16;
use worker::bench::draw;

/// How often each row is drawn from.
const ROUNDS: usize = 500;

const USAGE: &str = "usage: draw_speed LOGITS.f16 VOCABULARY";

/// Reads rows of logits.
fn rows(path: &str, vocabulary: usize) -> Result<Vec<Vec<f32>>, Box<dyn std::error::Error>> {
    let bytes = std::fs::read(path)?;
    if vocabulary == 0 || bytes.is_empty() || !bytes.len().is_multiple_of(2 * vocabulary) {
        let length = bytes.len();
        let text = format!("{path}: expected rows of {vocabulary} numbers, got {length} bytes");
        return Err(text.into());
    }
    let number = |two: &[u8]| f16::from_le_bytes([two[0], two[1]]).to_f32();
    let row = |row: &[u8]| row.chunks_exact(2).map(number).collect();
    Ok(bytes.chunks_exact(2 * vocabulary).map(row).collect())
}

#[expect(clippy::print_stdout, reason = "the example's purpose is to print")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [path, vocabulary] = &arguments[..] else { return Err(USAGE.into()) };
    let rows = rows(path, vocabulary.parse()?)?;
    let warm = Sampling { temperature: 1.0, seed: Some(1), ..Sampling::default() };
    let top_k = |top_k| (format!("top-k {top_k}"), Sampling { top_k, ..warm.clone() }, None);
    let top_p = |top_p| (format!("top-p {top_p}"), Sampling { top_p, ..warm.clone() }, None);
    let settings = [
        ("greedy".to_owned(), Sampling::default(), None),
        ("temperature 1".to_owned(), warm.clone(), None),
        ("min-p 0.05".to_owned(), Sampling { min_p: 0.05, ..warm.clone() }, None),
        top_p(0.5),
        top_p(0.9),
        top_p(0.99),
        top_k(50),
        top_k(512),
        top_k(2_000),
        top_k(20_000),
        ("greedy, its log-probability".to_owned(), Sampling::default(), Some(0)),
        ("greedy, 20 log-probabilities".to_owned(), Sampling::default(), Some(20)),
    ];
    let started = Instant::now();
    for (name, sampling, top) in settings {
        let times = draw(&sampling, top, &rows, ROUNDS, || started.elapsed());
        println!("{name:29} {:4} µs, {:4}", times.median.as_micros(), times.quarter.as_micros());
    }
    Ok(())
}
