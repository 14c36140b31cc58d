//! Models: their sizes, their weights, and the forward pass of each family.
//!
//! A family is one file with its forward pass; what a file says of itself chooses it.

pub mod bert;
mod config;
mod llama;
mod vocabulary;

pub use config::{Hyperparameters, KNOWN_ARCHITECTURES};
pub use llama::{Buffers, Llama, Position, Precisions};
pub use vocabulary::vocabulary;
