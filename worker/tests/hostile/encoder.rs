//! The files of a tiny encoder, as sentence-transformers writes them, and how they are read.

use std::path::Path;

use serde_json::json;
use worker::Error;
use worker::encode::Pipeline;
use worker::model::bert::{Bert, Sizes};
use worker::weights::{Directory, Json};

use super::directory::{Files, safetensors};

const HIDDEN: usize = 32;

/// Returns the files of an encoder of one layer.
pub(crate) fn files() -> Files {
    let config = json!({
        "model_type": "bert", "vocab_size": 6, "max_position_embeddings": 8,
        "hidden_size": HIDDEN, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": HIDDEN, "type_vocab_size": 2, "layer_norm_eps": 1e-5,
        "pad_token_id": 0, "hidden_act": "gelu",
    });
    let module = |path: &str, kind: &str| json!({"path": path, "type": format!("sentence_transformers.models.{kind}")});
    let modules = json!([
        module("", "Transformer"),
        module("1_Pooling", "Pooling"),
        module("2_", "Normalize")
    ]);
    let pooling = json!({"word_embedding_dimension": HIDDEN, "pooling_mode_cls_token": true});
    let settings = json!({"max_seq_length": 8, "do_lower_case": true});
    let tokenizer = json!({"normalizer": {"type": "BertNormalizer", "lowercase": true}});
    let text = |json: serde_json::Value| json.to_string().into_bytes();
    vec![
        ("config.json", text(config)),
        ("model.safetensors", safetensors(&tensors())),
        ("modules.json", text(modules)),
        ("1_Pooling/config.json", text(pooling)),
        ("sentence_bert_config.json", text(settings)),
        ("config_sentence_transformers.json", text(json!({"default_prompt_name": null}))),
        ("tokenizer.json", text(tokenizer)),
    ]
}

fn tensors() -> Vec<(String, Vec<usize>)> {
    let mut all = Vec::new();
    for (table, rows) in [("word", 6), ("position", 8), ("token_type", 2)] {
        all.push((format!("embeddings.{table}_embeddings.weight"), vec![rows, HIDDEN]));
    }
    let mut norms = vec!["embeddings.LayerNorm".to_owned()];
    for part in [
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    ] {
        all.push((format!("encoder.layer.0.{part}.weight"), vec![HIDDEN, HIDDEN]));
        all.push((format!("encoder.layer.0.{part}.bias"), vec![HIDDEN]));
    }
    norms.extend(
        ["attention.output", "output"].map(|part| format!("encoder.layer.0.{part}.LayerNorm")),
    );
    for norm in norms {
        all.extend(["weight", "bias"].map(|side| (format!("{norm}.{side}"), vec![HIDDEN])));
    }
    all
}

/// Reads an encoder as the server does; what loads is not run, only packed.
pub(crate) fn read(directory: &Path) -> Result<(), Error> {
    let sizes = Sizes::read(&Json::read(&directory.join("config.json"))?)?;
    let _ = Pipeline::read(directory, sizes.hidden)?;
    Bert::read(&Directory::open(directory)?, sizes).map(drop)
}
