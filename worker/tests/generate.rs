//! The real model through the engine: constraints are kept whatever it would rather say, and
//! prompts and texts come to the same however they are cut.
//!
//! The schemas are shared with the tests of the clients.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../../tests/support/real_models.rs"]
mod real_models;

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use engine::{
    Constraint, Context, EmbedRequest, Engine, FinishReason, GenerateOutput, GenerateRequest,
    Guided, KvBlocks, KvHandoff, Sampling, StopConditions, Vocabulary,
};
use futures_util::StreamExt;
use worker::generate::{DiskTierConfig, GenerateEngine, SchedulerConfig};
use worker::runner::cpu::{CpuOptions, CpuRunner, Loaded};

use real_models::real_model;

/// Enough for all requests of a test.
const CACHE_BYTES: usize = 256 << 20;

/// Tokens that every text of the schemas fits into, but for the recursive ones.
const MAX_TOKENS: u32 = 220;

fn model() -> PathBuf {
    real_model("SmolLM2-135M-Instruct.Q4_1.gguf")
}

fn start(batch_tokens: usize) -> (GenerateEngine, Vocabulary) {
    let config = SchedulerConfig { batch_tokens, ..SchedulerConfig::default() };
    start_whole(2, CACHE_BYTES, config)
}

fn start_with(kv_cache_bytes: usize, config: SchedulerConfig) -> GenerateEngine {
    start_whole(2, kv_cache_bytes, config).0
}

fn start_whole(
    threads: usize,
    kv_cache_bytes: usize,
    config: SchedulerConfig,
) -> (GenerateEngine, Vocabulary) {
    let batch_tokens = config.batch_tokens;
    let options = CpuOptions { threads, context_length: Some(1024), kv_cache_bytes, batch_tokens };
    let Loaded { runner, card, vocabulary } = CpuRunner::load(&model(), &options).unwrap();
    let eos = card.eos_tokens;
    (GenerateEngine::start(Box::new(runner), &vocabulary, eos, config).unwrap(), vocabulary)
}

/// Returns the text of some tokens of a byte-level vocabulary.
fn text(vocabulary: &Vocabulary, output: &GenerateOutput) -> String {
    let is_printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let hidden: Vec<u8> = (0..=u8::MAX).filter(|&byte| !is_printable(byte)).collect();
    let byte = |letter: char| match u32::from(letter) {
        code @ 0x100.. => hidden[code as usize - 0x100],
        code => code as u8,
    };
    let spelled = output.tokens.iter().flat_map(|&id| vocabulary.tokens[id as usize].chars());
    String::from_utf8_lossy(&spelled.map(byte).collect::<Vec<u8>>()).into_owned()
}

async fn one(engine: &GenerateEngine, request: GenerateRequest) -> GenerateOutput {
    let mut stream = engine.call(request, Context::new("test")).await.unwrap();
    let mut whole = GenerateOutput::default();
    while let Some(output) = stream.next().await {
        let output = output.unwrap();
        whole.tokens.extend(output.tokens);
        whole.logprobs.extend(output.logprobs);
        whole.prompt_logprobs.extend(output.prompt_logprobs);
        whole.finish = output.finish;
    }
    whole
}

#[tokio::test]
async fn fifty_schemas_are_kept_at_temperature_one() {
    let (engine, vocabulary) = start(512);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/schemas.json");
    let cases: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let cases = cases.as_array().unwrap();
    assert_eq!(cases.len(), 50);
    let runs = cases.iter().enumerate().map(|(index, case)| {
        let mut request = GenerateRequest::new(
            vec![198, 504, 3575, 2241, 314, 198],
            StopConditions::after(MAX_TOKENS),
        );
        request.guided = Some(Guided::new(Constraint::JsonSchema(case["schema"].to_string())));
        let seed = Some(index as u64);
        request.sampling = Sampling { temperature: 1.0, seed, ..Sampling::default() };
        one(&engine, request)
    });
    let outputs = futures_util::future::join_all(runs).await;
    let mut unfinished = Vec::new();
    for (case, output) in cases.iter().zip(&outputs) {
        let (name, text) = (case["name"].as_str().unwrap(), text(&vocabulary, output));
        println!("{name}: {text}");
        if output.finish == Some(FinishReason::Length) {
            unfinished.push(name);
            continue;
        }
        let value: serde_json::Value =
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}: {text}"));
        let validator =
            jsonschema::options().should_validate_formats(true).build(&case["schema"]).unwrap();
        assert!(validator.is_valid(&value), "{name}: {text}");
    }
    let may_be_long = |name: &&str| name.starts_with("recursive") || name.starts_with("number");
    assert!(unfinished.iter().all(may_be_long), "{unfinished:?}");
}

