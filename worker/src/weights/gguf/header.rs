//! The beginning of a model file: its metadata, and the directory of its tensors.
//!
//! Every count and length is checked against what the file has, and against bounds of our own.

use std::collections::BTreeMap;
use std::io::Read;

use super::Value;

/// The first four bytes of every file.
pub(super) const MAGIC: [u8; 4] = *b"GGUF";

/// The alignment of the tensor data unless the file says otherwise, in bytes.
const DEFAULT_ALIGNMENT: u64 = 32;

/// The most elements of all arrays; the largest vocabularies have some 300,000 tokens, with two
/// more numbers each and as many merges. Each is a [`Value`] in memory, however small in the file.
const MAX_ARRAY_ELEMENTS: u64 = 4 << 20;

/// The most bytes of a string; templates and tokenizers have some 40 MB at most.
const MAX_STRING_BYTES: u64 = 64 << 20;

/// The most bytes of a key or of a tensor's name, as the specification has it for keys.
const MAX_NAME_BYTES: u64 = 65_535;

/// The most values of the metadata, and the most tensors.
const MAX_ENTRIES: u64 = 1 << 18;

/// The most bytes of metadata and directory together.
const MAX_HEADER_BYTES: u64 = 512 << 20;

/// A tensor's entry in the directory.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry {
    pub(super) dims: Vec<u64>,
    pub(super) type_number: u32,
    pub(super) offset: u64,
}

/// Metadata and directory: everything before the tensor data.
#[derive(Clone, Debug)]
pub(super) struct Header {
    pub(super) metadata: BTreeMap<String, Value>,
    pub(super) directory: BTreeMap<String, Entry>,
    pub(super) data_start: u64,
}

impl Header {
    /// Reads the beginning of a file of `size` bytes.
    ///
    /// Errors: what is wrong with it; the text names the field.
    pub(super) fn parse(input: impl Read, size: u64) -> Result<Self, String> {
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
        // Room for these and no more: a list that grows has up to twice as much.
        let mut values = Vec::with_capacity(count as usize);
        for _ in 0..count {
            values.push(self.value(kind, key)?);
        }
        Ok(Value::Array(values))
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
