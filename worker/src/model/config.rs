//! The sizes of a model, read from its file and checked against each other.

mod gguf;
mod json;

use super::{Family, Rope};
use crate::Error;

/// The largest size of anything: far above every model, far below an overflow.
const MAX_SIZE: u64 = 1 << 24;

/// The most layers.
const MAX_LAYERS: u64 = 1024;

/// The most dimensions of a head.
const MAX_HEAD_DIM: u64 = 1024;

/// The sizes of a decoder-only transformer.
#[derive(Clone, Debug, PartialEq)]
pub struct Hyperparameters {
    /// The family.
    pub family: Family,
    /// Layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the feed-forward layer.
    pub feed_forward: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Dimensions of a head.
    pub head_dim: usize,
    /// The longest sequence that the model was made for.
    pub context_length: usize,
    /// How positions turn the heads.
    pub rope: Rope,
    /// Added to the mean square before the root.
    pub norm_epsilon: f32,
    /// For each layer the last tokens that it attends to, the own one included; none: all.
    pub windows: Vec<Option<usize>>,
    /// Whether the embedding is the output matrix too; none: if there is no other.
    pub ties_head: Option<bool>,
    /// Tokens of the vocabulary; none: as many as the embedding has rows.
    pub vocabulary: Option<usize>,
}

impl Hyperparameters {
    /// Checks what no field shows alone.
    fn checked(self) -> Result<Self, Error> {
        let problem = if !self.heads.is_multiple_of(self.kv_heads) {
            format!("{} query heads do not share {} KV heads", self.heads, self.kv_heads)
        } else if !self.head_dim.is_multiple_of(2) {
            format!("heads of {} dimensions cannot be rotated in pairs", self.head_dim)
        } else if !(self.norm_epsilon.is_finite() && self.norm_epsilon >= 0.0) {
            format!("norm epsilon: expected a number from 0, got {}", self.norm_epsilon)
        } else if self.rope.frequencies.iter().any(|frequency| !frequency.is_finite()) {
            "the rotary frequencies are not finite".to_owned()
        } else {
            return Ok(self);
        };
        Err(Error::Model(problem))
    }

    /// Returns the length of a row of all query heads.
    pub fn query_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Returns the length of a row of all key heads, or of all value heads.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}

/// Checks a size; `key` is what messages call it.
fn within(key: &str, value: u64, most: u64) -> Result<usize, Error> {
    match value {
        0 => Err(Error::Model(format!("{key}: expected 1 to {most}, got 0"))),
        value if value > most => {
            Err(Error::Model(format!("{key}: expected 1 to {most}, got {value}")))
        }
        value => Ok(value as usize),
    }
}

/// Checks a number that has to be above zero; `key` is what messages call it.
fn positive(key: &str, value: f64) -> Result<f64, Error> {
    // The upper end keeps what is computed of it finite.
    match value > 0.0 && value <= 1e15 {
        true => Ok(value),
        false => Err(Error::Model(format!("{key}: expected a number above 0, got {value}"))),
    }
}

#[cfg(test)]
mod tests;
