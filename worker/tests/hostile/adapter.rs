//! The files of a tiny LoRA adapter in PEFT's layout, and how they are read.

use std::path::Path;

use serde_json::json;
use worker::Error;
use worker::lora::{Adapter, Settings, Shape};
use worker::weights::{Json, SafeTensors};

use super::directory::{Files, safetensors};

/// The base that the adapter is for.
const SHAPE: Shape = Shape { layers: 2, hidden: 8, query: 8, kv: 4, feed_forward: 12 };

const RANK: usize = 2;

/// Returns the files of an adapter of two matrices a layer.
pub(crate) fn files() -> Files {
    let config = json!({
        "peft_type": "LORA", "r": RANK, "lora_alpha": 4, "bias": "none", "use_rslora": false,
        "target_modules": ["q_proj", "down_proj"], "layers_to_transform": [0, 1],
        "modules_to_save": null, "rank_pattern": {}, "use_dora": false,
    });
    let mut tensors = Vec::new();
    for layer in 0..SHAPE.layers {
        for (part, columns, rows) in [
            ("self_attn.q_proj", SHAPE.hidden, SHAPE.query),
            ("mlp.down_proj", SHAPE.feed_forward, SHAPE.hidden),
        ] {
            let name =
                |side| format!("base_model.model.model.layers.{layer}.{part}.lora_{side}.weight");
            tensors.push((name("A"), vec![RANK, columns]));
            tensors.push((name("B"), vec![rows, RANK]));
        }
    }
    vec![
        ("adapter_config.json", config.to_string().into_bytes()),
        ("adapter_model.safetensors", safetensors(&tensors)),
    ]
}

/// Reads an adapter as the server does; what loads is not run.
pub(crate) fn read(directory: &Path) -> Result<(), Error> {
    let settings = Settings::read(&Json::read(&directory.join("adapter_config.json"))?)?;
    let weights = SafeTensors::open(&directory.join("adapter_model.safetensors"))?;
    Adapter::read(&weights, &settings, SHAPE).map(drop)
}
