//! Encoders of random weights against a plain forward pass in 64 bits.

use std::collections::BTreeMap;

use engine::TokenId;
use serde_json::json;

use super::*;
use crate::cpu::Isa;
use crate::cpu::linear::Compute;
use crate::cpu::pool::Pool;
use crate::weights::{Json, WeightType};

/// Tensors in memory.
#[derive(Debug, Default)]
pub(crate) struct Made(BTreeMap<String, StoredTensor>);

impl Weights for Made {
    fn tensor(&self, name: &str) -> Result<StoredTensor, Error> {
        let found = self.0.get(name).cloned();
        found.ok_or_else(|| Error::Model(format!("tensor `{name}`: is missing")))
    }

    fn has_tensor(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        Box::new(self.0.keys().map(String::as_str))
    }
}

impl Made {
    /// Takes a tensor out.
    pub(crate) fn remove(&mut self, name: &str) {
        self.0.remove(name);
    }

    pub(crate) fn add(&mut self, name: String, dims: &[usize], random: &mut fastrand::Rng) {
        let count = dims.iter().product::<usize>();
        let values = (0..count).map(|_| random.f32() - 0.5);
        let data = values.flat_map(f32::to_le_bytes).collect();
        let tensor = StoredTensor { dims: dims.to_vec(), weight_type: WeightType::F32, data };
        self.0.insert(name, tensor);
    }

    /// Puts a tensor of 32-bit floats in.
    pub(crate) fn set(&mut self, name: &str, dims: &[usize], values: &[f32]) {
        let data = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let tensor = StoredTensor { dims: dims.to_vec(), weight_type: WeightType::F32, data };
        self.0.insert(name.to_owned(), tensor);
    }

    /// Returns a tensor's numbers.
    pub(crate) fn floats(&self, name: &str) -> Vec<f64> {
        let data = &self.0[name].data;
        let floats = data.as_chunks::<4>().0.iter();
        floats.map(|bytes| f64::from(f32::from_le_bytes(*bytes))).collect()
    }
}

/// A tiny encoder of a kind: its sizes and weights.
pub(crate) fn tiny(model_type: &str) -> (Sizes, Made) {
    let config = json!({
        "model_type": model_type, "vocab_size": 50, "max_position_embeddings": 40,
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 64, "type_vocab_size": 2, "layer_norm_eps": 1e-5, "pad_token_id": 1,
        "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64,
    });
    let config = Json::parse("config.json", config.to_string().as_bytes()).unwrap();
    let sizes = Sizes::read(&config).unwrap();
    let (mut made, mut random) = (Made::default(), fastrand::Rng::with_seed(5));
    let (prefix, names) = match sizes.family {
        Family::Bert => ("", Names::BERT),
        Family::Roberta => ("roberta.", Names::BERT),
        Family::DistilBert => ("distilbert.", Names::DISTIL),
    };
    let mut add = |name: String, dims: &[usize]| made.add(name, dims, &mut random);
    for (table, rows) in [("word", 50), ("position", 40), ("token_type", 2)] {
        if table == "token_type" && sizes.token_types == 0 {
            continue;
        }
        add(format!("{prefix}embeddings.{table}_embeddings.weight"), &[32, rows]);
    }
    let mut norm = vec![format!("{prefix}embeddings.LayerNorm")];
    for index in 0..sizes.layers {
        let name = |part: &str| format!("{prefix}{}.{index}.{part}", names.layer);
        let mut dense = vec![(names.attention_output, 32, 32)];
        dense.extend(names.query.map(|part| (part, 32, 32)));
        dense.extend([(names.up, 32, 64), (names.down, 64, 32)]);
        for (part, columns, rows) in dense {
            add(format!("{}.weight", name(part)), &[columns, rows]);
            add(format!("{}.bias", name(part)), &[rows]);
        }
        norm.extend([names.attention_norm, names.output_norm].map(name));
    }
    for name in norm {
        add(format!("{name}.weight"), &[32]);
        add(format!("{name}.bias"), &[32]);
    }
    (sizes, made)
}

/// A forward pass as the papers write it.
struct Reference<'a> {
    made: &'a Made,
    prefix: &'a str,
}

