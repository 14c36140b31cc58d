//! Tiny random models of each family: logits against `transformers`, from a directory and from a
//! GGUF file, on all instructions, in batches and chunks.
//!
//! `tests/golden/make_tiny_models.py` made the models and the golden logits, all in f32.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod rounded;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value;
use worker::cpu::Isa;
use worker::runner::cpu::{CpuOptions, CpuRunner, Loaded};
use worker::runner::{Entry, Runner, Wants};

const MODELS: [&str; 5] = ["llama3", "llama-tied", "mistral", "qwen2", "qwen3"];

/// The largest error of a model's logits beside their size, where activations are rounded to bf16.
const MAX_ROUNDED_ERROR: f64 = 0.01;

/// The largest error of a logit; the keys and values that are kept as f16 are most of it.
const MAX_ERROR: f32 = 1e-3;

fn golden(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tiny").join(file)
}

fn load(path: &Path, threads: usize, isa: Isa) -> Loaded {
    let options =
        CpuOptions { threads, context_length: None, kv_cache_bytes: 4 << 20, batch_tokens: 256 };
    CpuRunner::load_with(path, &options, isa).unwrap()
}

/// A prompt and golden logits after some of its tokens.
struct Case {
    tokens: Vec<u32>,
    rows: Vec<(usize, Vec<f32>)>,
}

fn cases(model: &str) -> Vec<Case> {
    let text = std::fs::read_to_string(golden(&format!("{model}.json"))).unwrap();
    let description: Value = serde_json::from_str(&text).unwrap();
    let bytes = std::fs::read(golden(&format!("{model}.f32"))).unwrap();
    let mut logits = bytes
        .as_chunks::<4>()
        .0
        .chunks_exact(128)
        .map(|row| row.iter().map(|number| f32::from_le_bytes(*number)).collect::<Vec<_>>());
    let numbers = |list: &Value| {
        list.as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as u32).collect::<Vec<_>>()
    };
    let prompts = description["prompts"].as_array().unwrap().iter();
    let rows = description["rows"].as_array().unwrap().iter();
    let cases = prompts.zip(rows).map(|(prompt, rows)| Case {
        tokens: numbers(prompt),
        rows: numbers(rows).into_iter().map(|row| (row as usize, logits.next().unwrap())).collect(),
    });
    let cases: Vec<Case> = cases.collect();
    assert!(logits.next().is_none() && cases.len() == 2 && cases[0].tokens.len() == 96);
    cases
}

/// Returns the logits after every token of a prompt, computed in chunks.
fn logits(runner: &mut CpuRunner, tokens: &[u32], chunk: usize) -> Vec<Vec<f32>> {
    let blocks = [5, 1, 9, 0, 3, 7, 2];
    let mut rows = Vec::new();
    for (index, tokens) in tokens.chunks(chunk).enumerate() {
        let start = index * chunk;
        let entry =
            Entry { tokens, start, blocks: &blocks, prompt: 0, adapter: None, wants: Wants::All };
        let outputs = runner.forward(&[entry]).unwrap();
        rows.extend(outputs.logits.chunks_exact(outputs.vocabulary).map(<[f32]>::to_vec));
    }
    rows
}

/// Returns how far apart two rows of numbers are at most.
fn largest_error(ours: &[f32], exact: &[f32]) -> f32 {
    assert!(ours.len() == exact.len() && ours.iter().chain(exact).all(|logit| logit.is_finite()));
    ours.iter().zip(exact).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max)
}

#[test]
fn logits_match_transformers() {
    for model in MODELS {
        let cases = cases(model);
        for (isa, file) in Isa::available()
            .into_iter()
            .flat_map(|isa| [(isa, model.to_owned()), (isa, format!("{model}.gguf"))])
        {
            let mut runner = load(&golden(&file), 2, isa).runner;
            let mut largest = 0f32;
            for case in &cases {
                let ours = logits(&mut runner, &case.tokens, 256);
                for (row, exact) in &case.rows {
                    largest = largest.max(largest_error(&ours[*row], exact));
                }
            }
            println!("{file} {isa:?}: largest error {largest:.1e}");
            assert!(largest < MAX_ERROR, "{file} on {isa:?}: {largest}");
        }
    }
}

#[test]
fn a_gguf_file_and_a_directory_give_the_same_bits() {
    for (model, isa) in
        MODELS.into_iter().flat_map(|m| Isa::available().into_iter().map(move |i| (m, i)))
    {
        let tokens = &cases(model)[0].tokens;
        let [directory, file] = [model.to_owned(), format!("{model}.gguf")]
            .map(|file| logits(&mut load(&golden(&file), 1, isa).runner, tokens, 256));
        // The frequencies of `llama3` are kept as f32 divisors in the GGUF file.
        let most = if model == "llama3" { 1e-4 } else { 0.0 };
        let rows = directory.iter().zip(&file);
        let largest = rows.map(|(a, b)| largest_error(a, b)).fold(0f32, f32::max);
        assert!(largest <= most, "{model} on {isa:?}: {largest}");
    }
}

