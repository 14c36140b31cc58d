//! Where tensors come from: a GGUF file, or a directory of safetensors files.
//!
//! A tensor is read when it is asked for, so that what packs the weights holds one at a time and
//! never the whole file. Files are read, not mapped: the bytes are repacked at once, and a file
//! that somebody cuts in the meantime is then an error instead of a signal.

mod directory;
mod json;
mod safetensors;

pub use crate::gguf::{StoredTensor, WeightType};
pub use directory::Directory;
pub use json::Json;
pub(crate) use json::text;
pub use safetensors::SafeTensors;

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
