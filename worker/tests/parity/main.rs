//! The real model: how exact its logits are, that their bits depend on neither batch, chunks nor
//! threads, and what the blocks of its KV cache hold.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod batches;
mod blocks;
mod exactness;
#[path = "../../../tests/support/real_models.rs"]
mod real_models;

use std::path::{Path, PathBuf};

use worker::cpu::Isa;
use worker::runner::cpu::{CpuOptions, CpuRunner};
use worker::runner::{Entry, Runner, Wants};

use real_models::real_model;

fn model() -> PathBuf {
    real_model("SmolLM2-135M-Instruct.Q4_1.gguf")
}

fn golden(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(file)
}

/// Returns the instructions with which the real model is computed. The portable ones take minutes
/// in a debug build: `STATOR_LONG` asks for them, unless this machine has no others.
fn isas() -> Vec<Isa> {
    let mut isas = Isa::available();
    if isas.len() > 1 && std::env::var_os("STATOR_LONG").is_none() {
        isas.retain(|isa| isa.name() != "portable");
    }
    isas
}

fn runner(threads: usize, isa: Isa) -> CpuRunner {
    runner_of(threads, isa, 1024)
}

fn runner_of(threads: usize, isa: Isa, context_length: usize) -> CpuRunner {
    let options = CpuOptions {
        threads,
        context_length: Some(context_length),
        // 45 KiB a token.
        kv_cache_bytes: (context_length << 16).max(256 << 20),
        batch_tokens: 1024,
    };
    CpuRunner::load_with(&model(), &options, isa).unwrap().runner
}

/// Computes the first tokens of a sequence, some at a time, of which only what its blocks hold is
/// wanted.
fn fill(runner: &mut CpuRunner, tokens: &[u32], blocks: &[u32], chunk: usize) {
    for (index, tokens) in tokens.chunks(chunk).enumerate() {
        let (start, prompt, adapter, wants) = (index * chunk, 0, None, Wants::Nothing);
        runner.forward(&[Entry { tokens, start, blocks, prompt, adapter, wants }]).unwrap();
    }
}
