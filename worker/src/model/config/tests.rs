//! What descriptions of models are read as, and what is refused by name.

use super::*;
use crate::weights::Json;

/// A sound `config.json` of a family.
fn config(family: &str) -> serde_json::Value {
    let class = Family::named(family).unwrap().class();
    serde_json::json!({
        "architectures": [class],
        "model_type": family,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "vocab_size": 200,
        "sliding_window": null,
        "hidden_act": "silu"
    })
}

/// Reads a sound description with some fields changed; null takes a field out.
fn read(family: &str, changes: serde_json::Value) -> Result<Hyperparameters, Error> {
    let mut config = config(family);
    let fields = config.as_object_mut().unwrap();
    for (key, value) in changes.as_object().unwrap() {
        match value.is_null() {
            true => fields.remove(key),
            false => fields.insert(key.clone(), value.clone()),
        };
    }
    let bytes = serde_json::to_vec(&config).unwrap();
    Hyperparameters::from_json(&Json::parse("config.json", &bytes).unwrap())
}

#[test]
fn a_description_is_read_with_its_family_s_defaults() {
    let llama = read("llama", serde_json::json!({"num_key_value_heads": null})).unwrap();
    assert_eq!((llama.kv_heads, llama.head_dim, llama.ties_head), (4, 16, Some(false)));
    assert_eq!((llama.windows, llama.vocabulary), (vec![None; 3], Some(200)));
    assert_eq!(read("qwen3", serde_json::json!({})).unwrap().head_dim, 128);
    let mistral = read("mistral", serde_json::json!({"sliding_window": 32})).unwrap();
    assert_eq!(mistral.windows, [Some(32); 3]);
    let qwen = |changes| read("qwen2", changes).unwrap().windows;
    let window = serde_json::json!({"sliding_window": 32});
    assert_eq!(qwen(window), [None; 3], "the window is not in use");
    let window = serde_json::json!(
        {"sliding_window": 32, "use_sliding_window": true, "max_window_layers": 1});
    assert_eq!(qwen(window), [None, Some(32), Some(32)]);
    let full = "full_attention";
    let window = serde_json::json!({"sliding_window": 32, "use_sliding_window": true,
        "layer_types": ["sliding_attention", full, full]});
    assert_eq!(qwen(window), [Some(32), None, None]);
}

