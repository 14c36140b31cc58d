//! What an adapter's `adapter_config.json` says, in the layout of the library PEFT.

use std::collections::BTreeSet;

use serde_json::Value;

use super::Target;
use crate::Error;
use crate::weights::Json;

/// The largest rank that is worth an adapter; beyond, a bound of the server is more likely.
const MAX_RANK: u64 = 1 << 16;

/// The settings of an adapter.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The columns between both matrices.
    pub rank: usize,
    /// What the update is multiplied by.
    pub scale: f32,
    /// The matrices that are updated; none: those whose tensors are there.
    pub targets: Option<BTreeSet<Target>>,
    /// The layers that are updated; none: all.
    pub layers: Option<BTreeSet<usize>>,
}

impl Settings {
    /// Reads the settings.
    ///
    /// Errors: another kind of adapter, a field that is missing, wrong or not known, by name.
    pub fn read(config: &Json) -> Result<Self, Error> {
        if let Some(kind) = config.optional_string("peft_type")?
            && kind != "LORA"
        {
            return Err(config.refusal("peft_type", &format!("expected `LORA`, got `{kind}`")));
        }
        if let Some(bias) = config.optional_string("bias")?
            && bias != "none"
        {
            return Err(config.refusal("bias", &format!("expected `none`, got `{bias}`")));
        }
        for key in ["use_dora", "fan_in_fan_out", "lora_bias", "use_qalora"] {
            if config.optional_bool(key)? == Some(true) {
                return Err(config.refusal(key, "is not known; expected false"));
            }
        }
        for key in ["modules_to_save", "rank_pattern", "alpha_pattern", "trainable_token_indices"] {
            let is_empty = match config.get(key) {
                None => true,
                Some(Value::Array(list)) => list.is_empty(),
                Some(Value::Object(map)) => map.is_empty(),
                Some(_) => false,
            };
            if !is_empty {
                return Err(config.refusal(key, "is not known; expected nothing"));
            }
        }
        let rank = config.number("r")?;
        if !(1..=MAX_RANK).contains(&rank) {
            return Err(config.refusal("r", &format!("expected 1 to {MAX_RANK}, got {rank}")));
        }
        let alpha = config.optional_float("lora_alpha")?;
        let alpha = alpha.ok_or_else(|| config.refusal("lora_alpha", "is missing"))?;
        let divisor = match config.optional_bool("use_rslora")? {
            Some(true) => (rank as f64).sqrt(),
            _ => rank as f64,
        };
        let scale = (alpha / divisor) as f32;
        if !scale.is_finite() {
            return Err(config.refusal("lora_alpha", &format!("{alpha} is out of range")));
        }
        let (targets, layers) = (targets(config)?, layers(config)?);
        Ok(Self { rank: rank as usize, scale, targets, layers })
    }
}

/// Reads the updated matrices: a list of names; a text is a pattern, which the tensors answer.
fn targets(config: &Json) -> Result<Option<BTreeSet<Target>>, Error> {
    const KEY: &str = "target_modules";
    let list = match config.get(KEY) {
        Some(Value::Array(list)) => list,
        Some(Value::String(_)) | None => return Ok(None),
        Some(_) => return Err(config.refusal(KEY, "expected a list of names or a pattern")),
    };
    let target = |value: &Value| {
        let name = value.as_str().unwrap_or_default();
        // Names may be whole, as in `model.layers.0.self_attn.q_proj`; the last part counts.
        let last = name.rsplit('.').next().unwrap_or_default();
        Target::of(last).ok_or_else(|| {
            let known = Target::ALL.map(Target::name).join(", ");
            config.refusal(KEY, &format!("`{name}` is not known; known are {known}"))
        })
    };
    list.iter().map(target).collect::<Result<_, _>>().map(Some)
}

fn layers(config: &Json) -> Result<Option<BTreeSet<usize>>, Error> {
    const KEY: &str = "layers_to_transform";
    let wrong = || config.refusal(KEY, "expected a layer or a list of layers");
    let number = |value: &Value| value.as_u64().map(|layer| layer as usize).ok_or_else(wrong);
    match config.get(KEY) {
        None => Ok(None),
        Some(Value::Array(list)) => list.iter().map(number).collect::<Result<_, _>>().map(Some),
        Some(value) => Ok(Some(BTreeSet::from([number(value)?]))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(changes: &Value) -> Result<Settings, String> {
        let mut config = json!({
            "peft_type": "LORA", "r": 16, "lora_alpha": 32, "bias": "none", "use_rslora": false,
            "target_modules": ["q_proj", "model.layers.0.mlp.down_proj"], "modules_to_save": null,
        });
        for (key, value) in changes.as_object().unwrap() {
            config[key] = value.clone();
        }
        let config = Json::parse("adapter_config.json", config.to_string().as_bytes()).unwrap();
        Settings::read(&config).map_err(|error| error.to_string())
    }

    #[test]
    fn the_scale_follows_the_rank() {
        let plain = read(&json!({})).unwrap();
        assert_eq!((plain.rank, plain.scale), (16, 2.0));
        assert_eq!(plain.targets, Some(BTreeSet::from([Target::Query, Target::Down])));
        assert_eq!(read(&json!({"use_rslora": true})).unwrap().scale, 8.0);
        assert_eq!(read(&json!({"target_modules": "all-linear"})).unwrap().targets, None);
        let some = read(&json!({"layers_to_transform": [1, 3]})).unwrap();
        assert_eq!(some.layers, Some(BTreeSet::from([1, 3])));
    }

    #[test]
    fn what_is_not_known_is_refused_by_name() {
        let table = [
            (json!({"peft_type": "IA3"}), "`peft_type`: expected `LORA`, got `IA3`"),
            (json!({"bias": "all"}), "`bias`: expected `none`, got `all`"),
            (json!({"use_dora": true}), "`use_dora`: is not known"),
            (json!({"modules_to_save": ["lm_head"]}), "`modules_to_save`: is not known"),
            (json!({"rank_pattern": {"q_proj": 4}}), "`rank_pattern`: is not known"),
            (json!({"target_modules": ["lm_head"]}), "`lm_head` is not known; known are q_proj"),
            (json!({"target_modules": 7}), "expected a list of names or a pattern"),
            (json!({"layers_to_transform": "all"}), "expected a layer or a list of layers"),
            (json!({"r": 0}), "`r`: expected 1 to 65536, got 0"),
            (json!({"r": null}), "`r`: is missing"),
            (json!({"lora_alpha": null}), "`lora_alpha`: is missing"),
            (json!({"lora_alpha": 1e300}), "is out of range"),
        ];
        for (changes, expected) in table {
            let error = read(&changes).unwrap_err();
            assert!(error.contains(expected), "{changes}: {error}");
        }
    }
}
