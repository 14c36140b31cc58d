//! LoRA adapters: small updates of a model's matrices that a sequence may ask for, `W + s * B * A`.
//!
//! The base model is never changed: a token's row passes through `A` and then `B`, in f32, and what
//! comes out is added to what the base gave. So sequences of several adapters, and of none, share
//! a batch, and the result of each depends on itself alone, to the last bit.

mod adapter;
mod adapters;
mod settings;

pub use adapter::{Adapter, Deltas, Part, Shape, Target};
pub use adapters::{Adapters, Limits};
pub use settings::Settings;

#[cfg(test)]
mod tests;