#[test]
fn old_and_new_ways_of_rotary_settings_mean_the_same() {
    let old =
        serde_json::json!({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2}});
    let new = serde_json::json!(
        {"rope_parameters": {"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0}});
    assert_eq!(read("llama", old).unwrap().rope, read("llama", new).unwrap().rope);
    let default = serde_json::json!({"rope_scaling": {"rope_type": "default"}});
    let none = serde_json::json!({});
    assert_eq!(read("llama", default).unwrap().rope, read("llama", none).unwrap().rope);
}

#[test]
fn what_would_change_the_result_is_refused_by_name() {
    let yarn = |key: &str| {
        let mut scaling = serde_json::json!({"rope_type": "yarn", "factor": 4});
        scaling[key] = 1.5.into();
        serde_json::json!({"rope_scaling": scaling})
    };
    let scaled = |scaling: serde_json::Value| serde_json::json!({"rope_scaling": scaling});
    let llama3 = serde_json::json!({"rope_type": "llama3", "factor": 8, "low_freq_factor": 4,
        "high_freq_factor": 4, "original_max_position_embeddings": 64});
    let layers = serde_json::json!(["full_attention"]);
    let other = serde_json::json!({"rope_theta": 1, "rope_parameters":
        {"rope_theta": 2, "rope_type": "default"}});
    let cases = [
        (
            "llama",
            serde_json::json!({"model_type": "gpt2"}),
            "`model_type`: architecture `gpt2` does not run here;",
        ),
        ("llama", serde_json::json!({"model_type": null}), "`model_type`: is missing"),
        ("llama", serde_json::json!({"architectures": ["X"]}), "`architectures`: expected"),
        ("llama", serde_json::json!({"hidden_act": "gelu"}), "`hidden_act`: expected `silu`"),
        ("llama", serde_json::json!({"attention_bias": true}), "`attention_bias`: is not known"),
        ("llama", serde_json::json!({"mlp_bias": true}), "`mlp_bias`: is not known"),
        ("llama", serde_json::json!({"final_logit_softcapping": 30}), "`final_logit_softcapping`"),
        ("qwen3", serde_json::json!({"num_experts": 8}), "`num_experts`: is not known"),
        ("llama", serde_json::json!({"partial_rotary_factor": 0.5}), "`partial_rotary_factor`"),
        ("llama", serde_json::json!({"quantization_config": {"bits": 4}}), "`quantization_config`"),
        ("llama", serde_json::json!({"sliding_window": 16}), "`sliding_window`: is not one of"),
        ("mistral", serde_json::json!({"sliding_window": null}), "`sliding_window`: is missing"),
        ("qwen2", serde_json::json!({"layer_types": layers}), "`layer_types`: expected 3"),
        ("qwen2", serde_json::json!({"num_key_value_heads": null}), "`num_key_value_heads`: is"),
        ("llama", serde_json::json!({"num_key_value_heads": 0}), "`num_key_value_heads`: expected"),
        ("llama", serde_json::json!({"num_key_value_heads": 3}), "do not share 3 KV heads"),
        ("llama", serde_json::json!({"num_attention_heads": 5}), "`head_dim`: is missing"),
        ("llama", serde_json::json!({"head_dim": 15}), "cannot be rotated in pairs"),
        ("llama", serde_json::json!({"head_dim": 1u64 << 40}), "`head_dim`: expected 1 to 1024"),
        ("llama", serde_json::json!({"hidden_size": -1}), "`hidden_size`: expected a whole number"),
        ("llama", serde_json::json!({"num_hidden_layers": 1u64 << 60}), "expected 1 to 1024"),
        ("llama", serde_json::json!({"max_position_embeddings": 0}), "got 0"),
        ("llama", serde_json::json!({"rms_norm_eps": null}), "`rms_norm_eps`: is missing"),
        ("llama", serde_json::json!({"rms_norm_eps": 1e300}), "norm epsilon: expected a number"),
        ("llama", serde_json::json!({"rms_norm_eps": -1.0}), "norm epsilon: expected a number"),
        ("llama", serde_json::json!({"rope_theta": 0}), "`rope_theta`: expected a number above 0"),
        ("llama", other, "`rope_theta`: is 1, in `rope_parameters` it is 2"),
        ("llama", scaled("linear".into()), "`rope_scaling`: expected an object, got a string"),
        ("llama", scaled(serde_json::json!({"rope_type": "linear"})), "`factor`: is missing"),
        ("llama", scaled(serde_json::json!({"type": "dynamic", "factor": 2})), "`dynamic` is not"),
        ("llama", scaled(llama3), "`high_freq_factor`: expected more than the 4"),
        ("qwen2", yarn("mscale"), "`mscale`: is not known for `yarn`"),
    ];
    for (family, changes, expected) in cases {
        let text = changes.to_string();
        let error = read(family, changes).unwrap_err().to_string();
        assert!(error.contains(expected), "{text}: {error}\nexpected {expected}");
    }
}

#[test]
fn what_leaves_all_as_it_is_is_borne() {
    let neutral = serde_json::json!({"attention_bias": false, "mlp_bias": false,
        "partial_rotary_factor": 1.0, "logit_scale": 1, "num_experts": 0, "no_rope_layers": [],
        "pretraining_tp": 1, "somebody_s_own_field": 7, "torch_dtype": "bfloat16"});
    assert_eq!(read("llama", neutral).unwrap(), read("llama", serde_json::json!({})).unwrap());
}
