//! The sizes of a model out of a `config.json`.

use serde_json::Value;

use super::super::{Family, Rope, Scaling};
use super::{Hyperparameters, MAX_HEAD_DIM, MAX_LAYERS, MAX_SIZE, positive, within};
use crate::Error;
use crate::weights::Json;

/// Fields that would change the result and that no family here has: nothing but null, false, 0
/// and empty is borne, or the value that leaves all as it is.
const FOREIGN: [(&str, Option<f64>); 30] = [
    ("attention_bias", None),
    ("attention_multiplier", Some(1.0)),
    ("attention_out_bias", None),
    ("attn_logit_softcapping", None),
    ("clip_qkv", None),
    ("embedding_multiplier", Some(1.0)),
    ("final_logit_softcapping", None),
    ("is_encoder_decoder", None),
    ("layer_norm_eps", None),
    ("logit_scale", Some(1.0)),
    ("logits_scaling", Some(1.0)),
    ("mlp_bias", None),
    ("moe_intermediate_size", None),
    ("n_routed_experts", None),
    ("no_rope_layer_interval", None),
    ("no_rope_layers", None),
    ("num_experts", None),
    ("num_local_experts", None),
    ("partial_rotary_factor", Some(1.0)),
    ("q_lora_rank", None),
    ("quantization_config", None),
    ("query_pre_attn_scalar", None),
    ("residual_multiplier", Some(1.0)),
    ("rope_interleaved", None),
    ("rope_local_base_freq", None),
    ("rotary_pct", Some(1.0)),
    ("text_config", None),
    ("use_bidirectional_attention", None),
    ("use_mrope", None),
    ("use_qk_norm", None),
];

/// Fields that are read here or change no result of a forward pass.
const KNOWN: [&str; 47] = [
    "_attn_implementation_autoset",
    "_name_or_path",
    "architectures",
    "attention_dropout",
    "auto_map",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "head_dim",
    "hidden_act",
    "hidden_size",
    "id2label",
    "initializer_range",
    "intermediate_size",
    "is_llama_config",
    "keys_to_ignore_at_inference",
    "label2id",
    "layer_types",
    "max_length",
    "max_position_embeddings",
    "max_window_layers",
    "model_type",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "pretraining_tp",
    "return_dict",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "sliding_window",
    "tie_word_embeddings",
    "tokenizer_class",
    "torch_dtype",
    "torchscript",
    "transformers.js_config",
    "transformers_version",
    "unk_token_id",
    "unsloth_fixed",
    "unsloth_version",
    "use_cache",
    "use_sliding_window",
    "vocab_size",
];

impl Hyperparameters {
    /// Reads the sizes from a `config.json`.
    ///
    /// Errors: an unknown architecture, a missing field, a field that would change the result and
    /// is not known, or fields that contradict each other.
    pub fn from_json(config: &Json) -> Result<Self, Error> {
        let family = family(config)?;
        refuse_foreign(config)?;
        let activation = config.optional_string("hidden_act")?.unwrap_or("silu");
        if activation != "silu" {
            let got = activation.chars().take(64).collect::<String>();
            return Err(config.refusal("hidden_act", &format!("expected `silu`, got `{got}`")));
        }
        let heads = size(config, "num_attention_heads", MAX_SIZE)?;
        let hidden = size(config, "hidden_size", MAX_SIZE)?;
        let kv_heads = match optional_size(config, "num_key_value_heads", MAX_SIZE)? {
            Some(kv_heads) => kv_heads,
            // Only Llama came before heads could share keys.
            None if family == Family::Llama => heads,
            None => return Err(config.refusal("num_key_value_heads", "is missing")),
        };
        let head_dim = match optional_size(config, "head_dim", MAX_HEAD_DIM)? {
            Some(head_dim) => head_dim,
            None if family == Family::Qwen3 => 128,
            None if !hidden.is_multiple_of(heads) => {
                let why = format!("is missing, and {heads} heads do not divide {hidden}");
                return Err(config.refusal("head_dim", &why));
            }
            None => within("dimensions of a head", (hidden / heads) as u64, MAX_HEAD_DIM)?,
        };
        let layers = size(config, "num_hidden_layers", MAX_LAYERS)?;
        let context_length = size(config, "max_position_embeddings", MAX_SIZE)?;
        let epsilon = config.optional_float("rms_norm_eps")?;
        let epsilon = epsilon.ok_or_else(|| config.refusal("rms_norm_eps", "is missing"))?;
        Self {
            feed_forward: size(config, "intermediate_size", MAX_SIZE)?,
            rope: rope(config, head_dim, context_length)?,
            norm_epsilon: epsilon as f32,
            windows: windows(config, family, layers, context_length)?,
            ties_head: Some(config.optional_bool("tie_word_embeddings")?.unwrap_or(false)),
            vocabulary: Some(size(config, "vocab_size", MAX_SIZE)?),
            family,
            layers,
            context_length,
            heads,
            kv_heads,
            hidden,
            head_dim,
        }
        .checked()
    }
}