type Rows = Vec<Vec<f64>>;

impl Reference<'_> {
    fn floats(&self, name: &str) -> Vec<f64> {
        self.made.floats(&format!("{}{name}", self.prefix))
    }

    fn dense(&self, name: &str, rows: &Rows) -> Rows {
        let (weight, bias) =
            (self.floats(&format!("{name}.weight")), self.floats(&format!("{name}.bias")));
        let dot = |row: &[f64], x: &[f64]| row.iter().zip(x).map(|(a, b)| a * b).sum::<f64>();
        let product = |x: &Vec<f64>| {
            let outputs = weight.chunks(x.len()).zip(&bias);
            outputs.map(|(row, bias)| dot(row, x) + bias).collect()
        };
        rows.iter().map(product).collect()
    }

    fn norm(&self, name: &str, rows: &Rows) -> Rows {
        let (weight, bias) =
            (self.floats(&format!("{name}.weight")), self.floats(&format!("{name}.bias")));
        let normal = |x: &Vec<f64>| {
            let mean = x.iter().sum::<f64>() / x.len() as f64;
            let variance = x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / x.len() as f64;
            let scaled = x.iter().map(|v| (v - mean) / (variance + 1e-5).sqrt());
            scaled.zip(weight.iter().zip(&bias)).map(|(v, (w, b))| v * w + b).collect()
        };
        rows.iter().map(normal).collect()
    }

    fn forward(&self, sizes: &Sizes, names: &Names, text: &[TokenId]) -> Rows {
        let table = |table| self.floats(&format!("embeddings.{table}_embeddings.weight"));
        let kinds = match sizes.family {
            Family::DistilBert => vec![0.0; 32],
            _ => table("token_type"),
        };
        let tables = [table("word"), table("position"), kinds];
        let embedded = text.iter().enumerate().map(|(place, &token)| {
            let place = place + sizes.first_position;
            let sum = |i: usize| {
                let [words, positions, kinds] = &tables;
                words[token as usize * 32 + i] + positions[place * 32 + i] + kinds[i]
            };
            (0..32).map(sum).collect()
        });
        let mut rows = self.norm("embeddings.LayerNorm", &embedded.collect());
        let add = |a: &Rows, b: &Rows| -> Rows {
            a.iter().zip(b).map(|(a, b)| a.iter().zip(b).map(|(a, b)| a + b).collect()).collect()
        };
        for index in 0..sizes.layers {
            let name = |part: &str| format!("{}.{index}.{part}", names.layer);
            let [query, key, value] = names.query.map(|part| self.dense(&name(part), &rows));
            let attended: Rows = query.iter().map(|q| attended(q, &key, &value)).collect();
            let update = self.dense(&name(names.attention_output), &attended);
            rows = self.norm(&name(names.attention_norm), &add(&rows, &update));
            let mut wide = self.dense(&name(names.up), &rows);
            wide.iter_mut().flatten().for_each(|x| *x *= (1.0 + erf(*x / 2f64.sqrt())) / 2.0);
            let update = self.dense(&name(names.down), &wide);
            rows = self.norm(&name(names.output_norm), &add(&rows, &update));
        }
        rows
    }
}

fn attended(query: &[f64], keys: &Rows, values: &Rows) -> Vec<f64> {
    let head = |head: usize| {
        let own = head * 16..(head + 1) * 16;
        let score = |key: &Vec<f64>| {
            let pairs = query[own.clone()].iter().zip(&key[own.clone()]);
            (pairs.map(|(a, b)| a * b).sum::<f64>() / 4.0).exp()
        };
        let weights: Vec<f64> = keys.iter().map(score).collect();
        let total: f64 = weights.iter().sum();
        let sum = |i: usize| weights.iter().zip(values).map(|(w, v)| w * v[i]).sum::<f64>() / total;
        own.clone().map(sum).collect::<Vec<_>>()
    };
    [head(0), head(1)].concat()
}

