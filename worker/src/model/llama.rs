//! The Llama family: grouped-query attention with rotary positions, SwiGLU, RMS norms.
//!
//! In memory the pairs of dimensions that turn together are the halves of a head: dimension `i`
//! goes with `i + head_dim / 2`. Files that keep such pairs side by side are reordered at load.

mod forward;

use super::Hyperparameters;
use crate::Error;
use crate::cpu::activations::Precision;
use crate::cpu::linear::Linear;
use crate::gguf::{StoredTensor, WeightType};
use crate::weights::Weights;

pub use forward::{Buffers, Position};

/// The weights of a model.
#[derive(Debug)]
pub struct Llama {
    sizes: Hyperparameters,
    embedding: Linear,
    layers: Vec<LayerWeights>,
    norm: Vec<f32>,
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
    pub fn read(file: &dyn Weights, sizes: Hyperparameters) -> Result<Self, Error> {
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
        Ok(Self { sizes, embedding, layers, norm, head })
    }

    /// Returns the number of tokens in the vocabulary.
    pub fn vocabulary(&self) -> usize {
        self.embedding.rows()
    }
}

impl LayerWeights {
    fn read(file: &dyn Weights, sizes: &Hyperparameters, index: usize) -> Result<Self, Error> {
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
            // Errors of these two are what most of the logits' error comes from.
            query_key_value: Linear::new(&parts)?.with_precision(Precision::Wide),
            attention_output: linear(file, &name("attn_output"), query, Some(hidden))?,
            feed_forward_norm: vector(file, &name("ffn_norm"), hidden)?,
            gate: linear(file, &name("ffn_gate"), hidden, Some(wide))?,
            up: linear(file, &name("ffn_up"), hidden, Some(wide))?,
            down: linear(file, &name("ffn_down"), wide, Some(hidden))?
                .with_precision(Precision::Wide),
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
    file: &dyn Weights,
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

fn linear(
    file: &dyn Weights,
    name: &str,
    columns: usize,
    rows: Option<usize>,
) -> Result<Linear, Error> {
    Linear::new(&[(name.to_owned(), matrix(file, name, columns, rows)?)])
}

/// Reads a vector of floats.
fn vector(file: &dyn Weights, name: &str, length: usize) -> Result<Vec<f32>, Error> {
    let stored = file.tensor(name)?;
    if stored.dims != [length] || stored.weight_type != WeightType::F32 {
        let got = (stored.weight_type, stored.dims);
        return Err(Error::Model(format!("tensor `{name}`: expected F32 [{length}], got {got:?}")));
    }
    Ok(stored.data.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
}
