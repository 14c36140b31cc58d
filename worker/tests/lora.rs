//! An adapter on the real model against the same model with the adapter merged into its weights.
//!
//! Both are compared as 32-bit floats, so that little but the order of sums is between them; and
//! then the quantised file with the adapter, as it is served, with the merged floats.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../../tests/support/real_models.rs"]
mod real_models;

use std::path::{Path, PathBuf};

use half::f16;
use serde_json::json;
use worker::lora::{Limits, Target};
use worker::runner::cpu::{CpuOptions, CpuRunner};
use worker::runner::{Entry, Runner, Wants};
use worker::weights::Weights;
use worker::weights::gguf::{Gguf, StoredTensor, WeightType};

use real_models::real_model;

const LAYERS: usize = 30;
const HIDDEN: usize = 576;
const KV: usize = 192;
const WIDE: usize = 1536;
const HEAD: usize = 64;
const RANK: usize = 8;
const SCALE: f64 = 2.0;

fn model() -> PathBuf {
    real_model("SmolLM2-135M-Instruct.Q4_1.gguf")
}

/// The columns and rows of a matrix, its part of a layer in adapters and its name in GGUF files.
fn about(target: Target) -> (usize, usize, &'static str, &'static str) {
    match target {
        Target::Query => (HIDDEN, HIDDEN, "self_attn", "attn_q"),
        Target::Key => (HIDDEN, KV, "self_attn", "attn_k"),
        Target::Value => (HIDDEN, KV, "self_attn", "attn_v"),
        Target::Output => (HIDDEN, HIDDEN, "self_attn", "attn_output"),
        Target::Gate => (HIDDEN, WIDE, "mlp", "ffn_gate"),
        Target::Up => (HIDDEN, WIDE, "mlp", "ffn_up"),
        Target::Down => (WIDE, HIDDEN, "mlp", "ffn_down"),
    }
}

/// An update of one matrix.
struct Update {
    layer: usize,
    target: Target,
    /// `[RANK, columns]`
    down: Vec<f32>,
    /// `[rows, RANK]`
    up: Vec<f32>,
}

fn updates(seed: u64) -> Vec<Update> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut draw = |count: usize, most: f32| -> Vec<f32> {
        (0..count).map(|_| (2.0 * random.f32() - 1.0) * most).collect()
    };
    let all = (0..LAYERS).flat_map(|layer| Target::ALL.map(|target| (layer, target)));
    all.map(|(layer, target)| {
        let (columns, rows, ..) = about(target);
        let down = draw(RANK * columns, (columns as f32).sqrt().recip());
        Update { layer, target, down, up: draw(rows * RANK, 0.1) }
    })
    .collect()
}

/// Writes an adapter in PEFT's layout.
fn write_adapter(folder: &Path, updates: &[Update]) {
    let (mut header, mut data) = (json!({"__metadata__": {"format": "pt"}}), Vec::new());
    for Update { layer, target, down, up } in updates {
        let (columns, rows, block, _) = about(*target);
        let name = target.name();
        for (side, shape, values) in [("A", [RANK, columns], down), ("B", [rows, RANK], up)] {
            let key =
                format!("base_model.model.model.layers.{layer}.{block}.{name}.lora_{side}.weight");
            let start = data.len();
            data.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            let offsets = [start, data.len()];
            header[key] = json!({"dtype": "F32", "shape": shape, "data_offsets": offsets});
        }
    }
    let header = header.to_string();
    let length = (header.len() as u64).to_le_bytes();
    let content = [&length, header.as_bytes(), &data].concat();
    std::fs::write(folder.join("adapter_model.safetensors"), content).unwrap();
    let config = json!({"peft_type": "LORA", "r": RANK, "lora_alpha": SCALE * RANK as f64,
        "target_modules": Target::ALL.map(Target::name)});
    std::fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
}

/// Returns a tensor's weights as floats.
fn dequantised(tensor: &StoredTensor) -> Vec<f32> {
    let half = |bytes: &[u8]| f16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
    match tensor.weight_type {
        WeightType::F32 => {
            let words = tensor.data.as_chunks::<4>().0;
            words.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
        }
        WeightType::Q4_1 => {
            let block = |block: &[u8; 20]| {
                let (scale, least) = (half(&block[..2]), half(&block[2..4]));
                let codes = &block[4..];
                let value = |code: u8| f32::from(code) * scale + least;
                let low = codes.iter().map(|codes| value(codes & 15)).collect::<Vec<_>>();
                low.into_iter()
                    .chain(codes.iter().map(|codes| value(codes >> 4)).collect::<Vec<_>>())
            };
            tensor.data.as_chunks().0.iter().flat_map(block).collect()
        }
        WeightType::Q8_0 => {
            let block = |block: &[u8; 34]| {
                let scale = half(&block[..2]);
                let codes = block[2..].iter().map(|&code| f32::from(code as i8) * scale);
                codes.collect::<Vec<_>>()
            };
            tensor.data.as_chunks().0.iter().flat_map(block).collect()
        }
        other => panic!("the test's model has no tensors of {other:?}"),
    }
}

