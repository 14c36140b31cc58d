//! Computes: schedules sequences, owns the KV cache, runs models on devices.

pub mod bench;
pub mod cpu;
mod error;
pub mod generate;
pub mod gguf;
mod guided;
pub mod infer;
pub mod kv;
pub mod model;
pub mod runner;
pub mod weights;

pub use error::Error;
