//! A safetensors file: eight bytes of length, a JSON header, then the tensors.
//!
//! The header is read here and not by the library of that name, which checks a file only when all
//! of it is in memory. Its rules are kept: the tensors fill the data without holes or overlaps.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use super::{StoredTensor, WeightType, Weights};
use crate::Error;

/// The most bytes of a header, as the format has it.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// The most dimensions of a tensor.
const MAX_DIMENSIONS: usize = 8;

/// The key of the header that is no tensor.
const METADATA: &str = "__metadata__";

/// A tensor's entry in the header.
#[derive(Clone, Debug, PartialEq, serde::Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// An open file.
#[derive(Debug)]
pub struct SafeTensors {
    path: PathBuf,
    file: File,
    data_start: u64,
    entries: BTreeMap<String, Entry>,
}

impl SafeTensors {
    /// Opens a file and reads its header.
    ///
    /// Errors: unreadable, or a header that is broken or does not fit the file; the text names the
    /// file and the tensor.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let unreadable = |source| Error::Read { path: path.to_owned(), source };
        let broken = |why: String| Error::Model(format!("`{}`: {why}", path.display()));
        let file = File::open(path).map_err(unreadable)?;
        let metadata = file.metadata().map_err(unreadable)?;
        if !metadata.is_file() {
            return Err(broken("is no file; expected a safetensors file".into()));
        }
        let size = metadata.len();
        if size < 8 {
            return Err(broken(format!("expected at least 8 bytes, got {size}")));
        }
        let mut length = [0; 8];
        file.read_exact_at(&mut length, 0).map_err(unreadable)?;
        let length = u64::from_le_bytes(length);
        let most = MAX_HEADER_BYTES.min(size - 8);
        if length > most {
            return Err(broken(format!(
                "header length: expected at most {most} bytes, got {length}"
            )));
        }
        let mut header = vec![0; length as usize];
        file.read_exact_at(&mut header, 8).map_err(unreadable)?;
        let entries = entries(&header, size - 8 - length).map_err(broken)?;
        Ok(Self { path: path.to_owned(), file, data_start: 8 + length, entries })
    }

    /// Returns the shape of a tensor, the contiguous dimension last.
    ///
    /// Errors: it is missing, or of a type that is not known, for which nobody compared the shape
    /// with the bytes.
    pub fn shape(&self, name: &str) -> Result<&[u64], Error> {
        self.entry(name).map(|(entry, _)| &entry.shape[..])
    }

    fn entry(&self, name: &str) -> Result<(&Entry, WeightType), Error> {
        let entry = self.entries.get(name).ok_or_else(|| self.broken(name, "is missing"))?;
        let weight_type = weight_type(&entry.dtype).ok_or_else(|| {
            let dtype = &entry.dtype;
            let why = format!("type `{dtype}` is not known; known are F32, F16 and BF16");
            self.broken(name, &why)
        })?;
        Ok((entry, weight_type))
    }

    fn broken(&self, name: &str, why: &str) -> Error {
        Error::Model(format!("`{}`: tensor `{name}`: {why}", self.path.display()))
    }
}

impl Weights for SafeTensors {
    fn tensor(&self, name: &str) -> Result<StoredTensor, Error> {
        let (entry, weight_type) = self.entry(name)?;
        let [begin, end] = entry.data_offsets;
        let mut data = vec![0; (end - begin) as usize];
        self.file
            .read_exact_at(&mut data, self.data_start + begin)
            .map_err(|source| Error::Read { path: self.path.clone(), source })?;
        let dims = entry.shape.iter().rev().map(|&dim| dim as usize).collect();
        Ok(StoredTensor { dims, weight_type, data })
    }

    fn has_tensor(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        Box::new(self.entries.keys().map(String::as_str))
    }
}

/// Reads the header of a file with `size` bytes of data and checks every entry against it.
fn entries(header: &[u8], size: u64) -> Result<BTreeMap<String, Entry>, String> {
    let parsed = serde_json::from_slice(header);
    let Header(entries) = parsed.map_err(|error| format!("header: {error}"))?;
    for (name, entry) in &entries {
        check(entry, size).map_err(|why| format!("tensor `{name}`: {why}"))?;
    }
    let mut places: Vec<_> =
        entries.iter().map(|(name, entry)| (entry.data_offsets, name)).collect();
    places.sort_unstable();
    let mut filled = 0;
    for ([begin, end], name) in places {
        if begin != filled {
            return Err(format!(
                "tensor `{name}`: `data_offsets`: expected to begin at {filled}, got {begin}"
            ));
        }
        filled = end;
    }
    if filled != size {
        return Err(format!("expected {filled} bytes of tensors, got {size}"));
    }
    Ok(entries)
}

/// Checks an entry for itself.
fn check(entry: &Entry, size: u64) -> Result<(), String> {
    let [begin, end] = entry.data_offsets;
    if begin > end || end > size {
        return Err(format!(
            "`data_offsets`: expected a range within {size} bytes, got {begin} to {end}"
        ));
    }
    if entry.shape.len() > MAX_DIMENSIONS {
        let got = entry.shape.len();
        return Err(format!("`shape`: expected at most {MAX_DIMENSIONS} dimensions, got {got}"));
    }
    // Of types that are not read, the size is not known; reading such a tensor is refused.
    let Some(weight_type) = weight_type(&entry.dtype) else {
        return Ok(());
    };
    let bytes = weight_type.block().1 as u64;
    let length = entry.shape.iter().try_fold(bytes, |n, &dim| n.checked_mul(dim));
    if length != Some(end - begin) {
        let (shape, dtype, got) = (&entry.shape, &entry.dtype, end - begin);
        return Err(format!("`shape`: {shape:?} of {dtype} does not have {got} bytes"));
    }
    Ok(())
}

/// Returns the type of a name in the header.
fn weight_type(dtype: &str) -> Option<WeightType> {
    match dtype {
        "F32" => Some(WeightType::F32),
        "F16" => Some(WeightType::F16),
        "BF16" => Some(WeightType::Bf16),
        _ => None,
    }
}

/// The entries of a header. A name that comes twice is refused, since readers differ in which of
/// both they take.
#[derive(Debug)]
struct Header(BTreeMap<String, Entry>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header;

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Header, A::Error> {
        let mut entries = BTreeMap::new();
        while let Some(name) = access.next_key::<String>()? {
            if name == METADATA {
                access.next_value::<IgnoredAny>()?;
                continue;
            }
            let broken = |why: &dyn Display| A::Error::custom(format!("tensor `{name}`: {why}"));
            let entry = access.next_value().map_err(|error| broken(&error))?;
            if entries.contains_key(&name) {
                return Err(broken(&"comes twice"));
            }
            entries.insert(name, entry);
        }
        Ok(Header(entries))
    }
}

#[cfg(test)]
mod tests;
