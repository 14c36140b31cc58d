//! What tensors are called in GGUF files and in Hugging Face's directories.

use std::collections::BTreeSet;

use super::Hyperparameters;
use crate::Error;
use crate::weights::Weights;

/// Whose names a model's tensors have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Names {
    /// Those of llama.cpp.
    Gguf,
    /// Those of transformers.
    HuggingFace,
}

/// A tensor of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The norm in front of attention.
    AttentionNorm,
    /// The matrix of the queries.
    Query,
    /// The matrix of the keys.
    Key,
    /// The matrix of the values.
    Value,
    /// The bias of the queries.
    QueryBias,
    /// The bias of the keys.
    KeyBias,
    /// The bias of the values.
    ValueBias,
    /// The norm of a query head.
    QueryNorm,
    /// The norm of a key head.
    KeyNorm,
    /// The matrix behind attention.
    AttentionOutput,
    /// The norm in front of the feed-forward layer.
    FeedForwardNorm,
    /// The matrix whose outputs open and close the gate.
    Gate,
    /// The matrix of what passes the gate.
    Up,
    /// The matrix behind the gate.
    Down,
}

impl Part {
    const WEIGHTS: [Self; 9] = [
        Self::AttentionNorm,
        Self::Query,
        Self::Key,
        Self::Value,
        Self::AttentionOutput,
        Self::FeedForwardNorm,
        Self::Gate,
        Self::Up,
        Self::Down,
    ];
    const BIASES: [Self; 3] = [Self::QueryBias, Self::KeyBias, Self::ValueBias];
    const HEAD_NORMS: [Self; 2] = [Self::QueryNorm, Self::KeyNorm];

    /// Returns the names within a layer: GGUF's and Hugging Face's.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::AttentionNorm => ("attn_norm.weight", "input_layernorm.weight"),
            Self::Query => ("attn_q.weight", "self_attn.q_proj.weight"),
            Self::Key => ("attn_k.weight", "self_attn.k_proj.weight"),
            Self::Value => ("attn_v.weight", "self_attn.v_proj.weight"),
            Self::QueryBias => ("attn_q.bias", "self_attn.q_proj.bias"),
            Self::KeyBias => ("attn_k.bias", "self_attn.k_proj.bias"),
            Self::ValueBias => ("attn_v.bias", "self_attn.v_proj.bias"),
            Self::QueryNorm => ("attn_q_norm.weight", "self_attn.q_norm.weight"),
            Self::KeyNorm => ("attn_k_norm.weight", "self_attn.k_norm.weight"),
            Self::AttentionOutput => ("attn_output.weight", "self_attn.o_proj.weight"),
            Self::FeedForwardNorm => ("ffn_norm.weight", "post_attention_layernorm.weight"),
            Self::Gate => ("ffn_gate.weight", "mlp.gate_proj.weight"),
            Self::Up => ("ffn_up.weight", "mlp.up_proj.weight"),
            Self::Down => ("ffn_down.weight", "mlp.down_proj.weight"),
        }
    }
}

impl Names {
    /// Returns the name of a layer's tensor.
    pub fn layer(self, index: usize, part: Part) -> String {
        let (gguf, hugging_face) = part.names();
        match self {
            Self::Gguf => format!("blk.{index}.{gguf}"),
            Self::HuggingFace => format!("model.layers.{index}.{hugging_face}"),
        }
    }

    /// Returns the name of the embedding.
    pub fn embedding(self) -> &'static str {
        match self {
            Self::Gguf => "token_embd.weight",
            Self::HuggingFace => "model.embed_tokens.weight",
        }
    }

    /// Returns the name of the norm behind the last layer.
    pub fn norm(self) -> &'static str {
        match self {
            Self::Gguf => "output_norm.weight",
            Self::HuggingFace => "model.norm.weight",
        }
    }

    /// Returns the name of the output matrix.
    pub fn head(self) -> &'static str {
        match self {
            Self::Gguf => "output.weight",
            Self::HuggingFace => "lm_head.weight",
        }
    }

    /// Checks that there is no tensor that the forward pass would leave out: it would be another
    /// model than the one in the file. What transformers leaves out as well may be there: an output
    /// matrix beside an embedding that is said to be it, and rotary frequencies.
    ///
    /// Errors: there is one; the text names it.
    pub fn check(self, weights: &dyn Weights, sizes: &Hyperparameters) -> Result<(), Error> {
        let mut known = BTreeSet::new();
        for index in 0..sizes.layers {
            let mut add = |parts: &[Part]| {
                known.extend(parts.iter().map(|&part| self.layer(index, part)));
            };
            add(&Part::WEIGHTS);
            if sizes.family.has_biases() {
                add(&Part::BIASES);
            }
            if sizes.family.has_head_norms() {
                add(&Part::HEAD_NORMS);
            }
        }
        known.extend([self.embedding(), self.norm(), self.head()].map(str::to_owned));
        // Older checkpoints keep the frequencies that their configuration gives anyhow.
        let is_frequencies = |name: &str| match self {
            Self::Gguf => name == "rope_freqs.weight",
            Self::HuggingFace => {
                name.starts_with("model.") && name.ends_with(".rotary_emb.inv_freq")
            }
        };
        let is_known = |name: &str| known.contains(name) || is_frequencies(name);
        match weights.names().find(|name| !is_known(name)) {
            None => Ok(()),
            Some(name) => {
                let (family, layers) = (sizes.family.name(), sizes.layers);
                Err(Error::Model(format!(
                    "tensor `{name}`: is not one of architecture `{family}` with {layers} layers"
                )))
            }
        }
    }
}
