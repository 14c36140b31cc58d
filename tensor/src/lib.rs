//! Typed tensors and their KServe encodings, checked against a model's configuration.
//!
//! Data is little-endian, row-major and without padding, as the KServe v2 binary form has it;
//! BYTES elements carry a `u32` length each. Payloads are shared, never copied.

#![deny(missing_docs)]

mod datatype;
mod error;
mod parameters;
mod tensor;

pub use datatype::Datatype;
pub use error::Error;
pub use parameters::{Parameter, Parameters};
pub use tensor::Tensor;

/// The result of anything in this room.
pub type Result<T> = std::result::Result<T, Error>;
