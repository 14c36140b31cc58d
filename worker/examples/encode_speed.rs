//! Measures an encoder: `encode_speed DIRECTORY [THREADS]`, texts a second at some lengths.

use std::path::PathBuf;
use std::time::Instant;

use worker::encode::{Encoder, EncoderOptions};

/// Texts of a pass and tokens of each.
const SHAPES: [(usize, usize); 4] = [(1, 32), (1, 128), (8, 128), (32, 16)];

/// Passes of which the best is told.
const PASSES: usize = 12;

#[expect(clippy::print_stdout, reason = "the example's purpose is to print")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let directory = PathBuf::from(arguments.next().ok_or("expected DIRECTORY [THREADS]")?);
    let threads = arguments.next().map_or(Ok(2), |threads| threads.parse())?;
    let options = EncoderOptions { threads, context_length: None };
    let mut encoder = Encoder::load(&directory, &options)?.encoder;
    for (count, length) in SHAPES {
        let text: Vec<u32> = (0..length as u32).map(|i| 1000 + i * 37 % 20_000).collect();
        let texts: Vec<&[u32]> = (0..count).map(|_| &text[..]).collect();
        let mut best = f64::INFINITY;
        for _ in 0..PASSES {
            let started = Instant::now();
            let vectors = encoder.embed(&texts);
            assert_eq!(vectors.len(), count);
            best = best.min(started.elapsed().as_secs_f64());
        }
        println!(
            "{threads} threads, {count} texts of {length} tokens: {:.2} ms, {:.0} texts/s",
            best * 1e3,
            count as f64 / best
        );
    }
    Ok(())
}
