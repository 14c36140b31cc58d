//! The sizes of an encoder, read from its `config.json` and checked against each other.

use crate::Error;
use crate::cpu::bidirectional::Heads;
use crate::model::family::not_run;
use crate::weights::Json;

/// The largest size of anything: far above every model, far below an overflow.
const MAX_SIZE: u64 = 1 << 24;

/// A family of encoders: they differ in names and in where positions begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// BERT, and all that were trained like it: MiniLM, BGE, E5, GTE.
    Bert,
    /// RoBERTa and XLM-RoBERTa, whose positions begin behind the padding token's number.
    Roberta,
    /// DistilBERT, which has no token types.
    DistilBert,
}

/// The names of `model_type` that this worker runs as encoders.
pub const KNOWN_ENCODERS: [&str; 5] = ["bert", "camembert", "distilbert", "roberta", "xlm-roberta"];

impl Family {
    /// Returns the family of a `model_type`; none if it is no encoder that is known.
    pub fn of(model_type: &str) -> Option<Self> {
        match model_type {
            "bert" => Some(Self::Bert),
            "roberta" | "xlm-roberta" | "camembert" => Some(Self::Roberta),
            "distilbert" => Some(Self::DistilBert),
            _ => None,
        }
    }
}

/// The sizes of an encoder.
#[derive(Clone, Debug, PartialEq)]
pub struct Sizes {
    /// What kind it is.
    pub family: Family,
    /// Layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the feed-forward layer.
    pub feed_forward: usize,
    /// Heads, each of `hidden / heads` dimensions.
    pub heads: usize,
    /// Tokens of the vocabulary.
    pub vocabulary: usize,
    /// Rows of the table of positions.
    pub positions: usize,
    /// The row of a text's first token.
    pub first_position: usize,
    /// Kinds of tokens; all of a text that is embedded are of the first.
    pub token_types: usize,
    /// Added to the variance before the root.
    pub norm_epsilon: f32,
}

impl Sizes {
    /// Reads the sizes.
    ///
    /// Errors: a kind of model, an activation or positions that are not known, a missing field, or
    /// sizes that do not fit together; the text names the field.
    pub fn read(config: &Json) -> Result<Self, Error> {
        let model_type = config.optional_string("model_type")?.unwrap_or_default();
        let Some(family) = Family::of(model_type) else {
            return Err(config.refusal("model_type", &not_run(model_type)));
        };
        let size = |key: &str| within(config, key, config.number(key)?);
        let or = |key: &str, default: u64| {
            within(config, key, config.optional_number(key)?.unwrap_or(default))
        };
        let [hidden, layers, heads, feed_forward, activation] = match family {
            Family::DistilBert => ["dim", "n_layers", "n_heads", "hidden_dim", "activation"],
            _ => [
                "hidden_size",
                "num_hidden_layers",
                "num_attention_heads",
                "intermediate_size",
                "hidden_act",
            ],
        };
        expect(config, activation, "gelu")?;
        expect(config, "position_embedding_type", "absolute")?;
        if config.optional_bool("is_decoder")? == Some(true) {
            return Err(config.refusal("is_decoder", "expected false: a decoder is no encoder"));
        }
        let padding = config.optional_number("pad_token_id")?.unwrap_or(1).min(MAX_SIZE) as usize;
        let sizes = Self {
            family,
            layers: size(layers)?,
            hidden: size(hidden)?,
            feed_forward: size(feed_forward)?,
            heads: size(heads)?,
            vocabulary: size("vocab_size")?,
            positions: or("max_position_embeddings", 512)?,
            first_position: if family == Family::Roberta { padding + 1 } else { 0 },
            token_types: match family {
                Family::DistilBert => 0,
                _ => or("type_vocab_size", 2)?,
            },
            norm_epsilon: config.optional_float("layer_norm_eps")?.unwrap_or(1e-12) as f32,
        };
        sizes.check(config, heads)?;
        Ok(sizes)
    }

