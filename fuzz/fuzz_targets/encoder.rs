#![no_main]
//! Directories of encoders: one file is hostile, its sizes, its weights, or what becomes of its
//! hidden states, and the others are sound.
//!
//! The first byte chooses the file, and whether the rest is the file or changes of the sound one; so
//! no seeds are needed. What loads is not run.

use std::sync::LazyLock;

use directory::Hostile;
use libfuzzer_sys::fuzz_target;

#[path = "../../worker/tests/hostile/directory.rs"]
mod directory;
#[path = "../../worker/tests/hostile/encoder.rs"]
mod encoder;

static DIRECTORY: LazyLock<Hostile> = LazyLock::new(|| {
    let path = std::env::temp_dir().join(format!("stator-fuzz-encoder-{}", std::process::id()));
    Hostile::make(&path, encoder::files())
});

fuzz_target!(|data: &[u8]| {
    let _ = DIRECTORY.with(data, encoder::read);
});
