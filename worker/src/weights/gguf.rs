//! GGUF model files: metadata and tensors, read with every size checked.
//!
//! Follows the GGUF specification, versions 2 and 3, little-endian. Nothing in a file is trusted: no
//! count or length leads to an allocation beyond a small multiple of the file's own size. Only the
//! elements of arrays may be smaller in the file than that: each takes 32 bytes in memory, a
//! string's own bytes apart, and there are at most 4 Mi of them in all, which is 128 MiB.

mod header;
mod weight_type;

use std::fs::File;
use std::io::BufReader;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::Weights;
use crate::Error;

use header::Header;
pub use weight_type::WeightType;

/// A value of the metadata.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Any unsigned integer.
    Unsigned(u64),
    /// Any signed integer.
    Signed(i64),
    /// A float of either size.
    Float(f64),
    /// A bool.
    Bool(bool),
    /// A string.
    String(String),
    /// An array of values of one kind.
    Array(Vec<Value>),
}

impl Value {
    /// Returns what messages call it; a value itself may be a whole vocabulary.
    fn kind(&self) -> String {
        match self {
            Self::Unsigned(value) => value.to_string(),
            Self::Signed(value) => value.to_string(),
            Self::Float(value) => value.to_string(),
            Self::Bool(value) => value.to_string(),
            Self::String(_) => "a string".to_owned(),
            Self::Array(values) => format!("an array of {}", values.len()),
        }
    }
}

/// A tensor's bytes and what they mean.
#[derive(Clone, Debug)]
pub struct StoredTensor {
    /// The dimensions, the contiguous one first.
    pub dims: Vec<usize>,
    /// How the elements are stored.
    pub weight_type: WeightType,
    /// The blocks, row after row.
    pub data: Vec<u8>,
}

/// An open model file.
#[derive(Debug)]
pub struct Gguf {
    path: PathBuf,
    file: File,
    size: u64,
    header: Header,
}

impl Gguf {
    /// Opens a file and reads its metadata.
    ///
    /// Errors: unreadable, not GGUF, or broken; the text names the field.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let unreadable = |source| Error::Read { path: path.to_owned(), source };
        let file = File::open(path).map_err(unreadable)?;
        let metadata = file.metadata().map_err(unreadable)?;
        if !metadata.is_file() {
            let path = path.display();
            return Err(Error::Model(format!("`{path}` is no file; expected a GGUF file")));
        }
        let size = metadata.len();
        let header = Header::parse(BufReader::new(&file), size).map_err(Error::Model)?;
        Ok(Self { path: path.to_owned(), file, size, header })
    }

    /// Returns a value of the metadata.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.header.metadata.get(key)
    }

    /// Returns all values of the metadata with their keys.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.header.metadata.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// Returns a whole number that has to be there.
    pub fn number(&self, key: &str) -> Result<u64, Error> {
        self.optional_number(key)?.ok_or_else(|| Error::Model(format!("`{key}` is missing")))
    }

    /// Returns a whole number that may be missing.
    pub fn optional_number(&self, key: &str) -> Result<Option<u64>, Error> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Unsigned(value)) => Ok(Some(*value)),
            Some(Value::Signed(value)) if *value >= 0 => Ok(Some(*value as u64)),
            Some(other) => {
                Err(Error::Model(format!("`{key}`: expected a whole number, got {}", other.kind())))
            }
        }
    }

    /// Returns a float that may be missing.
    pub fn optional_float(&self, key: &str) -> Result<Option<f64>, Error> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Float(value)) if value.is_finite() => Ok(Some(*value)),
            Some(other) => {
                Err(Error::Model(format!("`{key}`: expected a finite float, got {}", other.kind())))
            }
        }
    }

    /// Returns a string that may be missing.
    pub fn optional_string(&self, key: &str) -> Result<Option<&str>, Error> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(value)) => Ok(Some(value)),
            Some(_) => Err(Error::Model(format!("`{key}`: expected a string"))),
        }
    }
}

impl Weights for Gguf {
    fn has_tensor(&self, name: &str) -> bool {
        self.header.directory.contains_key(name)
    }

    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        Box::new(self.header.directory.keys().map(String::as_str))
    }

    fn tensor(&self, name: &str) -> Result<StoredTensor, Error> {
        let broken = |why: String| Error::Model(format!("tensor `{name}`: {why}"));
        let directory = &self.header.directory;
        let entry = directory.get(name).ok_or_else(|| broken("is missing".into()))?;
        let weight_type = WeightType::from_number(entry.type_number).ok_or_else(|| {
            let known = WeightType::ALL.map(WeightType::name).join(", ");
            broken(format!("type {} is not known; known are {known}", entry.type_number))
        })?;
        let (elements, bytes) = weight_type.block();
        let row = entry.dims.first().copied().unwrap_or(1);
        if row % elements as u64 != 0 {
            let name = weight_type.name();
            let expected = format!("expected rows of a multiple of {elements} for {name}");
            return Err(broken(format!("{expected}, got {row}")));
        }
        let overflow = || broken(format!("dimensions {:?} are out of range", entry.dims));
        if entry.dims.contains(&0) {
            return Err(overflow());
        }
        let count = entry.dims.iter().try_fold(1u64, |n, &dim| n.checked_mul(dim));
        let blocks = count.ok_or_else(overflow)? / elements as u64;
        let length = blocks.checked_mul(bytes as u64).ok_or_else(overflow)?;
        let start = self.header.data_start.checked_add(entry.offset).ok_or_else(overflow)?;
        if start.checked_add(length).is_none_or(|end| end > self.size) {
            return Err(broken(format!("{length} bytes at {start} lie outside of the file")));
        }
        let mut data = vec![0; length as usize];
        self.file
            .read_exact_at(&mut data, start)
            .map_err(|source| Error::Read { path: self.path.clone(), source })?;
        let dims = entry.dims.iter().map(|&dim| dim as usize).collect();
        Ok(StoredTensor { dims, weight_type, data })
    }
}

#[cfg(test)]
mod tests;
