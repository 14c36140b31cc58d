//! Models: their sizes, their weights, and the forward pass of each family.
//!
//! What a file or a directory says of itself chooses the family; [`Checkpoint`] is what is known
//! before the weights are read.

pub mod bert;
mod checkpoint;
mod config;
mod family;
mod llama;
mod loading;
mod names;
mod rope;
mod vocabulary;

pub use checkpoint::Checkpoint;
pub use config::Hyperparameters;
pub use family::{Family, KNOWN_ARCHITECTURES};
pub use llama::{Buffers, Input, Llama, Position, Precisions};
pub use loading::Loading;
pub use names::{Names, Part};
pub use rope::{Rope, Scaling};
pub use vocabulary::Tokens;
