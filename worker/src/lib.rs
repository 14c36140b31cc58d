//! Computes: schedules sequences, owns the KV cache, runs models on devices.

pub mod bench;
pub mod cpu;
pub mod encode;
mod error;
pub mod generate;
mod guided;
pub mod infer;
pub mod kv;
pub mod lora;
pub mod model;
pub mod runner;
pub mod turns;
pub mod weights;

pub use error::Error;
