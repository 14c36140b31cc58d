//! Models that are almost sound, on disk: small ones with a few bytes changed.

use std::path::PathBuf;

use super::*;
use crate::model::bert::tests::Made;
use crate::model::{KNOWN_ARCHITECTURES, bert};
use crate::weights::Weights;

fn tiny(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tiny").join(name)
}

/// Opens a small GGUF file with the bytes behind a text changed, and the text itself.
fn altered(text: &str, other: &str, behind: &[u8]) -> Result<Checkpoint, Error> {
    assert_eq!(text.len(), other.len());
    let mut bytes = std::fs::read(tiny("llama3.gguf")).unwrap();
    let mut places = bytes.windows(text.len());
    let start = places.position(|window| window == text.as_bytes()).unwrap();
    let end = start + text.len();
    bytes[start..end].copy_from_slice(other.as_bytes());
    bytes[end..end + behind.len()].copy_from_slice(behind);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    Checkpoint::open(file.path())
}

/// Opens a small directory with a field of its configuration changed.
fn configured(model: &str, key: &str, value: serde_json::Value) -> Result<Checkpoint, Error> {
    let directory = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(tiny(model)).unwrap().flatten() {
        std::fs::copy(entry.path(), directory.path().join(entry.file_name())).unwrap();
    }
    let path = directory.path().join(CONFIG);
    let mut config: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    config[key] = value;
    std::fs::write(&path, config.to_string()).unwrap();
    Checkpoint::open(directory.path())
}

#[test]
fn an_architecture_that_does_not_run_is_told_of_all_that_do() {
    // A sentence that names encoders reaches who serves a directory or a file of either kind.
    let told = |error: Error, field: &str, architecture: &str| {
        let error = error.to_string();
        let start = format!("{field}: architecture `{architecture}` does not run here;");
        assert!(error.contains(&start), "{error}");
        for name in KNOWN_ARCHITECTURES.iter().chain(&bert::KNOWN_ENCODERS) {
            assert!(error.contains(name), "no {name}: {error}");
        }
    };
    for name in ["modernbert", "gpt2", ""] {
        let error = configured("llama3", "model_type", name.into()).unwrap_err();
        told(error, "`config.json`: `model_type`", name);
    }
    // The text of a string is behind its kind and length.
    const KEY: &str = "general.architecture";
    for name in ["gpt-2", "gemma"] {
        let behind = [&8u32.to_le_bytes()[..], &5u64.to_le_bytes(), name.as_bytes()].concat();
        told(altered(KEY, KEY, &behind).unwrap_err(), "`general.architecture`", name);
    }
}

#[test]
fn a_file_without_the_epsilon_of_its_norms_is_refused() {
    const KEY: &str = "llama.attention.layer_norm_rms_epsilon";
    assert!(altered(KEY, KEY, &[]).is_ok());
    let error = altered(KEY, &KEY.replace("llama", "other"), &[]).unwrap_err().to_string();
    assert!(error.contains(&format!("`{KEY}` is missing")), "{error}");
}

#[test]
fn tokens_that_end_a_text_are_of_the_vocabulary() {
    // Type 4 is a number of 32 bits.
    let number = |id: u32| [4u32.to_le_bytes(), id.to_le_bytes()].concat();
    let stored = "tokenizer.ggml.eos_token_id";
    for key in ["eos", "eot"].map(|kind| format!("tokenizer.ggml.{kind}_token_id")) {
        assert_eq!(altered(stored, &key, &number(3)).unwrap().tokens.eos, [3], "{key}");
        let error = altered(stored, &key, &number(1 << 20)).unwrap_err().to_string();
        assert!(error.contains(&format!("`{key}`: 1048576 is not one of")), "{error}");
    }
}

#[test]
fn a_vocabulary_has_as_many_rows_as_the_embedding() {
    assert!(configured("llama3", "vocab_size", 128.into()).is_ok());
    for rows in [127, 129, 1 << 24] {
        let error = configured("llama3", "vocab_size", rows.into()).unwrap_err().to_string();
        let expected = format!(
            "`vocab_size`: expected tensor `model.embed_tokens.weight` of shape \
                                [{rows}, 32], got [128, 32]"
        );
        assert!(error.contains(&expected), "{error}");
    }
}

#[test]
fn an_embedding_of_an_unknown_type_is_refused_by_its_type() {
    let directory = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(tiny("llama3")).unwrap().flatten() {
        std::fs::copy(entry.path(), directory.path().join(entry.file_name())).unwrap();
    }
    let path = directory.path().join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    header["model.embed_tokens.weight"]["dtype"] = "F8_E4M3".into();
    let header = header.to_string();
    bytes.splice(..8 + length, [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat());
    std::fs::write(&path, bytes).unwrap();
    let error = Checkpoint::open(directory.path()).unwrap_err().to_string();
    assert!(error.contains("`model.embed_tokens.weight`: type `F8_E4M3` is not known"), "{error}");
}

#[test]
fn tensors_that_are_left_out_are_those_that_others_leave_out() {
    let Checkpoint { weights, names, sizes, .. } = Checkpoint::open(&tiny("llama-tied")).unwrap();
    let mut made = Made::default();
    for name in weights.names() {
        made.set(name, &[1], &[0.0]);
    }
    assert_eq!((names, sizes.ties_head), (Names::HuggingFace, Some(true)));
    assert!(names.check(&made, &sizes).is_ok());
    // The embedding is the output matrix whatever else is there, and frequencies are computed.
    for ignored in ["lm_head.weight", "model.layers.0.self_attn.rotary_emb.inv_freq"] {
        made.set(ignored, &[1], &[0.0]);
    }
    assert!(names.check(&made, &sizes).is_ok());
    // Divisors of the frequencies are read of GGUF files alone.
    for foreign in
        ["rope_freqs.weight", "x.rotary_emb.inv_freq", "model.layers.9.mlp.up_proj.weight"]
    {
        made.set(foreign, &[1], &[0.0]);
        let error = names.check(&made, &sizes).unwrap_err().to_string();
        assert!(error.contains(&format!("tensor `{foreign}`: is not one of")), "{error}");
        made.remove(foreign);
    }
}
