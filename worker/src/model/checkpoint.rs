//! A model as it lies on disk: what it is, its tokenizer, and where its weights are.

use std::path::Path;

use super::vocabulary::Tokens;
use super::{Hyperparameters, Names};
use crate::Error;
use crate::weights::gguf::Gguf;
use crate::weights::{Directory, Json, Summed};

/// The file of a directory that says what model it holds.
const CONFIG: &str = "config.json";

/// A model whose description is read and whose weights are not.
#[derive(Debug)]
pub struct Checkpoint {
    /// Where the tensors come from.
    pub weights: Summed,
    /// What the tensors are called.
    pub names: Names,
    /// The sizes.
    pub sizes: Hyperparameters,
    /// The tokenizer's tables.
    pub tokens: Tokens,
    /// The name that the files give the model.
    pub name: String,
}

impl Checkpoint {
    /// Opens a GGUF file, or a directory with `config.json`, `tokenizer.json` and safetensors.
    ///
    /// Errors: a file cannot be read or served; the text names file and field.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let checkpoint = if path.is_dir() { Self::directory(path) } else { Self::gguf(path) }?;
        checkpoint.names.check(&checkpoint.weights, &checkpoint.sizes)?;
        Ok(checkpoint)
    }

    fn gguf(path: &Path) -> Result<Self, Error> {
        let file = Gguf::open(path)?;
        let sizes = Hyperparameters::from_gguf(&file)?;
        let tokens = Tokens::from_gguf(&file)?;
        let name = file.optional_string("general.name")?.unwrap_or("model").to_owned();
        Ok(Self { weights: Summed::new(Box::new(file)), names: Names::Gguf, sizes, tokens, name })
    }

    fn directory(path: &Path) -> Result<Self, Error> {
        let config = Json::read(&path.join(CONFIG))?;
        let sizes = Hyperparameters::from_json(&config)?;
        let weights = Directory::open(path)?;
        // The tokenizer's tables get as many rows as the configuration says: not more than there
        // are bytes for in the file.
        let (name, rows) = (Names::HuggingFace.embedding(), sizes.vocabulary.unwrap_or_default());
        let shape = [rows as u64, sizes.hidden as u64];
        let got = weights.shape(name)?;
        if *got != shape {
            let why = format!("expected tensor `{name}` of shape {shape:?}, got {got:?}");
            return Err(config.refusal("vocab_size", &why));
        }
        let tokens = Tokens::from_directory(path, &config)?;
        let weights = Summed::new(Box::new(weights));
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { weights, names: Names::HuggingFace, sizes, tokens, name })
    }
}

#[cfg(test)]
mod tests;
