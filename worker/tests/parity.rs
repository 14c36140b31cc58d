//! The real model: logits against an f32 forward pass over the dequantised weights, and the
//! promise that a sequence's bits do not depend on its batch, its chunks or the threads.
//!
//! The golden files were made by `tests/golden/make_golden.py`.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use half::f16;
use worker::cpu::Isa;
use worker::runner::cpu::{CpuOptions, CpuRunner};
use worker::runner::{Entry, Runner, Wants};

/// Mean Kullback-Leibler divergence, in nats, that quantised activations may cost: that of
/// llama.cpp on the same prompts and file is 0.0031.
const MAX_KL: f64 = 0.003;
/// Mean root-mean-square error of the logits: that of llama.cpp is 0.242.
const MAX_RMS: f64 = 0.24;

#[expect(clippy::disallowed_methods, reason = "the test command says where the model is")]
fn model() -> PathBuf {
    let path = std::env::var("STATOR_TEST_MODEL");
    path.expect("STATOR_TEST_MODEL is not set: run the tests by ./test").into()
}

fn golden(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(file)
}

fn runner(threads: usize, isa: Isa) -> CpuRunner {
    let options = CpuOptions {
        threads,
        context_length: Some(1024),
        kv_cache_bytes: 256 << 20,
        batch_tokens: 1024,
    };
    CpuRunner::load_with(&model(), &options, isa).unwrap().runner
}

struct Prompt {
    tokens: Vec<u32>,
    logits: Vec<f64>,
}

fn prompts(vocabulary: usize) -> Vec<Prompt> {
    let text = std::fs::read_to_string(golden("prompts.json")).unwrap();
    let list: serde_json::Value = serde_json::from_str(&text).unwrap();
    let bytes = std::fs::read(golden("logits.f16")).unwrap();
    let rows = bytes.chunks_exact(2 * vocabulary);
    let prompts: Vec<Prompt> = list
        .as_array()
        .unwrap()
        .iter()
        .zip(rows)
        .map(|(prompt, row)| {
            let tokens = prompt["tokens"].as_array().unwrap().iter();
            let logits = row.chunks_exact(2).map(|h| f16::from_le_bytes([h[0], h[1]]).into());
            Prompt {
                tokens: tokens.map(|token| token.as_u64().unwrap() as u32).collect(),
                logits: logits.collect(),
            }
        })
        .collect();
    assert_eq!((prompts.len(), bytes.len()), (8, 8 * 2 * vocabulary));
    prompts
}

fn log_softmax(logits: &[f64]) -> Vec<f64> {
    let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logits.iter().map(|logit| (logit - top).exp()).sum();
    logits.iter().map(|logit| logit - top - sum.ln()).collect()
}

/// Returns the two best tokens, the better one first.
fn best(logits: &[f64]) -> (usize, usize) {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
    (order[0], order[1])
}

#[test]
fn logits_match_the_f32_forward_pass() {
    for isa in Isa::available() {
        let mut runner = runner(2, isa);
        let vocabulary = runner.limits().vocabulary;
        let (mut kl, mut rms) = (0.0, 0.0);
        let prompts = prompts(vocabulary);
        for prompt in &prompts {
            let blocks: Vec<u32> = (0..64).collect();
            let tokens = &prompt.tokens;
            let entry = Entry { tokens, start: 0, blocks: &blocks, wants: Wants::Last };
            let outputs = runner.forward(&[entry]).unwrap();
            let ours: Vec<f64> = outputs.logits.iter().map(|&logit| logit.into()).collect();
            let exact = &prompt.logits;
            let (p, q) = (log_softmax(exact), log_softmax(&ours));
            kl += p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
            let errors = || ours.iter().zip(exact).map(|(a, b)| a - b);
            rms += (errors().map(|e| e * e).sum::<f64>() / vocabulary as f64).sqrt();
            let (first, second) = best(exact);
            let largest = errors().map(f64::abs).fold(0.0, f64::max);
            if exact[first] - exact[second] > 2.0 * largest {
                assert_eq!(best(&ours).0, first, "{isa:?}: prompt of {}", tokens.len());
            }
        }
        let count = prompts.len() as f64;
        println!("{isa:?}: mean KL {:.4}, mean RMS error {:.3}", kl / count, rms / count);
        assert!(kl / count < MAX_KL, "{isa:?}: mean KL {}", kl / count);
        assert!(rms / count < MAX_RMS, "{isa:?}: mean RMS error {}", rms / count);
    }
}

/// A sequence of a ragged batch: some prompt, scattered blocks.
struct Sequence {
    tokens: Vec<u32>,
    blocks: Vec<u32>,
}

