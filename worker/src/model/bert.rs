//! Encoders of BERT's kind: absolute positions, attention in both directions, layer norms behind
//! each sum, GELU.

mod forward;
mod sizes;

use std::cell::RefCell;
use std::collections::BTreeSet;

use crate::Error;
use crate::cpu::linear::Linear;
use crate::cpu::postnorm::LayerNorm;
use crate::weights::{self, StoredTensor, Weights};

pub use forward::Buffers;
pub use sizes::{Family, KNOWN_ENCODERS, Sizes};

/// The weights of an encoder.
#[derive(Debug)]
pub struct Bert {
    sizes: Sizes,
    words: Linear,
    /// `[positions, hidden]`; the row of the first kind of token is added to each.
    positions: Vec<f32>,
    norm: LayerNorm,
    layers: Vec<LayerWeights>,
}

/// A matrix and what is added to its product.
#[derive(Debug)]
struct Dense {
    matrix: Linear,
    bias: Vec<f32>,
}

#[derive(Debug)]
struct LayerWeights {
    query_key_value: Dense,
    attention_output: Dense,
    attention_norm: LayerNorm,
    up: Dense,
    down: Dense,
    output_norm: LayerNorm,
}

/// The names of a layer's parts, from `query` to `output_norm`.
struct Names {
    layer: &'static str,
    query: [&'static str; 3],
    attention_output: &'static str,
    attention_norm: &'static str,
    up: &'static str,
    down: &'static str,
    output_norm: &'static str,
}

impl Names {
    const BERT: Self = Self {
        layer: "encoder.layer",
        query: ["attention.self.query", "attention.self.key", "attention.self.value"],
        attention_output: "attention.output.dense",
        attention_norm: "attention.output.LayerNorm",
        up: "intermediate.dense",
        down: "output.dense",
        output_norm: "output.LayerNorm",
    };
    const DISTIL: Self = Self {
        layer: "transformer.layer",
        query: ["attention.q_lin", "attention.k_lin", "attention.v_lin"],
        attention_output: "attention.out_lin",
        attention_norm: "sa_layer_norm",
        up: "ffn.lin1",
        down: "ffn.lin2",
        output_norm: "output_layer_norm",
    };
}

/// Tensors below a prefix, checked against the shapes that the sizes ask for.
struct Reader<'a> {
    weights: &'a dyn Weights,
    prefix: &'static str,
    epsilon: f32,
    /// What was asked for.
    read: RefCell<BTreeSet<String>>,
}

impl Bert {
    /// Reads and packs the weights. A head that was trained on top is left out.
    ///
    /// Errors: a tensor is missing or has another shape, or the encoder has one that is not
    /// computed; the text names it.
    pub fn read(weights: &dyn Weights, sizes: Sizes) -> Result<Self, Error> {
        const WORDS: &str = "embeddings.word_embeddings.weight";
        // A model with a head keeps the encoder under its own name.
        let prefixes = ["", "bert.", "roberta.", "distilbert."];
        let has_words = |prefix: &&str| weights.has_tensor(&format!("{prefix}{WORDS}"));
        let prefix = prefixes.into_iter().find(has_words).unwrap_or_default();
        let (epsilon, read) = (sizes.norm_epsilon, RefCell::default());
        let reader = Reader { weights, prefix, epsilon, read };
        let names = match sizes.family {
            Family::DistilBert => Names::DISTIL,
            Family::Bert | Family::Roberta => Names::BERT,
        };
        let layers = (0..sizes.layers)
            .map(|index| LayerWeights::read(&reader, &sizes, &names, index))
            .collect::<Result<_, _>>()?;
        let model = Self {
            words: reader.linear(&[WORDS], [sizes.hidden, sizes.vocabulary])?,
            positions: reader.positions(&sizes)?,
            norm: reader.norm("embeddings.LayerNorm", sizes.hidden)?,
            layers,
            sizes,
        };
        reader.check_rest(&model.sizes)?;
        Ok(model)
    }

    /// Returns the sizes.
    pub fn sizes(&self) -> &Sizes {
        &self.sizes
    }
}

