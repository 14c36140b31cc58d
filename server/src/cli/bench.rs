//! `stator bench engine`: how fast a model runs here, and which share of the memory's speed it is.

use std::fmt::Write;
use std::path::PathBuf;
use std::time::Instant;

use worker::bench::{Times, Workload, decode, prefill, read_bandwidth};
use worker::runner::cpu::{CpuOptions, CpuRunner};

use crate::args::{BenchEngineArgs, threads};
use crate::models::source::{Place, Source, model_dir};

/// How often the prefill is timed.
const PREFILLS: usize = 4;
/// How often the memory is read through; the best counts.
const READS: usize = 15;
/// The most bytes that are read to measure the memory: far above what caches hold.
const MOST_READ: usize = 1 << 30;
/// Tokens of one forward pass.
const BATCH_TOKENS: usize = 512;

/// Measures a model and returns what to print: tokens per second at the median and at best, the
/// memory's read bandwidth, and the share of it that decoding alone reaches.
///
/// Errors: the model cannot be loaded, or has no room for what is asked.
pub fn engine(args: &BenchEngineArgs) -> Result<String, Box<dyn std::error::Error>> {
    let path = path(args.model.as_deref())?;
    let threads = threads(args.threads);
    let options = CpuOptions {
        threads,
        context_length: None,
        kv_cache_bytes: args.kv_cache_mib as usize * (1 << 20),
        batch_tokens: BATCH_TOKENS,
    };
    let mut runner = CpuRunner::load(&path, &options)?.runner;
    let workload = Workload {
        prompt: args.prompt_tokens as usize,
        prefills: PREFILLS,
        context: args.context_tokens as usize,
        steps: args.steps as usize,
        batches: args.batch.iter().map(|&batch| batch as usize).collect(),
    };
    let started = Instant::now();
    let clock = || started.elapsed();
    let bytes = runner.bytes_read();
    let bandwidth = read_bandwidth(threads, bytes.min(MOST_READ), READS, clock)?;
    let mut out = format!(
        "{} on {threads} threads: {:.1} MB of weights a pass, memory read at {:.1} GB/s\n\n\
         {:<24}{:>12}{:>12}\n",
        path.display(),
        bytes as f64 / 1e6,
        bandwidth / 1e9,
        "tokens/s",
        "median",
        "best"
    );
    let mut line = |what: String, times: &Times| {
        let (median, best) = (times.rate(times.median), times.rate(times.best));
        writeln!(out, "{what:<24}{median:>12.1}{best:>12.1}")
    };
    let times = prefill(&mut runner, &workload, clock)?;
    line(format!("prefill of {}", workload.prompt), &times)?;
    let mut alone = None;
    for &batch in &workload.batches {
        let times = decode(&mut runner, &workload, batch, clock)?;
        line(format!("decode, {batch} together"), &times)?;
        alone = alone.or((batch == 1).then_some(times));
    }
    if let Some(times) = alone {
        let share = |time| 100.0 * bytes as f64 * times.rate(time) / bandwidth;
        let (median, best) = (share(times.median), share(times.best));
        writeln!(out, "{:<24}{median:>11.0}%{best:>11.0}%", "of the bandwidth, 1")?;
    }
    Ok(out)
}

/// Returns where the model lies.
fn path(model: Option<&str>) -> Result<PathBuf, Box<dyn std::error::Error>> {
    let source = match model {
        Some(model) => Source::parse(model)?,
        None => Source::default_model(&model_dir(None)?),
    };
    match source.place {
        Place::File(path) | Place::Default(path) => Ok(path),
        Place::Hub { repository, .. } => {
            Err(format!("model `{repository}`: expected a file or a directory").into())
        }
    }
}
