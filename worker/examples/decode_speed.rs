//! Measures prefill and decode of a model, and the memory's bandwidth:
//! `decode_speed MODEL.gguf [THREADS] [json|cpu]`.
//!
//! `json` prints one line for scripts; `cpu` counts, for 1 thread, the time that it had a core
//! instead of the time that passed, for machines that others use.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use worker::bench::{Times, Workload, decode, prefill, read_bandwidth};
use worker::runner::cpu::{CpuOptions, CpuRunner};

/// Returns the time that this thread had a core.
fn core_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let first = text.split(' ').next().and_then(|number| number.parse().ok());
    Duration::from_nanos(first.unwrap_or_default())
}

#[expect(clippy::print_stdout, reason = "the example's purpose is to print")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let usage = "usage: decode_speed MODEL.gguf [THREADS] [json|cpu]";
    let mut arguments = std::env::args().skip(1);
    let path = PathBuf::from(arguments.next().ok_or(usage)?);
    let threads = arguments.next().map_or(Ok(2), |text| text.parse())?;
    let mode = arguments.next().unwrap_or_default();
    let options = CpuOptions {
        threads,
        context_length: Some(2048),
        kv_cache_bytes: 512 << 20,
        batch_tokens: 512,
    };
    let started = Instant::now();
    let clock = || if mode == "cpu" { core_time() } else { started.elapsed() };
    let mut runner = CpuRunner::load(&path, &options)?.runner;
    let workload = Workload::default();
    let mut lines = vec![("prefill".to_owned(), prefill(&mut runner, &workload, clock)?)];
    for &batch in &workload.batches {
        let times = decode(&mut runner, &workload, batch, clock)?;
        lines.push((format!("decode {batch}"), times));
    }
    let bytes = runner.bytes_read();
    let bandwidth = read_bandwidth(threads, bytes, 15, clock)?;
    let share = |times: &Times, time| bytes as f64 * times.rate(time) / bandwidth;
    let alone = lines[1].1;
    if mode == "json" {
        let rates = lines.iter().map(|(name, times)| {
            let rates =
                [times.rate(times.median), times.rate(times.quarter), times.rate(times.best)];
            (name.clone(), serde_json::json!(rates))
        });
        let mut all: serde_json::Map<_, _> = rates.collect();
        all.insert("bandwidth".into(), bandwidth.into());
        all.insert("bytes".into(), bytes.into());
        println!("{}", serde_json::Value::Object(all));
        return Ok(());
    }
    println!("{threads} threads, {:.1} MB of weights a pass", bytes as f64 / 1e6);
    for (name, times) in &lines {
        let [median, quarter, best] =
            [times.median, times.quarter, times.best].map(|time| times.rate(time));
        println!("{name}: {median:.0} tokens/s median, {quarter:.0} quarter, {best:.0} best");
    }
    let [quarter, best] = [alone.quarter, alone.best].map(|time| 100.0 * share(&alone, time));
    println!(
        "bandwidth: {:.1} GB/s; decode 1 reaches {quarter:.0} %, best {best:.0} %",
        bandwidth / 1e9
    );
    Ok(())
}
