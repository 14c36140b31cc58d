//! BYTES elements: a little-endian `u32` length and as many bytes, one after the other.

use bytes::{BufMut, Bytes};

/// The bytes of the length in front of an element.
const LENGTH_BYTES: usize = 4;

/// What is wrong with the encoding of BYTES elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// Fewer than four bytes are left where a length has to stand.
    CutLength {
        /// Bytes left.
        left: usize,
    },
    /// Fewer bytes are left than the length says.
    CutData {
        /// Bytes that the length says.
        expected: usize,
        /// Bytes left.
        left: usize,
    },
}

/// Iterates over encoded elements; each shares the tensor's buffer.
///
/// ```
/// use tensor::Elements;
/// let data = tensor::encode_elements(["a", "bcd"]);
/// let elements: Result<Vec<_>, _> = Elements::new(data).collect();
/// assert_eq!(elements.unwrap(), ["a", "bcd"]);
/// ```
#[derive(Clone, Debug)]
pub struct Elements {
    rest: Bytes,
}

impl Elements {
    /// Iterates over the elements in `data`.
    pub fn new(data: Bytes) -> Self {
        Self { rest: data }
    }
}

impl Iterator for Elements {
    type Item = Result<Bytes, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let Some(length) = self.rest.first_chunk::<LENGTH_BYTES>() else {
            let left = std::mem::take(&mut self.rest).len();
            return Some(Err(Malformed::CutLength { left }));
        };
        let expected = u32::from_le_bytes(*length) as usize;
        let left = self.rest.len() - LENGTH_BYTES;
        if expected > left {
            self.rest.clear();
            return Some(Err(Malformed::CutData { expected, left }));
        }
        let mut element = self.rest.split_to(LENGTH_BYTES + expected);
        Some(Ok(element.split_off(LENGTH_BYTES)))
    }
}

/// Encodes elements. An element over 4 GiB cannot be told and is cut there.
pub fn encode_elements<E>(elements: impl IntoIterator<Item = E>) -> Bytes
where
    E: AsRef<[u8]>,
{
    let mut data = Vec::new();
    for element in elements {
        let element = element.as_ref();
        let length = u32::try_from(element.len()).unwrap_or(u32::MAX);
        // Exact for the first element, which mostly is the only one.
        match data.is_empty() {
            true => data.reserve_exact(LENGTH_BYTES + element.len()),
            false => data.reserve(LENGTH_BYTES + element.len()),
        }
        data.put_u32_le(length);
        data.extend_from_slice(&element[..length as usize]);
    }
    data.into()
}
