//! Measures prefill and decode of a model: `decode_speed MODEL.gguf [THREADS]`.

use std::path::PathBuf;
use std::time::Instant;

use worker::runner::cpu::{CpuOptions, CpuRunner};
use worker::runner::{Entry, Runner, Wants};

/// Prompt tokens of the prefill.
const PROMPT: usize = 512;
/// Decode steps that are timed.
const STEPS: usize = 64;

#[expect(clippy::print_stdout, reason = "the example's purpose is to print")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = PathBuf::from(arguments.next().ok_or("usage: decode_speed MODEL.gguf [THREADS]")?);
    let threads = arguments.next().map_or(Ok(2), |text| text.parse())?;
    let options = CpuOptions {
        threads,
        context_length: Some(2048),
        kv_cache_bytes: 512 << 20,
        batch_tokens: PROMPT,
    };
    let mut runner = CpuRunner::load(&path, &options)?.runner;
    let prompt: Vec<u32> = (0..PROMPT as u32).map(|i| i * 37 % 40_000 + 20).collect();
    let blocks: Vec<u32> = (0..64).collect();
    let mut best = f64::INFINITY;
    for _ in 0..4 {
        let entry =
            Entry { tokens: &prompt, start: 0, blocks: &blocks, prompt: 0, wants: Wants::Last };
        let started = Instant::now();
        runner.forward(&[entry])?;
        best = best.min(started.elapsed().as_secs_f64());
    }
    println!("{threads} threads: prefill of {PROMPT}: {:.0} tokens/s", PROMPT as f64 / best);
    for batch in [1u32, 8, 16] {
        let tables: Vec<Vec<u32>> = (0..batch).map(|i| (i * 16..i * 16 + 16).collect()).collect();
        for table in &tables {
            let tokens = &prompt[..128];
            let entry = Entry { tokens, start: 0, blocks: table, prompt: 0, wants: Wants::Nothing };
            runner.forward(&[entry])?;
        }
        let mut times = Vec::new();
        for step in 0..STEPS {
            let entry = |table| Entry {
                tokens: &[5],
                start: 128 + step,
                blocks: table,
                prompt: 0,
                wants: Wants::Last,
            };
            let entries: Vec<Entry<'_>> = tables.iter().map(|table| entry(table)).collect();
            let started = Instant::now();
            runner.forward(&entries)?;
            times.push(started.elapsed().as_secs_f64());
        }
        times.sort_by(f64::total_cmp);
        let (quarter, best) = (times[STEPS / 4], times[0]);
        let rate = |time: f64| f64::from(batch) / time;
        println!("decode at batch {batch}: {:.0} tokens/s (best {:.0})", rate(quarter), rate(best));
    }
    Ok(())
}
