#![no_main]
//! Directories of LoRA adapters: the settings or the weights are hostile, the other file is sound.
//!
//! The first byte chooses the file, and whether the rest is the file or changes of the sound one; so
//! no seeds are needed. What loads is not run.

use std::sync::LazyLock;

use directory::Hostile;
use libfuzzer_sys::fuzz_target;

#[path = "../../worker/tests/hostile/adapter.rs"]
mod adapter;
#[path = "../../worker/tests/hostile/directory.rs"]
mod directory;

static DIRECTORY: LazyLock<Hostile> = LazyLock::new(|| {
    let path = std::env::temp_dir().join(format!("stator-fuzz-adapter-{}", std::process::id()));
    Hostile::make(&path, adapter::files())
});

fuzz_target!(|data: &[u8]| {
    let _ = DIRECTORY.with(data, adapter::read);
});
