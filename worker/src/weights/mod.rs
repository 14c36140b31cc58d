//! Where tensors come from: a GGUF file, or a directory of safetensors files.
//!
//! A tensor is read when it is asked for, so that what packs the weights holds those of one matrix
//! and never the whole file. Files are read, not mapped: the bytes are repacked at once, and a file
//! that somebody cuts in the meantime is then an error instead of a signal.

mod directory;
pub mod gguf;
mod json;
mod safetensors;
mod summed;

pub use directory::Directory;
pub use gguf::{StoredTensor, WeightType};
pub use json::Json;
pub(crate) use json::text;
pub use safetensors::SafeTensors;
pub use summed::Summed;

use half::{bf16, f16};

use crate::Error;

/// Tensors by their names.
pub trait Weights: std::fmt::Debug + Sync {
    /// Reads a tensor; its dimensions have the contiguous one first.
    ///
    /// Errors: it is missing, of a type this worker does not run, or outside of its file.
    fn tensor(&self, name: &str) -> Result<StoredTensor, Error>;

    /// Returns whether there is a tensor.
    fn has_tensor(&self, name: &str) -> bool;

    /// Returns the names of all tensors.
    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_>;
}

/// Returns the numbers of a tensor that is not quantised; `name` is what messages call it.
///
/// Errors: it is quantised.
pub fn floats(name: &str, stored: &StoredTensor) -> Result<Vec<f32>, Error> {
    let halves = || stored.data.as_chunks::<2>().0.iter();
    Ok(match stored.weight_type {
        WeightType::F32 => {
            let words = stored.data.as_chunks::<4>().0;
            words.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
        }
        WeightType::F16 => halves().map(|bytes| f16::from_le_bytes(*bytes).to_f32()).collect(),
        WeightType::Bf16 => halves().map(|bytes| bf16::from_le_bytes(*bytes).to_f32()).collect(),
        other => {
            let text = format!("tensor `{name}`: expected F32, F16 or BF16, got {other:?}");
            return Err(Error::Model(text));
        }
    })
}

#[cfg(test)]
mod tests;
