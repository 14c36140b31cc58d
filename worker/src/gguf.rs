//! GGUF model files: metadata and tensors, read with every size checked.
//!
//! Follows the GGUF specification, versions 2 and 3, little-endian. Nothing in a file is trusted:
//! no count or length leads to an allocation beyond a small multiple of the file's own size.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::Error;
use crate::weights::Weights;

/// The first four bytes of every file.
const MAGIC: [u8; 4] = *b"GGUF";

/// The alignment of the tensor data unless the file says otherwise, in bytes.
const DEFAULT_ALIGNMENT: u64 = 32;

/// The most elements of all arrays; the largest vocabularies have some 300,000 tokens, with two
/// more numbers each and as many merges.
const MAX_ARRAY_ELEMENTS: u64 = 4 << 20;

/// The most bytes of a string; templates and tokenizers have some 40 MB at most.
const MAX_STRING_BYTES: u64 = 64 << 20;

/// The most bytes of a key or of a tensor's name, as the specification has it for keys.
const MAX_NAME_BYTES: u64 = 65_535;

/// The most values of the metadata, and the most tensors.
const MAX_ENTRIES: u64 = 1 << 18;

/// The most bytes of metadata and directory together.
const MAX_HEADER_BYTES: u64 = 512 << 20;

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

/// How a tensor's elements are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightType {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// The upper half of a binary32.
    Bf16,
    /// 32 elements: an f16 scale and 4-bit numbers from -8.
    Q4_0,
    /// 32 elements: an f16 scale, an f16 minimum and 4-bit numbers from 0.
    Q4_1,
    /// 32 elements: an f16 scale and 5-bit numbers from -16.
    Q5_0,
    /// 32 elements: an f16 scale, an f16 minimum and 5-bit numbers from 0.
    Q5_1,
    /// 32 elements: an f16 scale and 8-bit numbers.
    Q8_0,
    /// 256 elements: f16 scales of 6-bit scales and minima for each 32, and 4-bit numbers from 0.
    Q4K,
    /// 256 elements: f16 scales of 6-bit scales and minima for each 32, and 5-bit numbers from 0.
    Q5K,
    /// 256 elements: an f16 scale of 8-bit scales for each 16, and 6-bit numbers from -32.
    Q6K,
}

impl WeightType {
    /// Every type that this worker runs.
    pub const ALL: [Self; 11] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
    ];

    /// Returns the type's name and its number in a file, both as ggml has them.
    const fn identity(self) -> (&'static str, u32) {
        match self {
            Self::F32 => ("F32", 0),
            Self::F16 => ("F16", 1),
            Self::Q4_0 => ("Q4_0", 2),
            Self::Q4_1 => ("Q4_1", 3),
            Self::Q5_0 => ("Q5_0", 6),
            Self::Q5_1 => ("Q5_1", 7),
            Self::Q8_0 => ("Q8_0", 8),
            Self::Q4K => ("Q4_K", 12),
            Self::Q5K => ("Q5_K", 13),
            Self::Q6K => ("Q6_K", 14),
            Self::Bf16 => ("BF16", 30),
        }
    }

    /// Returns the type of a number in the file.
    pub(crate) fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.identity().1 == number)
    }

    /// Returns the type's name.
    pub const fn name(self) -> &'static str {
        self.identity().0
    }

    /// Returns the elements and the bytes of one block.
    pub const fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::Bf16 => (1, 2),
            Self::Q4_0 => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::Q8_0 => (32, 34),
            Self::Q4K => (256, 144),
            Self::Q5K => (256, 176),
            Self::Q6K => (256, 210),
        }
    }
}

/// A tensor's entry in the directory.
#[derive(Clone, Debug, PartialEq)]
struct Entry {
    dims: Vec<u64>,
    type_number: u32,
    offset: u64,
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

/// Metadata and directory: everything before the tensor data.
#[derive(Clone, Debug)]
struct Header {
    metadata: BTreeMap<String, Value>,
    directory: BTreeMap<String, Entry>,
    data_start: u64,
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

impl Header {
    fn parse(input: impl Read, size: u64) -> Result<Self, String> {
        let mut reader = Reader { input, left: size, elements: MAX_ARRAY_ELEMENTS };
        if reader.array::<4>("magic")? != MAGIC {
            return Err("it does not begin with `GGUF`".into());
        }
        let version = reader.u32("version")?;
        if !(2..=3).contains(&version) {
            return Err(format!("version: expected 2 or 3, got {version}"));
        }
        let tensors = reader.count("tensor count")?;
        let pairs = reader.count("metadata count")?;
        let mut metadata = BTreeMap::new();
        for index in 0..pairs {
            let key = reader.name(&format!("metadata key {index}"))?;
            let kind = reader.u32(&key)?;
            let value = reader.value(kind, &key)?;
            reader.check_length(size)?;
            if metadata.insert(key.clone(), value).is_some() {
                return Err(format!("`{key}`: comes twice"));
            }
        }
        let mut directory = BTreeMap::new();
        for index in 0..tensors {
            let name = reader.name(&format!("name of tensor {index}"))?;
            let entry = reader.entry(&name)?;
            reader.check_length(size)?;
            if directory.insert(name.clone(), entry).is_some() {
                return Err(format!("tensor `{name}`: comes twice"));
            }
        }
        let alignment = match metadata.get("general.alignment") {
            None => DEFAULT_ALIGNMENT,
            Some(Value::Unsigned(value)) if value.is_power_of_two() && *value <= 1 << 20 => *value,
            Some(other) => {
                let kind = other.kind();
                return Err(format!("`general.alignment`: expected a power of 2, got {kind}"));
            }
        };
        let misplaced = directory.iter().find(|(_, entry)| entry.offset % alignment != 0);
        if let Some((name, Entry { offset, .. })) = misplaced {
            return Err(format!(
                "tensor `{name}`: offset: expected a multiple of {alignment}, got {offset}"
            ));
        }
        let data_start = (size - reader.left).next_multiple_of(alignment);
        Ok(Self { metadata, directory, data_start })
    }
}

/// Reads little-endian values and knows how many bytes the file still has.
struct Reader<R> {
    input: R,
    left: u64,
    /// How many elements arrays may still have.
    elements: u64,
}

impl<R: Read> Reader<R> {
    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], String> {
        let mut bytes = [0; N];
        self.take(N as u64, what)?;
        self.input.read_exact(&mut bytes).map_err(|error| format!("{what}: {error}"))?;
        Ok(bytes)
    }