/// The error function by its series, which is slow and exact for what comes here.
fn erf(x: f64) -> f64 {
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

fn texts() -> Vec<Vec<TokenId>> {
    let mut random = fastrand::Rng::with_seed(9);
    let text = |length: usize| (0..length).map(|_| random.u32(0..50)).collect();
    [1, 7, 38, 16, 17, 3].map(text).into()
}

#[test]
fn every_family_is_as_its_reference() {
    let families = [("bert", ""), ("roberta", "roberta."), ("distilbert", "distilbert.")];
    for (model_type, prefix) in families {
        let (sizes, made) = tiny(model_type);
        let names = match sizes.family {
            Family::DistilBert => Names::DISTIL,
            _ => Names::BERT,
        };
        let model = Bert::read(&made, sizes.clone()).unwrap();
        let reference = Reference { made: &made, prefix };
        let compute = Compute { pool: Pool::start(2).unwrap(), isa: Isa::best() };
        let texts = texts();
        let slices: Vec<&[TokenId]> = texts.iter().map(Vec::as_slice).collect();
        let mut buffers = Buffers::default();
        let states = model.forward(&compute, &slices, &mut buffers);
        let expected = texts.iter().flat_map(|text| reference.forward(&sizes, &names, text));
        let expected: Vec<f64> = expected.flatten().collect();
        assert_eq!(states.len(), expected.len());
        for (got, expected) in states.iter().zip(&expected) {
            assert!((f64::from(*got) - expected).abs() < 2e-5, "{model_type}: {got} {expected}");
        }
    }
}

#[test]
fn a_text_is_the_same_in_every_batch_and_on_any_threads() {
    let (sizes, made) = tiny("bert");
    let model = Bert::read(&made, sizes).unwrap();
    let texts = texts();
    for isa in Isa::available() {
        let mut seen: Option<Vec<f32>> = None;
        for threads in [1, 2, 3] {
            let compute = Compute { pool: Pool::start(threads).unwrap(), isa };
            let slices: Vec<&[TokenId]> = texts.iter().map(Vec::as_slice).collect();
            let mut buffers = Buffers::default();
            let together = model.forward(&compute, &slices, &mut buffers).to_vec();
            let alone: Vec<f32> = slices
                .iter()
                .flat_map(|text| model.forward(&compute, &[text], &mut buffers).to_vec())
                .collect();
            assert_eq!(together, alone, "{isa:?}, {threads} threads");
            assert_eq!(*seen.get_or_insert_with(|| alone.clone()), alone, "{isa:?}");
        }
    }
}

#[test]
fn a_tensor_that_does_not_fit_is_named() {
    let name = "encoder.layer.1.attention.self.key.bias";
    let (sizes, mut made) = tiny("bert");
    let whole = made.0.remove(name).unwrap();
    let error = Bert::read(&made, sizes.clone()).unwrap_err().to_string();
    assert!(error.contains("`encoder.layer.1.attention.self.key.bias`: is missing"), "{error}");
    made.0.insert(name.to_owned(), StoredTensor { dims: vec![31], ..whole });
    let error = Bert::read(&made, sizes).unwrap_err().to_string();
    assert!(error.contains("expected [32], got [31]"), "{error}");
}

#[test]
fn what_an_encoder_has_and_does_not_compute_is_named() {
    let mut random = fastrand::Rng::with_seed(1);
    for (model_type, prefix) in [("bert", ""), ("roberta", "roberta.")] {
        let (sizes, mut made) = tiny(model_type);
        // A head, a pooler and numbers of positions are left out, as documented.
        for beside in ["pooler.dense.weight", "embeddings.position_ids"] {
            made.add(format!("{prefix}{beside}"), &[1], &mut random);
        }
        made.add("classifier.dense.weight".into(), &[1], &mut random);
        assert!(Bert::read(&made, sizes.clone()).is_ok());
        let more = ["encoder.layer.2.output.dense.weight", "embeddings.emb_transform.weight"];
        for more in more.map(|more| format!("{prefix}{more}")) {
            made.add(more.clone(), &[1], &mut random);
            let error = Bert::read(&made, sizes.clone()).unwrap_err().to_string();
            assert!(error.contains(&format!("tensor `{more}`: is not one of")), "{error}");
            made.remove(&more);
        }
    }
}
