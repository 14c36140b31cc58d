//! Prints what quantised activations cost in exactness, for some settings:
//! `precision MODEL.gguf GOLDEN_DIR`, with the files of `tests/golden/make_golden.py`.
//!
//! For each choice of blocks with second digits: the mean over the prompts of the logits'
//! root-mean-square error and of the Kullback-Leibler divergence, in nats, from an f32 forward pass
//! over the same weights.

use std::path::{Path, PathBuf};

use half::f16;
use worker::cpu::activations::Precision;
use worker::model::Precisions;
use worker::runner::cpu::{CpuOptions, CpuRunner};
use worker::runner::{Entry, Runner, Wants};

/// Tokens of a pass.
const BATCH: usize = 1024;

type Prompts = Vec<(Vec<u32>, Vec<f64>)>;

fn prompts(folder: &Path, vocabulary: usize) -> Result<Prompts, Box<dyn std::error::Error>> {
    let list = std::fs::read_to_string(folder.join("prompts.json"))?;
    let list: serde_json::Value = serde_json::from_str(&list)?;
    let bytes = std::fs::read(folder.join("logits.f16"))?;
    let rows = bytes.chunks_exact(2 * vocabulary);
    let list = list.as_array().ok_or("prompts.json: expected a list")?;
    let tokens = list.iter().map(|prompt| {
        let tokens = prompt["tokens"].as_array().into_iter().flatten();
        tokens.filter_map(|token| Some(token.as_u64()? as u32)).collect()
    });
    let logits = rows.map(|row| {
        row.chunks_exact(2).map(|two| f16::from_le_bytes([two[0], two[1]]).to_f64()).collect()
    });
    Ok(tokens.zip(logits).collect())
}

fn log_softmax(logits: &[f64]) -> Vec<f64> {
    let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logits.iter().map(|logit| (logit - top).exp()).sum();
    logits.iter().map(|logit| logit - top - sum.ln()).collect()
}

/// Returns the mean error and the mean divergence.
fn errors(runner: &mut CpuRunner, prompts: &Prompts) -> Result<(f64, f64), worker::Error> {
    let blocks: Vec<u32> = (0..runner.limits().context_length.div_ceil(16) as u32).collect();
    let (mut rms, mut kl) = (0.0, 0.0);
    for (tokens, exact) in prompts {
        let entry = |tokens, start, wants| {
            let blocks = &blocks;
            Entry { tokens, start, blocks, prompt: 0, adapter: None, wants }
        };
        let last = tokens.len().saturating_sub(1) / BATCH * BATCH;
        for start in (0..last).step_by(BATCH) {
            runner.forward(&[entry(&tokens[start..][..BATCH], start, Wants::Nothing)])?;
        }
        let entry = entry(&tokens[last..], last, Wants::Last);
        let outputs = runner.forward(&[entry])?;
        let ours: Vec<f64> = outputs.logits.iter().map(|&logit| logit.into()).collect();
        let squares: f64 = ours.iter().zip(exact).map(|(a, b)| (a - b) * (a - b)).sum();
        rms += (squares / exact.len() as f64).sqrt();
        let (p, q) = (log_softmax(exact), log_softmax(&ours));
        kl += p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
    }
    Ok((rms / prompts.len() as f64, kl / prompts.len() as f64))
}

#[expect(clippy::print_stdout, reason = "the example's purpose is to print")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<PathBuf> = std::env::args().skip(1).map(PathBuf::from).collect();
    let [model, golden] = &arguments[..] else {
        return Err("usage: precision MODEL.gguf GOLDEN_DIR".into());
    };
    let options = CpuOptions {
        threads: 2,
        context_length: Some(8192),
        kv_cache_bytes: 1 << 30,
        batch_tokens: BATCH,
    };
    let mut runner = CpuRunner::load(model, &options)?.runner;
    let prompts = prompts(golden, runner.limits().vocabulary)?;
    let above = |excess| Precision { excess };
    let Precisions { query_key_value, attention_output, gate_up, down, head } =
        Precisions::default();
    let mut settings = vec![
        ("as they are".to_owned(), [query_key_value, attention_output, gate_up, down, head]),
        ("everywhere".to_owned(), [Precision::WIDE; 5]),
        ("nowhere".to_owned(), [Precision::NARROW; 5]),
    ];
    let limits = [1.0, 2.0, 4.0, 8.0, 16.0];
    settings.extend(limits.map(|limit| (format!("all above {limit}"), [above(limit); 5])));
    // What each kind of matrix adds to the error, with the others exact.
    for (index, name) in ["qkv", "output", "gate, up", "down", "head"].into_iter().enumerate() {
        for limit in limits.into_iter().chain([f32::INFINITY]) {
            let mut precisions = [Precision::WIDE; 5];
            precisions[index] = above(limit);
            settings.push((format!("{name} above {limit}, others all"), precisions));
        }
    }
    for (name, [query_key_value, attention_output, gate_up, down, head]) in settings {
        runner.set_precisions(Precisions {
            query_key_value,
            attention_output,
            gate_up,
            down,
            head,
        });
        let (rms, kl) = errors(&mut runner, &prompts)?;
        println!("{name:28} RMS {rms:.3}  KL {kl:.4}");
    }
    Ok(())
}