fn sequences(count: u32) -> Vec<Sequence> {
    let length = |s: u32| if count == 6 { 5 + s * 23 } else { 1 + s * 29 % 67 };
    (0..count)
        .map(|s| Sequence {
            tokens: (0..length(s)).map(|p| (p * 37 + s * 101) % 40_000 + 20).collect(),
            blocks: (0..12).map(|b| (b * count + s) * 5 % (12 * count)).collect(),
        })
        .collect()
}

/// Runs one sequence alone: the whole prompt, then its first tokens again as if drawn.
fn alone(runner: &mut CpuRunner, sequence: &Sequence, steps: usize) -> Vec<Vec<f32>> {
    let mut rows = Vec::new();
    for step in 0..=steps {
        let (tokens, start) = match step {
            0 => (&sequence.tokens[..], 0),
            _ => (&sequence.tokens[step - 1..step], sequence.tokens.len() + step - 1),
        };
        let blocks = &sequence.blocks;
        let entry = Entry { tokens, start, blocks, wants: Wants::Last };
        rows.push(runner.forward(&[entry]).unwrap().logits.to_vec());
    }
    rows
}

/// Runs the sequences as one batch, after some chunks of one of them: each row of logits has to
/// be what the sequence gave alone.
fn together(
    runner: &mut CpuRunner,
    sequences: &[Sequence],
    (chunked, chunks): (usize, &[usize]),
    solo: &[Vec<Vec<f32>>],
) {
    let mut begun = 0;
    for &end in chunks {
        let Sequence { tokens, blocks } = &sequences[chunked];
        let tokens = &tokens[begun..end];
        runner.forward(&[Entry { tokens, start: begun, blocks, wants: Wants::Nothing }]).unwrap();
        begun = end;
    }
    for step in 0..solo[0].len() {
        let entries: Vec<Entry<'_>> = sequences
            .iter()
            .enumerate()
            .map(|(index, s)| {
                let (tokens, start) = match step {
                    0 if index == chunked => (&s.tokens[begun..], begun),
                    0 => (&s.tokens[..], 0),
                    _ => (&s.tokens[step - 1..step], s.tokens.len() + step - 1),
                };
                Entry { tokens, start, blocks: &s.blocks, wants: Wants::Last }
            })
            .collect();
        let outputs = runner.forward(&entries).unwrap();
        for (index, row) in outputs.logits_rows().enumerate() {
            assert!(row == solo[index][step], "sequence {index} differs in step {step}");
        }
    }
}

#[test]
fn a_batch_gives_bit_for_bit_what_each_sequence_gives_alone() {
    let sequences = sequences(6);
    for isa in Isa::available() {
        let mut one = runner(1, isa);
        let solo: Vec<_> = sequences.iter().map(|s| alone(&mut one, s, 3)).collect();
        // The longest prompt comes in three chunks, the last one beside all other prompts.
        together(&mut runner(2, isa), &sequences, (5, &[17, 60]), &solo);
    }
}

#[test]
fn thirty_two_sequences_give_what_each_gives_alone_on_any_threads() {
    let sequences = sequences(32);
    let mut one = runner(1, Isa::best());
    let solo: Vec<_> = sequences.iter().map(|s| alone(&mut one, s, 1)).collect();
    for threads in [2, 3] {
        together(&mut runner(threads, Isa::best()), &sequences, (9, &[5]), &solo);
    }
}

#[test]
fn a_long_context_gives_the_same_bits_in_any_chunks_on_any_threads() {
    let sequence = Sequence {
        tokens: (0..780).map(|p| (p * 37 + 11) % 40_000 + 20).collect(),
        blocks: (0..52).map(|b| b * 7 % 52).collect(),
    };
    let mut logits: Option<Vec<f32>> = None;
    for (threads, chunk) in [(1, 779), (2, 256), (3, 100)] {
        let mut runner = runner(threads, Isa::best());
        let (last, prompt) = sequence.tokens.split_last().unwrap();
        for (index, tokens) in prompt.chunks(chunk).enumerate() {
            let start = index * chunk;
            let blocks = &sequence.blocks;
            runner.forward(&[Entry { tokens, start, blocks, wants: Wants::Nothing }]).unwrap();
        }
        // Decoded alone, its segments are shared among the threads.
        let (start, blocks) = (prompt.len(), &sequence.blocks[..]);
        let entry = Entry { tokens: &[*last], start, blocks, wants: Wants::Last };
        let row = runner.forward(&[entry]).unwrap().logits.to_vec();
        assert!(*logits.get_or_insert_with(|| row.clone()) == row, "{threads} threads, {chunk}");
    }
}