#[tokio::test]
async fn prompts_and_texts_come_to_the_same_however_they_are_cut() {
    let prompt: Vec<u32> = (0..12u32).map(|p| (p * 37 + 101) % 40_000 + 20).collect();
    let mut found = Vec::new();
    for batch_tokens in [512, 5] {
        let (engine, _) = start(batch_tokens);
        let mut drawn = GenerateRequest::new(prompt.clone(), StopConditions::after(8));
        drawn.stop.ignore_eos = true;
        drawn.logprobs = Some(3);
        let drawn = one(&engine, drawn).await;
        let text: Vec<u32> = prompt.iter().chain(&drawn.tokens).copied().collect();
        let mut scored = GenerateRequest::new(text.clone(), StopConditions::after(0));
        scored.prompt_logprobs = Some(3);
        let scored = one(&engine, scored).await.prompt_logprobs;
        assert_eq!((scored.len(), &scored[0]), (20, &None));
        let tail: Vec<_> = scored[12..].iter().flatten().cloned().collect();
        assert_eq!(tail, drawn.logprobs);
        let request = EmbedRequest { tokens: text.into(), adapter: None };
        let mut stream = engine.call(request, Context::new("test")).await.unwrap();
        let embedding = stream.next().await.unwrap().unwrap();
        let length: f32 = embedding.values.iter().map(|value| value * value).sum();
        assert!((length - 1.0).abs() < 1e-5);
        found.push((scored, embedding));
    }
    assert!(found[0] == found[1]);
}

/// Requests of several kinds, of which some begin alike.
fn mixed(count: usize) -> Vec<GenerateRequest> {
    let common: Vec<u32> = (0..70u32).map(|p| (p * 53 + 7) % 40_000 + 20).collect();
    let request = |index: usize| {
        let mut tokens = common[..20 + index * 6 % 51].to_vec();
        tokens.extend((0..index as u32 % 7).map(|p| p * 31 + 200 + index as u32));
        let mut request = GenerateRequest::new(tokens, StopConditions::after(24));
        request.logprobs = Some(2);
        match index % 4 {
            1 => {
                let seed = Some(index as u64);
                request.sampling = Sampling { temperature: 0.9, seed, ..Sampling::default() };
                request.stop.ignore_eos = true;
            }
            2 => request.guided = Some(Guided::new(Constraint::Regex("[a-z ]{10,40}[.]".into()))),
            3 => {
                let (seed, frequency_penalty) = (Some(5), 0.7);
                request.sampling =
                    Sampling { temperature: 1.0, seed, frequency_penalty, ..Sampling::default() };
                request.choices = NonZeroU32::new(3).unwrap();
            }
            _ => request.stop.ignore_eos = true,
        }
        request
    };
    (0..count).map(request).collect()
}

async fn all(engine: &GenerateEngine, requests: &[GenerateRequest]) -> Vec<Vec<GenerateOutput>> {
    let calls = requests.iter().map(|request| async {
        let mut stream = engine.call(request.clone(), Context::new("test")).await.unwrap();
        let mut whole = vec![GenerateOutput::default(); request.choices.get() as usize];
        while let Some(output) = stream.next().await {
            let output = output.unwrap();
            let place = &mut whole[output.index as usize];
            place.tokens.extend(output.tokens);
            place.logprobs.extend(output.logprobs);
            place.finish = output.finish;
        }
        whole
    });
    futures_util::future::join_all(calls).await
}

/// Returns what each request gives where no other one runs, and none has left anything behind.
async fn each_alone(threads: usize, requests: &[GenerateRequest]) -> Vec<Vec<GenerateOutput>> {
    let plain = SchedulerConfig { has_prefix_cache: false, ..SchedulerConfig::default() };
    let (engine, _) = start_whole(threads, CACHE_BYTES, plain);
    let mut answers = Vec::new();
    for request in requests {
        answers.extend(all(&engine, std::slice::from_ref(request)).await);
    }
    answers
}