fn size(config: &Json, key: &str, most: u64) -> Result<usize, Error> {
    optional_size(config, key, most)?.ok_or_else(|| config.refusal(key, "is missing"))
}

fn optional_size(config: &Json, key: &str, most: u64) -> Result<Option<usize>, Error> {
    let value = config.optional_number(key)?;
    value.map(|value| within(&config.label(key), value, most)).transpose()
}

/// Reads the family, which `model_type` and the class in `architectures` have to agree on.
fn family(config: &Json) -> Result<Family, Error> {
    let kind = config.optional_string("model_type")?;
    let kind = kind.ok_or_else(|| config.refusal("model_type", "is missing"))?;
    let family = Family::named(kind).map_err(|why| config.refusal("model_type", &why))?;
    let classes = config.optional_list("architectures")?.unwrap_or_default();
    if classes.iter().all(|class| class == family.class()) {
        return Ok(family);
    }
    let why = format!("expected [`{}`], as `model_type` is `{kind}`", family.class());
    Err(config.refusal("architectures", &why))
}

/// Refuses what would change the result, and warns of what is not known at all.
fn refuse_foreign(config: &Json) -> Result<(), Error> {
    let mut unknown = Vec::new();
    for (key, value) in config.fields() {
        let is_nothing = match value {
            Value::Null | Value::Bool(false) => true,
            Value::Bool(true) => false,
            Value::Number(number) => number.as_f64() == Some(0.0),
            Value::String(text) => text.is_empty(),
            Value::Array(values) => values.is_empty(),
            Value::Object(fields) => fields.is_empty(),
        };
        match FOREIGN.iter().find(|(name, _)| *name == key) {
            Some((_, neutral))
                if !is_nothing && (neutral.is_none() || value.as_f64() != *neutral) =>
            {
                let why = "is not known, and what it changes would be left out";
                return Err(config.refusal(key, why));
            }
            None if !is_nothing && !KNOWN.contains(&key) => unknown.push(key),
            _ => {}
        }
    }
    if !unknown.is_empty() {
        unknown.truncate(32);
        let fields = unknown.join(", ").chars().take(1000).collect::<String>();
        tracing::warn!(fields, "config.json has fields that nobody here knows");
    }
    Ok(())
}

/// Returns the window of each layer.
fn windows(
    config: &Json,
    family: Family,
    layers: usize,
    context_length: usize,
) -> Result<Vec<Option<usize>>, Error> {
    let key = "sliding_window";
    let mut window = optional_size(config, key, MAX_SIZE)?;
    let types = config.optional_list("layer_types")?;
    let is_qwen = matches!(family, Family::Qwen2 | Family::Qwen3);
    if is_qwen && !config.optional_bool("use_sliding_window")?.unwrap_or(false) {
        window = None;
    }
    if family == Family::Mistral && !config.fields().any(|(field, _)| field == key) {
        return Err(config.refusal(key, "is missing; expected a number or null"));
    }
    if family == Family::Llama && window.is_some_and(|window| window < context_length) {
        return Err(config.refusal(key, "is not one of architecture `llama`"));
    }
    let Some(types) = types else {
        let first = match is_qwen && window.is_some() {
            true => config.optional_number("max_window_layers")?.unwrap_or(28),
            false => 0,
        };
        return Ok((0..layers as u64).map(|layer| window.filter(|_| layer >= first)).collect());
    };
    if types.len() != layers {
        let why = format!("expected {layers} elements, got {}", types.len());
        return Err(config.refusal("layer_types", &why));
    }
    let of = |kind: &Value| match (kind.as_str(), window) {
        (Some("full_attention"), _) if is_qwen || window.is_none() => Ok(None),
        (Some("sliding_attention"), Some(window)) => Ok(Some(window)),
        (Some("full_attention" | "sliding_attention"), _) => {
            Err(config.refusal("layer_types", "contradicts `sliding_window`"))
        }
        _ => {
            let why = "expected `full_attention` or `sliding_attention` for each layer";
            Err(config.refusal("layer_types", why))
        }
    };
    types.iter().map(of).collect()
}

