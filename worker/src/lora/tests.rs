//! Adapters on a small Llama of random floats: against merged weights, and in mixed batches.

use engine::{TokenId, Vocabulary};

use super::adapter::tests::{settings, tensors_of};
use super::*;
use crate::cpu::Isa;
use crate::cpu::attention::{Cache, Geometry};
use crate::cpu::linear::Compute;
use crate::cpu::pool::Pool;
use crate::model::bert::tests::Made;
use crate::model::{
    Buffers, Checkpoint, Family, Hyperparameters, Input, Llama, Loading, Names, Position, Rope,
    Tokens,
};
use crate::weights::Summed;

const VOCABULARY: usize = 64;
const HEAD: usize = 32;

fn sizes() -> Hyperparameters {
    let pairs = HEAD / 2;
    let frequency = |pair: usize| 10_000f64.powf(-(pair as f64) / pairs as f64);
    Hyperparameters {
        family: Family::Llama,
        layers: 2,
        hidden: 64,
        feed_forward: 96,
        heads: 4,
        kv_heads: 2,
        head_dim: HEAD,
        context_length: 64,
        rope: Rope { frequencies: (0..pairs).map(frequency).collect(), magnitude: 1.0 },
        norm_epsilon: 1e-5,
        windows: vec![None; 2],
        ties_head: None,
        vocabulary: None,
    }
}

const SHAPE: Shape = Shape { layers: 2, hidden: 64, query: 128, kv: 64, feed_forward: 96 };

/// The name of a matrix in a GGUF file.
fn stored(layer: usize, target: Target) -> String {
    let part = match target {
        Target::Query => "attn_q",
        Target::Key => "attn_k",
        Target::Value => "attn_v",
        Target::Output => "attn_output",
        Target::Gate => "ffn_gate",
        Target::Up => "ffn_up",
        Target::Down => "ffn_down",
    };
    format!("blk.{layer}.{part}.weight")
}

/// Weights whose heads are in halves, as adapters have them.
fn halved() -> Made {
    let (mut made, mut random) = (Made::default(), fastrand::Rng::with_seed(11));
    made.add("token_embd.weight".into(), &[64, VOCABULARY], &mut random);
    made.add("output_norm.weight".into(), &[64], &mut random);
    for layer in 0..2 {
        for norm in ["attn_norm", "ffn_norm"] {
            made.add(format!("blk.{layer}.{norm}.weight"), &[64], &mut random);
        }
        for target in Target::ALL {
            let (columns, rows) = SHAPE.of(target);
            made.add(stored(layer, target), &[columns, rows], &mut random);
        }
    }
    made
}

/// Adds an adapter's updates to the weights.
fn merge(base: &mut Made, updates: &Made, scale: f64) {
    for layer in 0..2 {
        for target in Target::ALL {
            let [down, up] = adapter::names(layer, target);
            if !crate::weights::Weights::has_tensor(updates, &down) {
                continue;
            }
            let (columns, rows) = SHAPE.of(target);
            let (down, up) = (updates.floats(&down), updates.floats(&up));
            let name = stored(layer, target);
            let mut merged = base.floats(&name);
            for (index, value) in merged.iter_mut().enumerate() {
                let (row, column) = (index / columns, index % columns);
                let sum: f64 = (0..4).map(|k| up[row * 4 + k] * down[k * columns + column]).sum();
                *value += scale * sum;
            }
            let merged: Vec<f32> = merged.iter().map(|&value| value as f32).collect();
            base.set(&name, &[columns, rows], &merged);
        }
    }
}

/// Reads the model; GGUF files have those dimensions side by side that turn together.
fn model(mut halved: Made) -> Llama {
    for layer in 0..2 {
        for target in [Target::Query, Target::Key] {
            let (columns, rows) = SHAPE.of(target);
            let name = stored(layer, target);
            let values = halved.floats(&name);
            let mut paired = vec![0.0; values.len()];
            for row in 0..rows {
                let (head, place) = (row / HEAD, row % HEAD);
                let to = head * HEAD + place % (HEAD / 2) * 2 + place / (HEAD / 2);
                for column in 0..columns {
                    paired[to * columns + column] = values[row * columns + column] as f32;
                }
            }
            halved.set(&name, &[columns, rows], &paired);
        }
    }
    let checkpoint = Checkpoint {
        weights: Summed::new(Box::new(halved)),
        names: Names::Gguf,
        sizes: sizes(),
        tokens: Tokens { vocabulary: Vocabulary::default(), eos: Vec::new() },
        name: "small".into(),
    };
    Llama::read(&checkpoint, &Loading { threads: 1, name: "small".into() }).unwrap()
}

/// A sequence in a pass: its tokens and its adapter.
type Asked<'a> = (&'a [TokenId], Option<&'a Adapter>);

