//! The files of a tiny decoder, a GGUF file and a directory, and how they are read.

use std::path::Path;

use worker::Error;
use worker::model::{Checkpoint, Llama, Loading};

use super::directory::Files;

/// Returns a GGUF file, alone in its directory.
pub(crate) fn gguf() -> Files {
    vec![("model.gguf", golden("llama-tied.gguf"))]
}

/// Returns the files of the same model as transformers writes them.
pub(crate) fn directory() -> Files {
    let names = [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "model.safetensors",
    ];
    names.map(|name| (name, golden(&format!("llama-tied/{name}")))).into()
}

fn golden(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tiny").join(name);
    std::fs::read(path).expect("the golden models are part of the repository")
}

/// Reads a GGUF file as the server does; what loads is not run, only packed.
pub(crate) fn read_gguf(directory: &Path) -> Result<(), Error> {
    read(&directory.join("model.gguf"))
}

/// Reads a model as the server does; what loads is not run, only packed.
pub(crate) fn read(path: &Path) -> Result<(), Error> {
    let loading = Loading { threads: 1, name: String::new() };
    Llama::read(&Checkpoint::open(path)?, &loading).map(drop)
}
