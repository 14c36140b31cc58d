//! Typed tensors and their KServe encodings, checked against a model's configuration.
//!
//! Data is little-endian, row-major and without padding, as the KServe v2 binary form has it;
//! BYTES elements carry a `u32` length each. Payloads are shared, never copied, and may lie in
//! several segments.

#![deny(missing_docs)]

pub mod classification;
mod config;
mod contents;
mod datatype;
mod elements;
mod error;
pub mod json;
pub mod metadata;
pub mod parameters;
pub mod request;
pub mod shape;
mod tensor;
pub mod wire;

pub use config::{ModelConfig, TensorSpec};
pub use datatype::Datatype;
pub use elements::{Elements, Malformed, encode_elements};
pub use error::Error;
pub use parameters::{Parameter, Parameters};
pub use proto::Payload;
pub use tensor::{Element, Tensor};

/// The result of anything in this room.
pub type Result<T> = std::result::Result<T, Error>;
