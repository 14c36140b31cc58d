//! Encoders as engines of embeddings: texts of different lengths share a forward pass.
//!
//! Texts lie one behind the other in a pass, without padding, and a text's vector does not depend,
//! to the last bit, on what is computed beside it.

mod encoder;
mod engine;
mod pipeline;
mod queue;

pub use encoder::{Encoder, EncoderOptions, Loaded, is_encoder};
pub use engine::{EncodeConfig, EncodeEngine};
pub use pipeline::{Pipeline, Pooling};