/// Adds an update to a matrix as it lies in a GGUF file, where those dimensions of a query or key
/// head that turn together are side by side; adapters have them in halves.
fn merge(weights: &mut [f32], update: &Update) {
    let (columns, ..) = about(update.target);
    let is_paired = matches!(update.target, Target::Query | Target::Key);
    for (row, up) in update.up.chunks_exact(RANK).enumerate() {
        let (head, place) = (row / HEAD, row % HEAD);
        let paired = head * HEAD + place % (HEAD / 2) * 2 + place / (HEAD / 2);
        let row = if is_paired { paired } else { row };
        let weights = &mut weights[row * columns..][..columns];
        for (column, weight) in weights.iter_mut().enumerate() {
            let down = update.down[column..].iter().step_by(columns);
            let sum: f64 = up.iter().zip(down).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            *weight = (f64::from(*weight) + SCALE * sum) as f32;
        }
    }
}

/// Writes the model as 32-bit floats with updates merged into it: the file's own metadata, and
/// tensors anew.
fn write_floats(path: &Path, updates: &[Update]) {
    let model = model();
    let source = Gguf::open(&model).unwrap();
    let bytes = std::fs::read(&model).unwrap();
    let names: Vec<&str> = source.names().collect();
    let place = |name: &&str| {
        let entry = [&(name.len() as u64).to_le_bytes(), name.as_bytes()].concat();
        bytes.windows(entry.len()).position(|window| window == entry).unwrap()
    };
    // The directory begins with one of the tensors.
    let metadata = &bytes[..place(&"token_embd.weight").min(place(&"output_norm.weight"))];
    let (mut directory, mut data) = (Vec::new(), Vec::new());
    for name in &names {
        let tensor = source.tensor(name).unwrap();
        let mut weights = dequantised(&tensor);
        for update in updates {
            let (.., part) = about(update.target);
            if *name == format!("blk.{}.{part}.weight", update.layer) {
                merge(&mut weights, update);
            }
        }
        directory.extend((name.len() as u64).to_le_bytes());
        directory.extend(name.as_bytes());
        directory.extend((tensor.dims.len() as u32).to_le_bytes());
        directory.extend(tensor.dims.iter().flat_map(|&dim| (dim as u64).to_le_bytes()));
        directory.extend(0u32.to_le_bytes());
        directory.extend((data.len() as u64).to_le_bytes());
        data.extend(weights.iter().flat_map(|weight| weight.to_le_bytes()));
        data.resize(data.len().next_multiple_of(32), 0);
    }
    let mut content = [metadata, &directory].concat();
    content.resize(content.len().next_multiple_of(32), 0);
    content.extend(data);
    std::fs::write(path, content).unwrap();
}

fn load(path: &Path) -> CpuRunner {
    let options = CpuOptions {
        threads: 2,
        context_length: Some(512),
        kv_cache_bytes: 64 << 20,
        batch_tokens: 512,
    };
    CpuRunner::load(path, &options).unwrap().runner
}

/// Returns the logits after each token of a prompt.
fn logits(runner: &mut CpuRunner, tokens: &[u32], adapter: Option<&engine::Adapter>) -> Vec<f32> {
    let blocks: Vec<u32> = (0..32).collect();
    let (adapter, wants) = (adapter.map(engine::Adapter::id), Wants::All);
    let entry = Entry { tokens, start: 0, blocks: &blocks, prompt: 0, adapter, wants };
    runner.forward(&[entry]).unwrap().logits.to_vec()
}

/// Returns the root of the mean square of what two lists of logits are apart, by the spread of the
/// second.
fn error(ours: &[f32], exact: &[f32]) -> f64 {
    let count = exact.len() as f64;
    let mean = exact.iter().map(|&value| f64::from(value)).sum::<f64>() / count;
    let spread = exact.iter().map(|&value| (f64::from(value) - mean).powi(2)).sum::<f64>();
    let apart = ours.iter().zip(exact).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2));
    (apart.sum::<f64>() / spread).sqrt()
}

#[test]
fn an_adapter_on_the_real_model_is_as_its_merged_weights() {
    let folder = tempfile::tempdir().unwrap();
    let updates = updates(5);
    write_adapter(folder.path(), &updates);
    let floats = |updates: &[Update]| {
        let path = folder.path().join("floats.gguf");
        write_floats(&path, updates);
        let runner = load(&path);
        std::fs::remove_file(path).unwrap();
        runner
    };
    let tokens: Vec<u32> = (0..96).map(|place| (place * 37 + 101) % 40_000 + 20).collect();
    let merged = logits(&mut floats(&updates), &tokens, None);
    for (name, mut base, most) in [("floats", floats(&[]), 1e-3), ("Q4_1", load(&model()), 0.05)] {
        let adapters = base.take_adapters(Limits::default());
        let adapter = adapters.load(folder.path(), None).unwrap();
        let with = error(&logits(&mut base, &tokens, Some(&adapter)), &merged);
        let without = error(&logits(&mut base, &tokens, None), &merged);
        println!("{name}: {with:.6} with the adapter, {without:.3} without");
        assert!(with < most, "{name}: {with}");
        assert!(without > 0.2, "{name}: the adapter does next to nothing: {without}");
    }
}