    /// Accounts for bytes that are about to be read.
    fn take(&mut self, bytes: u64, what: &str) -> Result<(), String> {
        self.left = self
            .left
            .checked_sub(bytes)
            .ok_or_else(|| format!("{what}: the file ends before its {bytes} bytes"))?;
        Ok(())
    }

    fn u32(&mut self, what: &str) -> Result<u32, String> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    fn u64(&mut self, what: &str) -> Result<u64, String> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// Reads how many entries follow.
    fn count(&mut self, what: &str) -> Result<u64, String> {
        let count = self.u64(what)?;
        match count <= MAX_ENTRIES {
            true => Ok(count),
            false => Err(format!("{what}: expected at most {MAX_ENTRIES}, got {count}")),
        }
    }

    /// Checks what was read of a file of `size` bytes so far.
    fn check_length(&self, size: u64) -> Result<(), String> {
        match size - self.left <= MAX_HEADER_BYTES {
            true => Ok(()),
            false => Err(format!("metadata: expected at most {MAX_HEADER_BYTES} bytes")),
        }
    }

    fn name(&mut self, what: &str) -> Result<String, String> {
        self.text(what, MAX_NAME_BYTES)
    }

    fn string(&mut self, what: &str) -> Result<String, String> {
        self.text(what, MAX_STRING_BYTES)
    }

    fn text(&mut self, what: &str, most: u64) -> Result<String, String> {
        let length = self.u64(what)?;
        if length > most {
            return Err(format!("{what}: expected a string of at most {most} bytes, got {length}"));
        }
        self.take(length, what)?;
        let mut bytes = vec![0; length as usize];
        self.input.read_exact(&mut bytes).map_err(|error| format!("{what}: {error}"))?;
        String::from_utf8(bytes).map_err(|_| format!("{what}: is not UTF-8"))
    }

    fn value(&mut self, kind: u32, key: &str) -> Result<Value, String> {
        Ok(match kind {
            0 => Value::Unsigned(u64::from(self.array::<1>(key)?[0])),
            1 => Value::Signed(i64::from(i8::from_le_bytes(self.array(key)?))),
            2 => Value::Unsigned(u64::from(u16::from_le_bytes(self.array(key)?))),
            3 => Value::Signed(i64::from(i16::from_le_bytes(self.array(key)?))),
            4 => Value::Unsigned(u64::from(self.u32(key)?)),
            5 => Value::Signed(i64::from(i32::from_le_bytes(self.array(key)?))),
            6 => Value::Float(f64::from(f32::from_le_bytes(self.array(key)?))),
            7 => Value::Bool(self.array::<1>(key)?[0] != 0),
            8 => Value::String(self.string(key)?),
            9 => self.values(key)?,
            10 => Value::Unsigned(self.u64(key)?),
            11 => Value::Signed(i64::from_le_bytes(self.array(key)?)),
            12 => Value::Float(f64::from_le_bytes(self.array(key)?)),
            other => return Err(format!("`{key}`: value type {other} is not known")),
        })
    }

    fn values(&mut self, key: &str) -> Result<Value, String> {
        let kind = self.u32(key)?;
        let count = self.u64(key)?;
        if kind == 9 {
            return Err(format!("`{key}`: arrays of arrays are not read"));
        }
        self.elements = self.elements.checked_sub(count).ok_or_else(|| {
            let most = self.elements;
            format!("`{key}`: expected at most {most} elements, got {count}")
        })?;
        // Every element has at least one byte, so an honest count fits into what is left.
        if count > self.left {
            return Err(format!("`{key}`: the file ends before its {count} elements"));
        }
        (0..count).map(|_| self.value(kind, key)).collect::<Result<_, _>>().map(Value::Array)
    }

    fn entry(&mut self, name: &str) -> Result<Entry, String> {
        let rank = self.u32(name)?;
        if rank > 4 {
            return Err(format!("tensor `{name}`: expected at most 4 dimensions, got {rank}"));
        }
        let dims = (0..rank).map(|_| self.u64(name)).collect::<Result<_, _>>()?;
        let type_number = self.u32(name)?;
        let offset = self.u64(name)?;
        Ok(Entry { dims, type_number, offset })
    }
}

#[cfg(test)]
mod tests;
