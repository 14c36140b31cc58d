//! Prints what quantised activations cost in exactness, for some settings:
//! `precision MODEL.gguf GOLDEN_DIR`, with the files of `tests/golden/make_golden.py`.
//!
//! For each choice of blocks with second digits: the mean of the logits' root-mean-square error and
//! of the Kullback-Leibler divergence, in nats, from an f32 forward pass over the same weights, and
//! at how many places another token is the best one. First behind the last token of each prompt,
//! from the golden files, then behind every token, from what second digits everywhere give: the line
//! `everywhere` shows, behind the last tokens, that these are as good as f32.

use std::fmt;
use std::path::{Path, PathBuf};

use half::f16;
use worker::cpu::activations::Precision;
use worker::model::Precisions;
use worker::runner::cpu::{CpuOptions, CpuRunner};
use worker::runner::{Entry, Runner, Wants};

/// The most tokens of a prompt.
const MOST_TOKENS: usize = 1024;

type Prompts = Vec<(Vec<u32>, Vec<f64>)>;

fn prompts(folder: &Path, vocabulary: usize) -> Result<Prompts, Box<dyn std::error::Error>> {
    let list = std::fs::read_to_string(folder.join("prompts.json"))?;
    let list: serde_json::Value = serde_json::from_str(&list)?;
    let bytes = std::fs::read(folder.join("logits.f16"))?;
    let rows = bytes.chunks_exact(2 * vocabulary);
    let list = list.as_array().ok_or("prompts.json: expected a list")?;
    let tokens = list.iter().map(|prompt| {
        let tokens = prompt["tokens"].as_array().into_iter().flatten();
        tokens.filter_map(|token| Some(token.as_u64()? as u32)).collect::<Vec<_>>()
    });
    let logits = rows.map(|row| {
        row.chunks_exact(2).map(|two| f16::from_le_bytes([two[0], two[1]]).to_f64()).collect()
    });
    let prompts: Prompts = tokens.zip(logits).collect();
    let fits = |(tokens, _): &(Vec<u32>, _)| (1..=MOST_TOKENS).contains(&tokens.len());
    if bytes.len() != list.len() * 2 * vocabulary || prompts.is_empty() || !prompts.iter().all(fits)
    {
        let text = format!(
            "prompts.json, logits.f16: expected prompts of 1 to {MOST_TOKENS} tokens and for each \
             {vocabulary} numbers, got {} prompts and {} bytes",
            list.len(),
            bytes.len()
        );
        return Err(text.into());
    }
    Ok(prompts)
}

fn log_softmax(logits: &[f64]) -> Vec<f64> {
    let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logits.iter().map(|logit| (logit - top).exp()).sum();
    logits.iter().map(|logit| logit - top - sum.ln()).collect()
}

/// Sums over rows of logits.
#[derive(Default)]
struct Errors {
    rows: usize,
    rms: f64,
    kl: f64,
    /// Where another token is the best one.
    lost: usize,
}

impl Errors {
    fn add(&mut self, ours: &[f32], exact: &[f64]) {
        let ours: Vec<f64> = ours.iter().map(|&logit| logit.into()).collect();
        let squares: f64 = ours.iter().zip(exact).map(|(a, b)| (a - b) * (a - b)).sum();
        let (p, q) = (log_softmax(exact), log_softmax(&ours));
        let best = |row: &[f64]| (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b]));
        self.rows += 1;
        self.rms += (squares / exact.len() as f64).sqrt();
        self.kl += p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
        self.lost += usize::from(best(&ours) != best(exact));
    }
}

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = self.rows as f64;
        let (rms, kl, lost) = (self.rms / rows, self.kl / rows, self.lost);
        write!(f, "RMS {rms:.3}  KL {kl:.4}  other best {lost:2}")
    }
}

/// Returns the logits behind each token of a prompt: one row after the other.
fn logits(runner: &mut CpuRunner, tokens: &[u32]) -> Result<Vec<f32>, worker::Error> {
    let blocks: Vec<u32> = (0..MOST_TOKENS.div_ceil(16) as u32).collect();
    let (start, wants) = (0, Wants::All);
    let entry = Entry { tokens, start, blocks: &blocks, prompt: 0, adapter: None, wants };
    Ok(runner.forward(&[entry])?.logits.to_vec())
}

/// Returns the errors of the last rows, and those of all.
fn errors(
    runner: &mut CpuRunner,
    prompts: &Prompts,
    exact: &[Vec<f32>],
) -> Result<(Errors, Errors), worker::Error> {
    let vocabulary = runner.limits().vocabulary;
    let (mut last, mut every) = (Errors::default(), Errors::default());
    for ((tokens, golden), exact) in prompts.iter().zip(exact) {
        let ours = logits(runner, tokens)?;
        last.add(&ours[ours.len() - vocabulary..], golden);
        for (ours, exact) in ours.chunks_exact(vocabulary).zip(exact.chunks_exact(vocabulary)) {
            every.add(ours, &exact.iter().map(|&logit| logit.into()).collect::<Vec<f64>>());
        }
    }
    Ok((last, every))
}

fn precisions(
    [query_key_value, attention_output, gate_up, down, head]: [Precision; 5],
) -> Precisions {
    Precisions { query_key_value, attention_output, gate_up, down, head }
}

#[expect(clippy::print_stdout, reason = "the example's purpose is to print")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<PathBuf> = std::env::args().skip(1).map(PathBuf::from).collect();
    let [model, golden] = &arguments[..] else {
        return Err("usage: precision MODEL.gguf GOLDEN_DIR".into());
    };
    let options = CpuOptions {
        threads: 2,
        context_length: Some(MOST_TOKENS),
        kv_cache_bytes: 256 << 20,
        batch_tokens: MOST_TOKENS,
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
    runner.set_precisions(precisions([Precision::WIDE; 5]));
    let exact: Result<Vec<_>, _> =
        prompts.iter().map(|(tokens, _)| logits(&mut runner, tokens)).collect();
    let exact = exact?;
    for (name, setting) in settings {
        runner.set_precisions(precisions(setting));
        let (last, every) = errors(&mut runner, &prompts, &exact)?;
        println!("{name:29} {} last: {last}   {} in all: {every}", last.rows, every.rows);
    }
    Ok(())
}