    fn check(&self, config: &Json, heads: &str) -> Result<(), Error> {
        let Self { hidden, heads: count, positions, first_position, .. } = *self;
        if !hidden.is_multiple_of(count) {
            let why = format!("{count} heads do not share {hidden} dimensions");
            return Err(config.refusal(heads, &why));
        }
        if positions <= first_position {
            let why = format!("expected more than {first_position}, got {positions}");
            return Err(config.refusal("max_position_embeddings", &why));
        }
        match self.norm_epsilon >= 0.0 && self.norm_epsilon.is_finite() {
            true => Ok(()),
            false => Err(config.refusal("layer_norm_eps", "expected a number from 0")),
        }
    }

    /// Returns the most tokens of one text.
    pub fn context_length(&self) -> usize {
        self.positions - self.first_position
    }

    /// Returns the shape of the heads.
    pub fn heads(&self) -> Heads {
        Heads { count: self.heads, dimensions: self.hidden / self.heads }
    }
}

fn within(config: &Json, key: &str, value: u64) -> Result<usize, Error> {
    match value {
        1..=MAX_SIZE => Ok(value as usize),
        _ => Err(config.refusal(key, &format!("expected 1 to {MAX_SIZE}, got {value}"))),
    }
}

/// Refuses a word that is there and is another one.
fn expect(config: &Json, key: &str, known: &str) -> Result<(), Error> {
    match config.optional_string(key)? {
        Some(word) if word != known => {
            Err(config.refusal(key, &format!("`{word}` is not known; known is `{known}`")))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn minilm() -> Value {
        json!({
            "model_type": "bert", "hidden_size": 384, "num_hidden_layers": 6,
            "num_attention_heads": 12, "intermediate_size": 1536, "hidden_act": "gelu",
            "vocab_size": 30522, "max_position_embeddings": 512, "type_vocab_size": 2,
            "layer_norm_eps": 1e-12, "pad_token_id": 0, "position_embedding_type": "absolute",
        })
    }

    fn read(config: &Value) -> Result<Sizes, Error> {
        Sizes::read(&Json::parse("config.json", config.to_string().as_bytes()).unwrap())
    }

    #[test]
    fn positions_begin_where_the_family_has_them() {
        let sizes = read(&minilm()).unwrap();
        assert_eq!((sizes.first_position, sizes.context_length()), (0, 512));
        assert_eq!(sizes.heads(), Heads { count: 12, dimensions: 32 });
        let mut roberta = minilm();
        roberta["model_type"] = "xlm-roberta".into();
        roberta["max_position_embeddings"] = 514.into();
        roberta["pad_token_id"] = 1.into();
        let sizes = read(&roberta).unwrap();
        assert_eq!((sizes.first_position, sizes.context_length()), (2, 512));
    }

    #[test]
    fn what_is_not_known_is_refused_by_name() {
        let table = [
            ("model_type", json!("modernbert"), "architecture `modernbert` does not run here;"),
            ("hidden_act", json!("relu"), "`hidden_act`: `relu` is not known; known is `gelu`"),
            ("position_embedding_type", json!("relative_key"), "`relative_key` is not known"),
            ("num_attention_heads", json!(7), "7 heads do not share 384 dimensions"),
            ("num_hidden_layers", json!(0), "`num_hidden_layers`: expected 1 to"),
            ("vocab_size", json!(null), "`vocab_size`: is missing"),
            ("hidden_size", json!(-1), "`hidden_size`: expected a whole number"),
            ("is_decoder", json!(true), "a decoder is no encoder"),
            ("layer_norm_eps", json!(-1.0), "`layer_norm_eps`: expected a number from 0"),
        ];
        for (key, value, expected) in table {
            let mut config = minilm();
            config[key] = value;
            let error = read(&config).unwrap_err().to_string();
            assert!(error.contains(expected), "{key}: {error}");
        }
    }
}