#[test]
fn bits_depend_neither_on_chunks_nor_threads_nor_company() {
    for (model, isa) in
        MODELS.into_iter().flat_map(|m| Isa::available().into_iter().map(move |i| (m, i)))
    {
        let tokens = &cases(model)[0].tokens;
        let mut runner = load(&golden(model), 1, isa).runner;
        let whole = logits(&mut runner, tokens, 256);
        let mut other = load(&golden(model), 3, isa).runner;
        for chunk in [1, 7, 32] {
            assert_eq!(logits(&mut other, tokens, chunk), whole, "{model}: {isa:?}: {chunk}");
        }
        let (blocks, others) = ([5, 1, 9, 0, 3, 7, 2], [8, 6, 4]);
        let one = Entry {
            tokens: &tokens[..40],
            start: 0,
            blocks: &others,
            prompt: 0,
            adapter: None,
            wants: Wants::Last,
        };
        let two = Entry {
            tokens,
            start: 0,
            blocks: &blocks,
            prompt: 0,
            adapter: None,
            wants: Wants::All,
        };
        let outputs = other.forward(&[one, two]).unwrap();
        let expected: Vec<f32> =
            std::iter::once(&whole[39]).chain(&whole).flatten().copied().collect();
        assert_eq!(outputs.logits, expected, "{model}: {isa:?}");
        // Whatever is wanted of whom.
        let [hidden, nothing] = [Wants::Hidden, Wants::Nothing].map(|wants| Entry { wants, ..one });
        let states = other.forward(&[hidden]).unwrap().hidden.to_vec();
        for wants in [Wants::All, Wants::Last] {
            let two = Entry { wants, ..two };
            let rows = if wants == Wants::All { &whole[..] } else { &whole[whole.len() - 1..] };
            for entries in [[hidden, two], [two, hidden], [nothing, two]] {
                let outputs = other.forward(&entries).unwrap();
                assert_eq!(outputs.logits, rows.concat(), "{model}: {isa:?}");
                let is_wanted = entries.iter().any(|entry| entry.wants == Wants::Hidden);
                assert_eq!(outputs.hidden, if is_wanted { &states[..] } else { &[] });
            }
        }
    }
}

#[test]
fn a_model_of_bf16_is_that_of_the_same_numbers_as_f32() {
    let folder = tempfile::tempdir().unwrap();
    for model in MODELS {
        let tokens = &cases(model)[0].tokens;
        let [own, floats] = [true, false].map(|as_bf16| {
            let to = folder.path().join(format!("{model}-{as_bf16}"));
            rounded::write(&golden(model), as_bf16, &to);
            to
        });
        let kinds = |path: &Path| {
            let kind = |isa| load(path, 1, isa).runner.block_kind().unwrap().fingerprint;
            Isa::available().into_iter().map(kind).collect::<BTreeSet<_>>().len()
        };
        let isas = Isa::available();
        let rounds = |isa: Isa| isa != isa.without_bf16();
        let rounding = isas.iter().filter(|isa| rounds(**isa)).count();
        assert_eq!(kinds(&own), isas.len(), "each set has blocks of its own");
        assert_eq!(kinds(&floats), isas.len() - rounding, "but for floats, which nothing rounds");
        for isa in Isa::available() {
            let exact = logits(&mut load(&floats, 1, isa).runner, tokens, 256);
            let ours = logits(&mut load(&own, 1, isa).runner, tokens, 256);
            let square = |sum: f64, number: f32| sum + f64::from(number) * f64::from(number);
            let pairs = ours.iter().flatten().zip(exact.iter().flatten());
            let error = pairs.map(|(a, b)| a - b).fold(0.0, square);
            let error = (error / exact.iter().flatten().copied().fold(0.0, square)).sqrt();
            println!("{model} {isa:?}: relative error {error:.1e}");
            // Elsewhere bf16 is multiplied as f32.
            let most = if rounds(isa) { MAX_ROUNDED_ERROR } else { 1e-6 };
            assert!(error <= most, "{model} on {isa:?}: {error}");
            let mut other = load(&own, 3, isa).runner;
            for chunk in [1, 7, 32] {
                assert_eq!(logits(&mut other, tokens, chunk), ours, "{model}: {isa:?}: {chunk}");
            }
        }
    }
}

#[test]
fn a_directory_says_as_much_of_its_tokens_as_a_gguf_file() {
    for model in MODELS {
        let isa = Isa::available()[0];
        let directory = load(&golden(model), 1, isa);
        let file = load(&golden(&format!("{model}.gguf")), 1, isa);
        assert_eq!(directory.card.name, model);
        assert_eq!(directory.card.context_length, 256);
        assert_eq!(directory.card.eos_tokens, [1, 2]);
        let (ours, theirs) = (&directory.vocabulary, &file.vocabulary);
        let named = |tokens: &[String]| {
            let named = tokens.iter().filter(|token| !token.starts_with("[PAD"));
            named.cloned().collect::<Vec<_>>()
        };
        let unpadded: Vec<String> =
            ours.tokens.iter().filter(|token| !token.is_empty()).cloned().collect();
        assert_eq!(unpadded, named(&theirs.tokens));
        assert_eq!(ours.kinds, theirs.kinds);
        assert_eq!((ours.bos, ours.eos, ours.add_bos), (theirs.bos, theirs.eos, theirs.add_bos));
        assert_eq!(ours.model, theirs.model);
        assert!(ours.chat_template.as_ref().is_some_and(|text| text.contains("<|turn|>")));
        assert!(ours.json.as_ref().is_some_and(|text| text.contains("\"merges\"")));
    }
}