impl LayerWeights {
    fn read(
        reader: &Reader<'_>,
        sizes: &Sizes,
        names: &Names,
        index: usize,
    ) -> Result<Self, Error> {
        let (hidden, wide) = (sizes.hidden, sizes.feed_forward);
        let name = |part: &str| format!("{}.{index}.{part}", names.layer);
        let dense = |part: &str, shape| reader.dense(&[name(part)], shape);
        Ok(Self {
            query_key_value: reader.dense(&names.query.map(name), [hidden, hidden])?,
            attention_output: dense(names.attention_output, [hidden, hidden])?,
            attention_norm: reader.norm(&name(names.attention_norm), hidden)?,
            up: dense(names.up, [hidden, wide])?,
            down: dense(names.down, [wide, hidden])?,
            output_norm: reader.norm(&name(names.output_norm), hidden)?,
        })
    }
}

impl Reader<'_> {
    /// Reads a tensor of a shape, the contiguous dimension first.
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<(String, StoredTensor), Error> {
        let name = format!("{}{name}", self.prefix);
        self.read.borrow_mut().insert(name.clone());
        let stored = self.weights.tensor(&name)?;
        if stored.dims != shape {
            let got = &stored.dims;
            let text = format!("tensor `{name}`: expected {shape:?}, got {got:?}");
            return Err(Error::Model(text));
        }
        Ok((name, stored))
    }

    /// Refuses what the encoder itself has beyond what was read, such as layers that its
    /// configuration does not count. A head and a pooler lie beside it, and numbers of positions
    /// are no weights.
    fn check_rest(&self, sizes: &Sizes) -> Result<(), Error> {
        let read = self.read.borrow();
        let is_left = |name: &&str| {
            let own = name.strip_prefix(self.prefix).unwrap_or_default();
            let is_part =
                ["embeddings.", "encoder.", "transformer."].iter().any(|p| own.starts_with(p));
            is_part && !own.ends_with(".position_ids") && !read.contains(*name)
        };
        match self.weights.names().find(is_left) {
            None => Ok(()),
            Some(name) => {
                let (family, layers) = (sizes.family, sizes.layers);
                Err(Error::Model(format!(
                    "tensor `{name}`: is not one of {family:?} with {layers} layers"
                )))
            }
        }
    }

    /// Reads matrices of one shape, columns first, as one below the other.
    fn linear(&self, names: &[&str], shape: [usize; 2]) -> Result<Linear, Error> {
        let read = |name: &&str| self.tensor(name, &shape);
        Linear::new(&names.iter().map(read).collect::<Result<Vec<_>, _>>()?)
    }

    /// Reads matrices of one shape and their biases.
    fn dense(&self, names: &[String], shape: [usize; 2]) -> Result<Dense, Error> {
        let weights: Vec<String> = names.iter().map(|name| format!("{name}.weight")).collect();
        let matrix = self.linear(&weights.iter().map(String::as_str).collect::<Vec<_>>(), shape)?;
        let mut bias = Vec::with_capacity(matrix.rows());
        for name in names {
            bias.extend(self.floats(&format!("{name}.bias"), &[shape[1]])?);
        }
        Ok(Dense { matrix, bias })
    }

    fn norm(&self, name: &str, width: usize) -> Result<LayerNorm, Error> {
        Ok(LayerNorm {
            weight: self.floats(&format!("{name}.weight"), &[width])?,
            bias: self.floats(&format!("{name}.bias"), &[width])?,
            epsilon: self.epsilon,
        })
    }

    /// Reads the table of positions and adds the first kind of token to each row.
    fn positions(&self, sizes: &Sizes) -> Result<Vec<f32>, Error> {
        let shape = [sizes.hidden, sizes.positions];
        let mut rows = self.floats("embeddings.position_embeddings.weight", &shape)?;
        if sizes.token_types > 0 {
            let shape = [sizes.hidden, sizes.token_types];
            let kinds = self.floats("embeddings.token_type_embeddings.weight", &shape)?;
            for row in rows.chunks_exact_mut(sizes.hidden) {
                row.iter_mut().zip(&kinds).for_each(|(value, kind)| *value += kind);
            }
        }
        Ok(rows)
    }

    /// Reads a tensor of floats, whose type may be any that is no quantised one.
    fn floats(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, Error> {
        let (name, stored) = self.tensor(name, shape)?;
        weights::floats(&name, &stored)
    }
}

#[cfg(test)]
pub(crate) mod tests;
