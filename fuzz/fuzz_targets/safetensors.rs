#![no_main]
//! Directories of safetensors: one file is hostile and the others are sound.
//!
//! The first byte chooses the file. Seeds: the files of `worker/tests/golden/tiny/*/`, each behind
//! its byte. What loads is not run, only packed.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use worker::model::{Checkpoint, Llama, Loading};
use worker::weights::{SafeTensors, Weights};

/// The files of a sound model.
const SOUND: [(&str, &[u8]); 5] = [
    ("config.json", include_bytes!("../../worker/tests/golden/tiny/llama3/config.json")),
    ("tokenizer.json", include_bytes!("../../worker/tests/golden/tiny/llama3/tokenizer.json")),
    (
        "tokenizer_config.json",
        include_bytes!("../../worker/tests/golden/tiny/llama3/tokenizer_config.json"),
    ),
    (
        "generation_config.json",
        include_bytes!("../../worker/tests/golden/tiny/llama3/generation_config.json"),
    ),
    (
        "model.safetensors",
        include_bytes!("../../worker/tests/golden/tiny/llama3/model.safetensors"),
    ),
];

/// A directory with the sound files.
static DIRECTORY: LazyLock<PathBuf> = LazyLock::new(|| {
    let path = std::env::temp_dir().join(format!("stator-fuzz-{}", std::process::id()));
    std::fs::create_dir_all(&path).expect("the folder for temporary files can be written");
    for (name, bytes) in SOUND {
        write(&path.join(name), bytes);
    }
    path
});

fn write(path: &Path, bytes: &[u8]) {
    std::fs::write(path, bytes).expect("the folder for temporary files can be written");
}

fuzz_target!(|data: &[u8]| {
    let Some((choice, data)) = data.split_first() else { return };
    let index = DIRECTORY.join("model.safetensors.index.json");
    let sound = SOUND.get(usize::from(choice % 6));
    let path = sound.map_or(index.clone(), |(name, _)| DIRECTORY.join(name));
    write(&path, data);
    if let Ok(file) = SafeTensors::open(&path) {
        for name in file.names() {
            let _ = file.tensor(name);
        }
    }
    if let Ok(checkpoint) = Checkpoint::open(&DIRECTORY) {
        let _ = Llama::read(&checkpoint, &Loading { threads: 1, name: String::new() });
    }
    match sound {
        Some((_, bytes)) => write(&path, bytes),
        None => std::fs::remove_file(index).expect("the file was written"),
    }
});
