//! The sizes of a model, read from its file and checked against each other.

use crate::Error;
use crate::gguf::Gguf;
use crate::weights::Weights;

/// The architectures that this worker runs, by their names in GGUF files.
pub const KNOWN_ARCHITECTURES: [&str; 1] = ["llama"];

/// The largest size of anything: far above every model, far below an overflow.
const MAX_SIZE: u64 = 1 << 24;

/// The sizes of a decoder-only transformer.
#[derive(Clone, Debug, PartialEq)]
pub struct Hyperparameters {
    /// The family, as the file names it.
    pub architecture: String,
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
    /// Base of the rotary frequencies.
    pub rope_base: f32,
    /// Added to the mean square before the root.
    pub norm_epsilon: f32,
}

impl Hyperparameters {
    /// Reads the sizes.
    ///
    /// Errors: an unknown architecture, a missing field, or sizes that do not fit together.
    pub fn read(file: &Gguf) -> Result<Self, Error> {
        let architecture = file.optional_string("general.architecture")?.unwrap_or("").to_owned();
        if !KNOWN_ARCHITECTURES.contains(&architecture.as_str()) {
            return Err(Error::Model(format!(
                "architecture `{architecture}` is not known; known are: {}",
                KNOWN_ARCHITECTURES.join(", ")
            )));
        }
        let key = |name: &str| format!("{architecture}.{name}");
        let size = |name: &str| within(&key(name), file.number(&key(name))?);
        let heads = size("attention.head_count")?;
        let hidden = size("embedding_length")?;
        let optional = |name: &str, default: usize| match file.optional_number(&key(name))? {
            None => Ok(default),
            Some(value) => within(&key(name), value),
        };
        let sizes = Self {
            layers: size("block_count")?,
            feed_forward: size("feed_forward_length")?,
            context_length: size("context_length")?,
            kv_heads: optional("attention.head_count_kv", heads)?,
            head_dim: optional("attention.key_length", hidden / heads)?,
            rope_base: file.optional_float(&key("rope.freq_base"))?.unwrap_or(10_000.0) as f32,
            norm_epsilon: file
                .optional_float(&key("attention.layer_norm_rms_epsilon"))?
                .unwrap_or(1e-5) as f32,
            heads,
            hidden,
            architecture,
        };
        sizes.check(file)?;
        Ok(sizes)
    }

    fn check(&self, file: &Gguf) -> Result<(), Error> {
        let rotated =
            file.optional_number(&format!("{}.rope.dimension_count", self.architecture))?;
        let scaling = format!("{}.rope.scaling.type", self.architecture);
        let scaling = file.optional_string(&scaling)?.filter(|kind| *kind != "none");
        let problem = if !self.heads.is_multiple_of(self.kv_heads) {
            format!("{} query heads do not share {} KV heads", self.heads, self.kv_heads)
        } else if !self.head_dim.is_multiple_of(2) {
            format!("heads of {} dimensions cannot be rotated in pairs", self.head_dim)
        } else if rotated.is_some_and(|dims| dims != self.head_dim as u64) {
            format!("rotation of a part of a head ({rotated:?} dimensions) is not known")
        } else if let Some(kind) = scaling {
            format!("rotary scaling `{kind}` is not known")
        } else if file.has_tensor("rope_freqs.weight") {
            "rotary frequency factors (`rope_freqs.weight`) are not known".to_owned()
        } else if !(self.rope_base > 0.0 && self.norm_epsilon >= 0.0) {
            format!("rope base {} or norm epsilon {}", self.rope_base, self.norm_epsilon)
        } else {
            return Ok(());
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

fn within(key: &str, value: u64) -> Result<usize, Error> {
    match value {
        1..=MAX_SIZE => Ok(value as usize),
        _ => Err(Error::Model(format!("`{key}`: expected 1 to {MAX_SIZE}, got {value}"))),
    }
}