/// Returns the logits after each token of some sequences of one pass.
fn logits(model: &Llama, compute: &Compute, asked: &[Asked<'_>]) -> Vec<Vec<f32>> {
    let all: usize = asked.iter().map(|(text, _)| text.len()).sum();
    let out = logits_of(model, compute, asked, &(0..all).collect::<Vec<_>>());
    let mut rows = out.chunks_exact(VOCABULARY);
    asked
        .iter()
        .map(|(text, _)| rows.by_ref().take(text.len()).flatten().copied().collect())
        .collect()
}

/// Returns the logits after some of all tokens.
fn logits_of(model: &Llama, compute: &Compute, asked: &[Asked<'_>], wanted: &[usize]) -> Vec<f32> {
    let geometry = Geometry { layers: 2, blocks: 16, kv_heads: 2, head_dim: HEAD };
    let mut cache = Cache::new(geometry).unwrap();
    let tables: Vec<[u32; 2]> = (0..asked.len() as u32).map(|i| [2 * i, 2 * i + 1]).collect();
    let (mut tokens, mut deltas) = (Vec::new(), Deltas::default());
    for ((text, adapter), blocks) in asked.iter().zip(&tables) {
        adapter.iter().for_each(|adapter| deltas.push(tokens.len(), text.len(), adapter));
        let positions = text.iter().enumerate();
        tokens.extend(positions.map(|(position, &token)| Position { token, position, blocks }));
    }
    let mut buffers = Buffers::default();
    let input = Input { tokens: &tokens, wanted, deltas: &deltas };
    model.forward(compute, input, &mut cache, &mut buffers);
    let (rows, mut out): (Vec<usize>, _) = ((0..wanted.len()).collect(), Vec::new());
    model.logits(compute, &rows, &mut buffers, &mut out);
    out
}

fn text(seed: u64, length: usize) -> Vec<TokenId> {
    let mut random = fastrand::Rng::with_seed(seed);
    (0..length).map(|_| random.u32(0..VOCABULARY as u32)).collect()
}

#[test]
fn an_adapter_is_as_its_merged_weights() {
    let text = text(1, 29);
    for targets in [&Target::ALL[..], &[Target::Query, Target::Value], &[Target::Gate]] {
        let updates = tensors_of(SHAPE, targets, 6);
        let adapter = Adapter::read(&updates, &settings(targets), SHAPE).unwrap();
        let mut merged = halved();
        merge(&mut merged, &updates, 0.5);
        let (base, merged) = (model(halved()), model(merged));
        for isa in Isa::available() {
            let compute = Compute { pool: Pool::start(2).unwrap(), isa };
            let plain = logits(&base, &compute, &[(&text, None)]);
            let got = logits(&base, &compute, &[(&text, Some(&adapter))]);
            let expected = logits(&merged, &compute, &[(&text, None)]);
            let error = |other: &[f32]| {
                let squares = |pairs: &mut dyn Iterator<Item = f32>| {
                    pairs.map(|value| f64::from(value).powi(2)).sum::<f64>()
                };
                let mut distances = other.iter().zip(&expected[0]).map(|(a, b)| a - b);
                let all = squares(&mut expected[0].iter().copied());
                (squares(&mut distances) / all).sqrt()
            };
            assert!(error(&got[0]) < 1e-3, "{isa:?} {targets:?}: {}", error(&got[0]));
            assert!(error(&plain[0]) > 1e-2, "{isa:?} {targets:?}: the adapter does nothing");
        }
    }
}

#[test]
fn a_batch_of_several_adapters_and_none_is_as_each_alone() {
    let [a, b] =
        [(&Target::ALL[..], 6), (&[Target::Query, Target::Up][..], 7)].map(|(targets, seed)| {
            let updates = tensors_of(SHAPE, targets, seed);
            Adapter::read(&updates, &settings(targets), SHAPE).unwrap()
        });
    let base = model(halved());
    let texts = [text(1, 9), text(2, 1), text(3, 17), text(4, 5), text(5, 30), text(6, 1)];
    let adapters = [None, Some(&a), Some(&b), Some(&b), Some(&a), None];
    let asked: Vec<Asked<'_>> =
        texts.iter().zip(adapters).map(|(text, adapter)| (&text[..], adapter)).collect();
    for isa in Isa::available() {
        let mut seen: Option<Vec<Vec<f32>>> = None;
        for threads in [1, 2] {
            let compute = Compute { pool: Pool::start(threads).unwrap(), isa };
            let together = logits(&base, &compute, &asked);
            for (index, got) in together.iter().enumerate() {
                let alone = &logits(&base, &compute, &asked[index..=index])[0];
                assert_eq!(alone, got, "{isa:?}, sequence {index}");
            }
            assert_eq!(*seen.get_or_insert_with(|| together.clone()), together, "{isa:?}");
            // Some tokens of some sequences, the adapters' first, last and only ones among them.
            let wanted = [0, 9, 10, 26, 30, 31, 32, 61, 62];
            let some = logits_of(&base, &compute, &asked, &wanted);
            let all: Vec<&[f32]> =
                together.iter().flat_map(|rows| rows.chunks_exact(VOCABULARY)).collect();
            let expected: Vec<&[f32]> = wanted.iter().map(|&token| all[token]).collect();
            assert_eq!(some.chunks_exact(VOCABULARY).collect::<Vec<_>>(), expected, "{isa:?}");
            assert!(logits_of(&base, &compute, &asked, &[]).is_empty());
        }
    }
}
