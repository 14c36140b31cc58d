//! Computes: schedules sequences, owns the KV cache, runs models on devices.

mod error;
pub mod runner;

pub use error::Error;
