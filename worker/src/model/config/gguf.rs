//! The sizes of a model out of GGUF metadata.

use super::super::{Family, Rope, Scaling};
use super::{Hyperparameters, MAX_HEAD_DIM, MAX_LAYERS, MAX_SIZE, positive, within};
use crate::Error;
use crate::weights::gguf::{Gguf, Value};
use crate::weights::{Weights, floats};

/// The tensor of divisors of the rotary frequencies.
const FACTORS: &str = "rope_freqs.weight";

/// The keys, below the architecture's name, that are read here or change no result.
const KNOWN: [&str; 22] = [
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.sliding_window",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "pooling_type",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.factor",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "tensor_data_layout",
    "vocab_size",
];

impl Hyperparameters {
    /// Reads the sizes from a GGUF file.
    ///
    /// Errors: an unknown architecture, a missing field, a field that would change the result and
    /// is not known, or sizes that do not fit together.
    pub fn from_gguf(file: &Gguf) -> Result<Self, Error> {
        if let Some(parts) = file.optional_number("split.count")?.filter(|&count| count > 1) {
            let text = format!("`split.count`: expected a whole model, got one of {parts} files");
            return Err(Error::Model(text));
        }
        let architecture = file.optional_string("general.architecture")?.unwrap_or("");
        let refusal = |why| Error::Model(format!("`general.architecture`: {why}"));
        let fields = Fields { file, family: Family::named(architecture).map_err(refusal)? };
        fields.refuse_unknown()?;
        let heads = fields.size("attention.head_count", MAX_SIZE)?;
        let hidden = fields.size("embedding_length", MAX_SIZE)?;
        let head_dim = fields.optional_size("attention.key_length", MAX_HEAD_DIM)?;
        let head_dim = match head_dim {
            Some(head_dim) => head_dim,
            None => within("dimensions of a head", (hidden / heads) as u64, MAX_HEAD_DIM)?,
        };
        for key in ["attention.value_length", "rope.dimension_count"] {
            if let Some(other) = fields.optional_size(key, MAX_SIZE)?.filter(|&d| d != head_dim) {
                let key = fields.key(key);
                let text = format!("`{key}`: expected the {head_dim} of a head, got {other}");
                return Err(Error::Model(text));
            }
        }
        let context_length = fields.size("context_length", MAX_SIZE)?;
        let layers = fields.size("block_count", MAX_LAYERS)?;
        let epsilon = fields.key("attention.layer_norm_rms_epsilon");
        let missing = || Error::Model(format!("`{epsilon}` is missing"));
        let norm_epsilon = file.optional_float(&epsilon)?.ok_or_else(missing)? as f32;
        let window = fields.optional_size("attention.sliding_window", MAX_SIZE)?;
        Self {
            family: fields.family,
            feed_forward: fields.size("feed_forward_length", MAX_SIZE)?,
            kv_heads: fields.optional_size("attention.head_count_kv", MAX_SIZE)?.unwrap_or(heads),
            rope: fields.rope(head_dim, context_length)?,
            norm_epsilon,
            windows: vec![window; layers],
            ties_head: None,
            vocabulary: None,
            layers,
            context_length,
            heads,
            hidden,
            head_dim,
        }
        .checked()
    }
}

/// The metadata below the architecture's name.
struct Fields<'a> {
    file: &'a Gguf,
    family: Family,
}

impl Fields<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.family.name())
    }

    fn size(&self, name: &str, most: u64) -> Result<usize, Error> {
        let key = self.key(name);
        within(&format!("`{key}`"), self.file.number(&key)?, most)
    }

    fn optional_size(&self, name: &str, most: u64) -> Result<Option<usize>, Error> {
        let key = self.key(name);
        let value = self.file.optional_number(&key)?;
        value.map(|value| within(&format!("`{key}`"), value, most)).transpose()
    }

    fn positive(&self, name: &str) -> Result<Option<f64>, Error> {
        let key = self.key(name);
        let value = self.file.optional_float(&key)?;
        value.map(|value| positive(&format!("`{key}`"), value)).transpose()
    }

    /// Refuses fields that are not known, unless they say that there is none of their matter.
    fn refuse_unknown(&self) -> Result<(), Error> {
        let prefix = self.key("");
        for (key, value) in self.file.entries() {
            let name = key.strip_prefix(&prefix);
            let is_nothing = match value {
                Value::Unsigned(0) | Value::Signed(0) | Value::Bool(false) => true,
                Value::Float(value) => *value == 0.0,
                _ => false,
            };
            if name.is_some_and(|name| !KNOWN.contains(&name)) && !is_nothing {
                let text = format!("`{key}`: is not known, and what it changes would be left out");
                return Err(Error::Model(text));
            }
        }
        Ok(())
    }

    fn rope(&self, head_dim: usize, context_length: usize) -> Result<Rope, Error> {
        let base = self.positive("rope.freq_base")?.unwrap_or(10_000.0);
        let factor = self.positive("rope.scaling.factor")?;
        let key = self.key("rope.scaling.type");
        let missing = || {
            let key = self.key("rope.scaling.factor");
            Error::Model(format!("`{key}` is missing"))
        };
        let old = self.positive("rope.scale_linear")?.filter(|&factor| factor != 1.0);
        let mut scaling = match self.file.optional_string(&key)?.unwrap_or("none") {
            "none" => old.map_or(Scaling::None, |factor| Scaling::Linear { factor }),
            "linear" => Scaling::Linear { factor: factor.ok_or_else(missing)? },
            "yarn" => Scaling::Yarn {
                factor: factor.ok_or_else(missing)?,
                fast: self.positive("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
                slow: self.positive("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
                original: self
                    .optional_size("rope.scaling.original_context_length", MAX_SIZE)?
                    .unwrap_or(context_length) as f64,
                magnitude: None,
            },
            kind => {
                let kind = kind.chars().take(64).collect::<String>();
                let text = format!("`{key}`: `{kind}` is not known; known are none, linear, yarn");
                return Err(Error::Model(text));
            }
        };
        if self.file.has_tensor(FACTORS) {
            if scaling != Scaling::None {
                let text = format!("`{key}`: there is `{FACTORS}` too, which contradicts it");
                return Err(Error::Model(text));
            }
            let factors = floats(FACTORS, &self.file.tensor(FACTORS)?)?;
            if factors.len() != head_dim / 2 {
                let (expected, got) = (head_dim / 2, factors.len());
                let text = format!("tensor `{FACTORS}`: expected [{expected}], got [{got}]");
                return Err(Error::Model(text));
            }
            for &factor in &factors {
                positive(&format!("tensor `{FACTORS}`"), f64::from(factor))?;
            }
            scaling = Scaling::Factors(factors);
        }
        Ok(Rope::new(base, head_dim, &scaling))
    }
}
