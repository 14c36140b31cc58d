#![no_main]
//! GGUF files: whatever bytes come, the model is refused with a reason or is loaded.
//!
//! Seeds: `worker/tests/golden/tiny/*.gguf`. What loads is not run, only packed.

use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use worker::weights::gguf::Gguf;
use worker::model::{Checkpoint, Llama, Loading};
use worker::weights::Weights;

static FILE: LazyLock<PathBuf> =
    LazyLock::new(|| std::env::temp_dir().join(format!("stator-fuzz-{}.gguf", std::process::id())));

fuzz_target!(|data: &[u8]| {
    std::fs::write(&*FILE, data).expect("the folder for temporary files can be written");
    if let Ok(file) = Gguf::open(&FILE) {
        for name in file.names() {
            let _ = file.tensor(name);
        }
    }
    if let Ok(checkpoint) = Checkpoint::open(&FILE) {
        let _ = Llama::read(&checkpoint, &Loading { threads: 1, name: String::new() });
    }
});
