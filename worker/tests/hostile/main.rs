//! Directories of decoders, encoders and adapters with one file changed at random: refused or
//! loaded, never a panic. The fuzz targets do the same with chosen changes.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod adapter;
mod decoder;
mod directory;
mod encoder;

use std::path::Path;

use directory::{Files, Hostile};
use worker::Error;

/// How many changed directories are read.
const ROUNDS: usize = 4000;

/// Reads a sound directory, and then many that are not. Changes of each file are refused and borne
/// some time, or they would say nothing.
fn check(files: Files, read: fn(&Path) -> Result<(), Error>) {
    let folder = tempfile::tempdir().unwrap();
    let count = files.len();
    let hostile = Hostile::make(folder.path(), files);
    read(folder.path()).unwrap();
    let mut random = fastrand::Rng::with_seed(1);
    let (mut refused, mut borne) = (vec![0; count], vec![0; count]);
    for _ in 0..ROUNDS {
        let file = random.usize(..count);
        // A file of some bytes, or one to three changes of the sound one.
        let is_whole = random.u8(..8) == 0;
        let length = directory::EDIT_BYTES * random.usize(1..=3);
        let mut data = vec![file as u8 | if is_whole { 0 } else { directory::EDITS }];
        data.extend((0..length).map(|_| random.u8(..)));
        match hostile.with(&data, read) {
            Ok(()) => borne[file] += 1,
            Err(_) => refused[file] += 1,
        }
    }
    assert!(!refused.contains(&0) && !borne.contains(&0), "refused {refused:?}, borne {borne:?}");
    // What was changed is as it was.
    read(folder.path()).unwrap();
}

#[test]
fn a_gguf_file_is_refused_or_loaded_whatever_it_holds() {
    check(decoder::gguf(), decoder::read_gguf);
}

#[test]
fn a_decoder_is_refused_or_loaded_whatever_its_files_hold() {
    check(decoder::directory(), decoder::read);
}

#[test]
fn an_encoder_is_refused_or_loaded_whatever_its_files_hold() {
    check(encoder::files(), encoder::read);
}

#[test]
fn an_adapter_is_refused_or_loaded_whatever_its_files_hold() {
    check(adapter::files(), adapter::read);
}
