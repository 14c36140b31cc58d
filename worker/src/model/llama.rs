//! The Llama family and its kin: grouped-query attention with rotary positions, SwiGLU, RMS norms.
//!
//! In memory the pairs of dimensions that turn together are the halves of a head: dimension `i`
//! goes with `i + head_dim / 2`. Files that keep such pairs side by side are reordered at load.

mod forward;

use super::{Checkpoint, Hyperparameters, Loading, Names, Part};
use crate::Error;
use crate::cpu::activations::Precision;
use crate::cpu::linear::Linear;
use crate::cpu::vector::Rope;
use crate::lora;
use crate::weights::{StoredTensor, Weights, floats};

pub use forward::{Buffers, Input, Position};

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
    /// Returns those with which the logits' error is about half of llama.cpp's, and their divergence
    /// about a third, at little cost: second digits above twice a row's mean before queries, keys,
    /// values, gates and what they gate, above 4 times before the way back and the output matrix, and
    /// none behind attention, where what they gain disappears in the error of the rest. The table
    /// in `docs/engine.md` has what other settings give; `examples/precision.rs` measures it.
    fn default() -> Self {
        let above = |excess| Precision { excess };
        Self {
            query_key_value: above(2.0),
            attention_output: Precision::NARROW,
            gate_up: above(2.0),
            down: above(4.0),
            head: above(4.0),
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
    /// Added to queries, keys and values; none: nothing.
    biases: Option<Vec<f32>>,
    /// The norms of a query head and of a key head; none: heads stay as they are.
    head_norms: Option<[Vec<f32>; 2]>,
    attention_output: Linear,
    feed_forward_norm: Vec<f32>,
    gate: Linear,
    up: Linear,
    down: Linear,
}

/// What one job of loading gives.
enum Piece {
    Matrix(Linear),
    Layer(Box<LayerWeights>),
}

impl Llama {
    /// Reads and packs the weights.
    ///
    /// Errors: a tensor is missing or has another shape; the text names it.
    pub fn read(checkpoint: &Checkpoint, loading: &Loading) -> Result<Self, Error> {
        let reader = Reader {
            weights: &checkpoint.weights,
            names: checkpoint.names,
            sizes: &checkpoint.sizes,
        };
        let Reader { weights, names, sizes } = reader;
        let ties = sizes.ties_head.unwrap_or_else(|| !weights.has_tensor(names.head()));
        // The largest come first, so that the threads end together.
        let matrices = [names.embedding(), names.head()];
        let matrices = if ties { &matrices[..1] } else { &matrices };
        let pieces = loading.each(matrices.len() + sizes.layers, |index| {
            Ok(match matrices.get(index) {
                Some(name) => Piece::Matrix(reader.linear(name, sizes.hidden, sizes.vocabulary)?),
                None => Piece::Layer(Box::new(reader.layer(index - matrices.len())?)),
            })
        })?;
        let (mut read, mut layers) = (Vec::new(), Vec::with_capacity(sizes.layers));
        for piece in pieces {
            match piece {
                Piece::Matrix(matrix) => read.push(matrix),
                Piece::Layer(layer) => layers.push(*layer),
            }
        }
        let mut read = read.into_iter();
        let embedding = read.next().ok_or_else(|| Error::Model("no embedding".into()))?;
        let head = read.next();
        if let Some(rows) = head.as_ref().map(Linear::rows).filter(|&n| n != embedding.rows()) {
            let (name, expected) = (names.head(), embedding.rows());
            let text = format!("tensor `{name}`: expected {expected} rows, got {rows}");
            return Err(Error::Model(text));
        }
        let norm = reader.vector(names.norm(), sizes.hidden)?;
        let (sizes, rope) = (sizes.clone(), &sizes.rope);
        let rope = Rope::with_frequencies(rope.frequencies.clone(), rope.magnitude);
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

    /// Returns the sizes that an adapter has to fit.
    pub fn shape(&self) -> lora::Shape {
        lora::Shape {
            layers: self.sizes.layers,
            hidden: self.sizes.hidden,
            query: self.sizes.query_width(),
            kv: self.sizes.kv_width(),
            feed_forward: self.sizes.feed_forward,
        }
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

/// Reads tensors and checks their shapes.
#[derive(Clone, Copy)]
struct Reader<'a> {
    weights: &'a dyn Weights,
    names: Names,
    sizes: &'a Hyperparameters,
}

impl Reader<'_> {
    fn layer(&self, index: usize) -> Result<LayerWeights, Error> {
        let name = |part| self.names.layer(index, part);
        let family = self.sizes.family;
        let (hidden, wide) = (self.sizes.hidden, self.sizes.feed_forward);
        let (query, kv) = (self.sizes.query_width(), self.sizes.kv_width());
        let parts = [(Part::Query, query), (Part::Key, kv), (Part::Value, kv)]
            .into_iter()
            .map(|(part, rows)| Ok((name(part), self.matrix(&name(part), hidden, Some(rows))?)));
        let mut parts = parts.collect::<Result<Vec<_>, Error>>()?;
        if self.names == Names::Gguf && family.pairs_neighbours_in_gguf() {
            for (_, turned) in &mut parts[..2] {
                part_pairs(turned, self.sizes.head_dim);
            }
        }
        let biases = match family.has_biases() {
            true => Some(
                [
                    self.vector(&name(Part::QueryBias), query)?,
                    self.vector(&name(Part::KeyBias), kv)?,
                    self.vector(&name(Part::ValueBias), kv)?,
                ]
                .concat(),
            ),
            false => None,
        };
        let head_norm = |part| self.vector(&name(part), self.sizes.head_dim);
        let head_norms = match family.has_head_norms() {
            true => Some([head_norm(Part::QueryNorm)?, head_norm(Part::KeyNorm)?]),
            false => None,
        };
        let linear = |part, columns, rows| self.linear(&name(part), columns, Some(rows));
        Ok(LayerWeights {
            attention_norm: self.vector(&name(Part::AttentionNorm), hidden)?,
            query_key_value: Linear::new(&parts)?,
            biases,
            head_norms,
            attention_output: linear(Part::AttentionOutput, query, hidden)?,
            feed_forward_norm: self.vector(&name(Part::FeedForwardNorm), hidden)?,
            gate: linear(Part::Gate, hidden, wide)?,
            up: linear(Part::Up, hidden, wide)?,
            down: linear(Part::Down, wide, hidden)?,
        })
    }

    /// Reads a matrix; without `rows`, of any number of rows.
    fn matrix(
        &self,
        name: &str,
        columns: usize,
        rows: Option<usize>,
    ) -> Result<StoredTensor, Error> {
        let stored = self.weights.tensor(name)?;
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
        let text = format!("tensor `{name}`: expected {rows} rows of {columns}, got {got:?}");
        Err(Error::Model(text))
    }

    fn linear(&self, name: &str, columns: usize, rows: Option<usize>) -> Result<Linear, Error> {
        Linear::new(&[(name.to_owned(), self.matrix(name, columns, rows)?)])
    }

    /// Reads a vector of floats.
    fn vector(&self, name: &str, length: usize) -> Result<Vec<f32>, Error> {
        let stored = self.weights.tensor(name)?;
        if stored.dims != [length] {
            let got = stored.dims;
            return Err(Error::Model(format!("tensor `{name}`: expected [{length}], got {got:?}")));
        }
        floats(name, &stored)
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
