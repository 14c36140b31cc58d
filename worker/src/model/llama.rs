//! The Llama family: grouped-query attention with rotary positions, SwiGLU, RMS norms.
//!
//! In memory the pairs of dimensions that turn together are the halves of a head: dimension `i`
//! goes with `i + head_dim / 2`. Files that keep such pairs side by side are reordered at load.

mod forward;

use super::Hyperparameters;
use crate::Error;
use crate::cpu::activations::Precision;
use crate::cpu::linear::Linear;
use crate::cpu::vector::Rope;
use crate::gguf::{Gguf, StoredTensor, WeightType};

pub use forward::{Buffers, Position};

/// How exactly activations meet the matrices of each kind.
#[derive(Clone, Copy, Debug)]
pub struct Precisions {
    /// Of queries, keys and values.
    pub query_key_value: Precision,
    /// Of what comes out of attention.
    pub attention_output: Precision,
    /// Of gates and what they gate.
    pub gate_up: Precision,
    /// Of the way back to the residual stream.
    pub down: Precision,
    /// Of the output matrix.
    pub head: Precision,
}

impl Default for Precisions {
    /// Returns those that make the logits' error as small as others' at the least cost; see
    /// `examples/precision.rs`.
    fn default() -> Self {
        let few = Precision { excess: 4.0 };
        Self {
            query_key_value: few,
            attention_output: Precision::NARROW,
            gate_up: Precision::NARROW,
            down: few,
            head: Precision::NARROW,
        }
    }
}

/// The weights of a model.
#[derive(Debug)]
pub struct Llama {
    sizes: Hyperparameters,
    embedding: Linear,
    layers: Vec<LayerWeights>,
    norm: Vec<f32>,
    rope: Rope,
    /// The output matrix; none: the embedding is used.
    head: Option<Linear>,
}

#[derive(Debug)]
struct LayerWeights {
    attention_norm: Vec<f32>,
    query_key_value: Linear,
    attention_output: Linear,
    feed_forward_norm: Vec<f32>,
    gate: Linear,
    up: Linear,
    down: Linear,
}

impl Llama {
    /// Reads and packs the weights.
    ///
    /// Errors: a tensor is missing or has another shape; the text names it.
    pub fn read(file: &Gguf, sizes: Hyperparameters) -> Result<Self, Error> {
        let embedding = linear(file, "token_embd.weight", sizes.hidden, None)?;
        let vocabulary = embedding.rows();
        let head = match file.has_tensor("output.weight") {
            true => Some(linear(file, "output.weight", sizes.hidden, Some(vocabulary))?),
            false => None,
        };
        let layers = (0..sizes.layers)
            .map(|index| LayerWeights::read(file, &sizes, index))
            .collect::<Result<_, _>>()?;
        let norm = vector(file, "output_norm.weight", sizes.hidden)?;
        let rope = Rope::new(sizes.head_dim / 2, sizes.rope_base);
        let mut model = Self { sizes, embedding, layers, norm, rope, head };
        model.set_precisions(Precisions::default());
        Ok(model)
    }

    /// Chooses how exactly activations meet the matrices.
    pub fn set_precisions(&mut self, precisions: Precisions) {
        for layer in &mut self.layers {
            layer.query_key_value.set_precision(precisions.query_key_value);
            layer.attention_output.set_precision(precisions.attention_output);
            layer.gate.set_precision(precisions.gate_up);
            layer.up.set_precision(precisions.gate_up);
            layer.down.set_precision(precisions.down);
        }
        self.head.as_mut().unwrap_or(&mut self.embedding).set_precision(precisions.head);
    }

    /// Returns the number of tokens in the vocabulary.
    pub fn vocabulary(&self) -> usize {
        self.embedding.rows()
    }
}

impl Llama {
    /// Returns the bytes of weights that a pass with logits reads.
    pub fn bytes_read(&self) -> usize {
        let layers = self.layers.iter().map(|layer| {
            let attention = layer.query_key_value.bytes() + layer.attention_output.bytes();
            attention + layer.gate.bytes() + layer.up.bytes() + layer.down.bytes()
        });
        layers.sum::<usize>() + self.head.as_ref().unwrap_or(&self.embedding).bytes()
    }
}

impl LayerWeights {
    fn read(file: &Gguf, sizes: &Hyperparameters, index: usize) -> Result<Self, Error> {
        let name = |part: &str| format!("blk.{index}.{part}.weight");
        let (hidden, wide) = (sizes.hidden, sizes.feed_forward);
        let (query, kv) = (sizes.query_width(), sizes.kv_width());
        let names = [name("attn_q"), name("attn_k"), name("attn_v")];
        let rows = [query, kv, kv];
        let mut parts = names
            .into_iter()
            .zip(rows)
            .map(|(name, rows)| Ok((name.clone(), matrix(file, &name, hidden, Some(rows))?)))
            .collect::<Result<Vec<_>, Error>>()?;
        for (_, turned) in &mut parts[..2] {
            part_pairs(turned, sizes.head_dim);
        }
        Ok(Self {
            attention_norm: vector(file, &name("attn_norm"), hidden)?,
            query_key_value: Linear::new(&parts)?,
            attention_output: linear(file, &name("attn_output"), query, Some(hidden))?,
            feed_forward_norm: vector(file, &name("ffn_norm"), hidden)?,
            gate: linear(file, &name("ffn_gate"), hidden, Some(wide))?,
            up: linear(file, &name("ffn_up"), hidden, Some(wide))?,
            down: linear(file, &name("ffn_down"), wide, Some(hidden))?,
        })
    }
}

/// Moves the rows of each head so that neighbours, which turn together, come to stand half a head
/// apart.
fn part_pairs(stored: &mut StoredTensor, head_dim: usize) {
    let row = stored.data.len() / stored.dims[1];
    let mut parted = Vec::with_capacity(stored.data.len());
    for head in stored.data.chunks_exact(head_dim * row) {
        for first in [0, 1] {
            head.chunks_exact(row).skip(first).step_by(2).for_each(|row| parted.extend(row));
        }
    }
    stored.data = parted;
}

/// Reads a matrix and checks its shape.
fn matrix(
    file: &Gguf,
    name: &str,
    columns: usize,
    rows: Option<usize>,
) -> Result<StoredTensor, Error> {
    let stored = file.tensor(name)?;
    let is_right = match (&stored.dims[..], rows) {
        ([c, r], Some(rows)) => (*c, *r) == (columns, rows),
        ([c, _], None) => *c == columns,
        _ => false,
    };
    if is_right {
        return Ok(stored);
    }
    let rows = rows.map_or("any".to_owned(), |rows| rows.to_string());
    let got = stored.dims;
    Err(Error::Model(format!("tensor `{name}`: expected [{columns}, {rows}], got {got:?}")))
}

fn linear(file: &Gguf, name: &str, columns: usize, rows: Option<usize>) -> Result<Linear, Error> {
    Linear::new(&[(name.to_owned(), matrix(file, name, columns, rows)?)])
}

/// Reads a vector of floats.
fn vector(file: &Gguf, name: &str, length: usize) -> Result<Vec<f32>, Error> {
    let stored = file.tensor(name)?;
    if stored.dims != [length] || stored.weight_type != WeightType::F32 {
        let got = (stored.weight_type, stored.dims);
        return Err(Error::Model(format!("tensor `{name}`: expected F32 [{length}], got {got:?}")));
    }
    Ok(stored.data.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
}
