//! What blocks of the KV cache hold is pinned, since other builds may take them.

#[path = "../rounded/mod.rs"]
mod rounded;

use std::path::Path;

use worker::cpu::Isa;
use worker::runner::Runner;
use worker::runner::cpu::{CpuOptions, CpuRunner, KV_REVISION};
use xxhash_rust::xxh3::xxh3_64;

use super::{fill, golden, isas, model};

/// A model, how many tokens a text has, and what its blocks hold on some instructions: a hash.
type Pin = (&'static str, usize, &'static [(&'static str, u64)]);

/// What the blocks of a text hold in a revision: its number, and pins. Of NEON none is known.
/// Products of bf16 change nothing where a model has no matrices of bf16.
const BLOCKS: (u32, [Pin; 5]) = (
    2,
    [
        (
            "tiny/llama3",
            248,
            &[
                ("Portable", 0x8C9B_F2DB_3848_A7A6),
                ("Avx2", 0x4241_C372_D9DE_7865),
                ("Avx512", 0x4241_C372_D9DE_7865),
            ],
        ),
        (
            "tiny/qwen3",
            248,
            &[
                ("Portable", 0xC4FA_4AE6_3FE3_F993),
                ("Avx2", 0xB72F_6194_08C7_65BF),
                ("Avx512", 0xB72F_6194_08C7_65BF),
            ],
        ),
        (
            "tiny/qwen3 as bf16",
            248,
            &[
                ("Portable", 0x2C0B_1752_FEB0_84D9),
                ("Avx2", 0x3AAE_9F3D_42CF_522E),
                ("Avx512", 0x3AAE_9F3D_42CF_522E),
                ("Avx512Bf16", 0x57C3_3058_2694_3199),
                ("Amx", 0xD432_D041_4CB4_5E19),
            ],
        ),
        // The real model, which is quantised.
        (
            "",
            40,
            &[
                ("Portable", 0xCB74_F5C7_E3B3_2194),
                ("Avx2", 0x9F84_1FEB_1AAF_F10A),
                ("Avx512", 0x6549_28A7_CAA6_4972),
            ],
        ),
        // Three segments of attention, which are folded.
        (
            "",
            640,
            &[
                ("Portable", 0x58E2_394F_D7C1_5250),
                ("Avx2", 0xB845_5381_209E_4E46),
                ("Avx512", 0x372B_83D6_695A_81C1),
            ],
        ),
    ],
);

/// Returns a hash of what the blocks of a text hold that is computed in chunks.
fn blocks_hash(path: &Path, (isa, threads): (Isa, usize), count: usize, chunk: usize) -> u64 {
    let options = CpuOptions {
        threads,
        context_length: Some(count.next_multiple_of(256)),
        kv_cache_bytes: 64 << 20,
        batch_tokens: chunk,
    };
    let mut runner = CpuRunner::load_with(path, &options, isa).unwrap().runner;
    let tokens: Vec<u32> = (0..count as u32).map(|p| (p * 37 + 11) % 100 + 20).collect();
    let blocks: Vec<u32> = (0..count.div_ceil(16) as u32).collect();
    fill(&mut runner, &tokens, &blocks, chunk);
    let mut bytes = Vec::new();
    for block in 0..count / 16 {
        runner.read_block(block as u32, &mut bytes).unwrap();
    }
    xxh3_64(&bytes)
}

#[test]
fn what_blocks_hold_is_what_their_revision_says() {
    let (revision, pins) = BLOCKS;
    let folder = tempfile::tempdir().unwrap();
    let as_bf16 = folder.path().join("bf16");
    rounded::write(&golden("tiny/qwen3"), true, &as_bf16);
    let mut wrong = Vec::new();
    for isa in Isa::available() {
        for (file, count, known) in pins {
            let is_slow = file.is_empty() && count > 100;
            if is_slow && !isas().contains(&isa) {
                continue;
            }
            let (path, named) = match file {
                "" => (model(), isa.without_bf16()),
                "tiny/qwen3 as bf16" => (as_bf16.clone(), isa),
                _ => (golden(file), isa.without_bf16()),
            };
            let is_named =
                |(name, _): &&(&str, u64)| format!("Isa({name})") == format!("{named:?}");
            let Some((name, pinned)) = known.iter().find(is_named) else {
                assert!(format!("{isa:?}").contains("Neon"), "nothing is known of {isa:?}");
                continue;
            };
            // At once, or so that at last three threads share the segments of four tokens.
            let (threads, chunk) = if isa == Isa::best() { (2, count) } else { (3, 159) };
            let hash = blocks_hash(&path, (isa, threads), count, chunk);
            if hash != *pinned {
                wrong.push(format!("\"{file}\", {count}: (\"{name}\", {hash:#018X})"));
            }
        }
    }
    assert!(
        wrong.is_empty() && revision == KV_REVISION,
        "blocks hold other bits than those of revision {revision}: raise `KV_REVISION`, and pin \
         {wrong:#?}"
    );
}