#[tokio::test]
async fn thirty_two_requests_at_once_give_what_each_gives_alone_on_any_threads() {
    let requests = mixed(32);
    let expected = each_alone(1, &requests).await;
    for threads in [2, 3] {
        let (engine, _) = start_whole(threads, CACHE_BYTES, SchedulerConfig::default());
        assert!(all(&engine, &requests).await == expected, "{threads} threads changed an answer");
        let totals = engine.totals();
        assert!(totals.steps < 32 * 24 / 4, "they ran one after the other: {totals:?}");
    }
}

#[tokio::test]
async fn shared_lost_and_guessed_blocks_change_no_bit() {
    let requests = mixed(16);
    let expected = each_alone(2, &requests).await;
    let engine = start_with(CACHE_BYTES, SchedulerConfig::default());
    for _ in 0..2 {
        assert!(all(&engine, &requests).await == expected, "the prefix cache changed an answer");
    }
    assert!(engine.totals().prefix_hit_tokens > 800, "{:?}", engine.totals());
    assert_eq!(engine.totals().preemptions, 0);
    // 20 blocks of 360 KiB; what they have no room for comes back from memory, which has room for 4,
    // and from disk.
    let folder = tempfile::tempdir().unwrap();
    let disk = DiskTierConfig { folder: folder.path().into(), max_bytes: 200 << 20 };
    let tiers = SchedulerConfig {
        host_tier_bytes: 4 * (360 << 10),
        disk_tier: Some(disk),
        ..SchedulerConfig::default()
    };
    let engine = start_with(20 * (360 << 10), tiers);
    for _ in 0..2 {
        assert!(all(&engine, &requests).await == expected, "restored blocks changed an answer");
    }
    let totals = engine.totals();
    assert!(totals.host_hit_blocks > 0 && totals.disk_hit_blocks > 0, "{totals:?}");
    // The same without tiers, and with guesses.
    let small = SchedulerConfig { draft_tokens: 4, ..SchedulerConfig::default() };
    let engine = start_with(20 * (360 << 10), small);
    assert!(all(&engine, &requests).await == expected, "lost blocks changed an answer");
    let totals = engine.totals();
    assert!(totals.preemptions > 5 && totals.drafted_tokens > 0, "{totals:?}");
}

#[tokio::test]
async fn blocks_of_another_engine_change_no_bit() {
    let mut requests = mixed(16);
    for (index, request) in (0..).zip(&mut requests) {
        // None finds what an earlier one left: each has what it brings along, and nothing else.
        let begun = std::iter::once(30_000 + index).chain(request.tokens.iter().copied());
        request.tokens = begun.collect();
    }
    let plain = SchedulerConfig { has_prefix_cache: false, ..SchedulerConfig::default() };
    let expected = all(&start_with(CACHE_BYTES, plain), &requests).await;
    let there = Arc::new(start_with(CACHE_BYTES, SchedulerConfig::default()));
    let here = Arc::new(start_with(CACHE_BYTES, SchedulerConfig::default()));
    let (store, own) = (there.store(None).unwrap(), here.store(None).unwrap());
    assert_eq!(store.layout(), own.layout(), "one file is one model");
    assert_eq!(store.layout().block_bytes, 360 << 10);
    let mut handed = Vec::new();
    for request in &requests {
        one(&there, GenerateRequest::new(request.tokens.clone(), StopConditions::after(1))).await;
        let mut blocks = Vec::new();
        while blocks.len() < request.tokens.len() / 16 {
            let more = store.read(&request.tokens, blocks.len()).await.unwrap();
            assert!(!more.is_empty(), "a block that was just computed is gone");
            blocks.extend(more);
        }
        let blocks = KvBlocks::new(0, blocks, Arc::new(()));
        handed.push(GenerateRequest { handoff: Some(KvHandoff::Here(blocks)), ..request.clone() });
    }
    for (request, expected) in handed.iter().zip(&expected) {
        let answer = all(&here, std::slice::from_ref(request)).await;
        assert!(answer[0] == *expected, "blocks of another engine changed an answer");
    }
    // The last step is counted after what it gave away.
    while here.load().running_sequences > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let totals = here.totals();
    let lengths = || requests.iter().map(|request| request.tokens.len() as u64);
    let imported: u64 = lengths().map(|length| (length - 1) / 16).sum();
    assert!(imported > 30, "{imported}");
    assert_eq!(totals.imported_blocks, imported, "{totals:?}");
    assert_eq!(totals.prefill_tokens, lengths().sum::<u64>() - 16 * imported, "{totals:?}");
}