/// Reads the rotary frequencies: `rope_theta` and `rope_scaling`, or `rope_parameters`, which
/// holds both in newer files.
fn rope(config: &Json, head_dim: usize, context_length: usize) -> Result<Rope, Error> {
    let (old, new) = (config.object("rope_scaling")?, config.object("rope_parameters")?);
    let bases = [
        config.optional_float("rope_theta")?,
        new.as_ref().map_or(Ok(None), |new| new.optional_float("rope_theta"))?,
    ];
    let base = match bases {
        [Some(one), Some(other)] if one != other => {
            let why = format!("is {one}, in `rope_parameters` it is {other}");
            return Err(config.refusal("rope_theta", &why));
        }
        [one, other] => positive(&config.label("rope_theta"), one.or(other).unwrap_or(10_000.0))?,
    };
    let both = [old.map_or(Ok(Scaling::None), |old| scaling(&old, context_length))?, {
        new.map_or(Ok(Scaling::None), |new| scaling(&new, context_length))?
    }];
    let scaling = match both {
        [one, other] if one == other => one,
        [one, Scaling::None] => one,
        [Scaling::None, other] => other,
        _ => return Err(config.refusal("rope_scaling", "contradicts `rope_parameters`")),
    };
    Ok(Rope::new(base, head_dim, &scaling))
}

fn scaling(fields: &Json, context_length: usize) -> Result<Scaling, Error> {
    let kind = match (fields.optional_string("rope_type")?, fields.optional_string("type")?) {
        (Some(kind), _) | (None, Some(kind)) => kind,
        (None, None) => return Err(fields.refusal("rope_type", "is missing")),
    };
    let known: &[&str] = match kind {
        "default" => &[],
        "linear" => &["factor"],
        "llama3" => {
            &["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"]
        }
        "yarn" => &[
            "factor",
            "beta_fast",
            "beta_slow",
            "attention_factor",
            "original_max_position_embeddings",
        ],
        kind => {
            let kind = kind.chars().take(64).collect::<String>();
            let why = format!("`{kind}` is not known; known are default, linear, llama3 and yarn");
            return Err(fields.refusal("rope_type", &why));
        }
    };
    let always = ["rope_type", "type", "rope_theta"];
    let has_default = |key: &str, value: &Value| match key {
        "truncate" => value == true,
        "partial_rotary_factor" => value.as_f64() == Some(1.0),
        // Others' fields that this kind does not look at, as transformers does not either.
        _ => kind == "default" || value.is_null(),
    };
    for (key, value) in fields.fields() {
        if !known.contains(&key) && !always.contains(&key) && !has_default(key, value) {
            return Err(fields.refusal(key, &format!("is not known for `{kind}`")));
        }
    }
    let optional = |key: &str| {
        let value = fields.optional_float(key)?;
        value.map(|value| positive(&fields.label(key), value)).transpose()
    };
    let number = |key: &str| optional(key)?.ok_or_else(|| fields.refusal(key, "is missing"));
    let original = "original_max_position_embeddings";
    Ok(match kind {
        "linear" => Scaling::Linear { factor: number("factor")? },
        "llama3" => {
            let (low, high) = (number("low_freq_factor")?, number("high_freq_factor")?);
            if low >= high {
                let why = format!("expected more than the {low} of `low_freq_factor`, got {high}");
                return Err(fields.refusal("high_freq_factor", &why));
            }
            Scaling::Llama3 { factor: number("factor")?, low, high, original: number(original)? }
        }
        "yarn" => Scaling::Yarn {
            factor: number("factor")?,
            fast: optional("beta_fast")?.unwrap_or(32.0),
            slow: optional("beta_slow")?.unwrap_or(1.0),
            original: optional(original)?.unwrap_or(context_length as f64),
            magnitude: optional("attention_factor")?,
        },
        _ => Scaling::None,
    })
}
