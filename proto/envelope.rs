//! A ModelInferRequest whose raw inputs stand beside it, each still in its segments.

use bytes::{Buf, Bytes};
use prost::{DecodeError, Message};

use crate::Payload;
use crate::inference::ModelInferRequest;

/// The field of the raw inputs: `raw_input_contents`.
const RAW_INPUTS: u64 = 7;

/// A decoded request; `message.raw_input_contents` is empty, `payloads` has what it had.
#[derive(Clone, Debug, Default)]
pub struct Envelope {
    /// Everything but the raw inputs.
    pub message: ModelInferRequest,
    /// The raw inputs, shared with the buffers that they came in.
    pub payloads: Vec<Payload>,
}

impl From<ModelInferRequest> for Envelope {
    fn from(mut message: ModelInferRequest) -> Self {
        let raw = std::mem::take(&mut message.raw_input_contents);
        Self { message, payloads: raw.into_iter().map(Payload::from).collect() }
    }
}

impl Envelope {
    /// Decodes a message that may lie in segments; no raw input is copied.
    ///
    /// Errors: bytes that are not such a message.
    pub fn decode(message: Payload) -> Result<Self, DecodeError> {
        if message.segments().nth(1).is_none() {
            return ModelInferRequest::decode(message.to_bytes()).map(Self::from);
        }
        let Some((rest, payloads)) = split(&message) else {
            // A shape that only the general decoder judges: it has the last word.
            return ModelInferRequest::decode(message.to_bytes()).map(Self::from);
        };
        let message = ModelInferRequest::decode(Bytes::from(rest))?;
        Ok(Self { message, payloads })
    }
}

/// Parts the raw inputs from the other fields; none for what is not plainly a message.
fn split(message: &Payload) -> Option<(Vec<u8>, Vec<Payload>)> {
    let mut cursor = Cursor { segments: message.segments().cloned().collect() };
    let (mut rest, mut payloads) = (Vec::new(), Vec::new());
    while !cursor.segments.is_empty() {
        let tag = cursor.varint()?;
        match (tag >> 3, tag & 7) {
            (RAW_INPUTS, 2) => {
                let length = cursor.varint()?;
                payloads.push(cursor.take(length)?);
            }
            (_, wire_type) => {
                put_varint(&mut rest, tag);
                match wire_type {
                    0 => put_varint(&mut rest, cursor.varint()?),
                    1 => cursor.copy(8, &mut rest)?,
                    2 => {
                        let length = cursor.varint()?;
                        put_varint(&mut rest, length);
                        cursor.copy(length, &mut rest)?;
                    }
                    5 => cursor.copy(4, &mut rest)?,
                    _ => return None,
                }
            }
        }
    }
    Some((rest, payloads))
}

fn put_varint(out: &mut Vec<u8>, value: u64) {
    prost::encoding::encode_varint(value, out);
}

/// Reads through segments; exhausted ones are dropped.
struct Cursor {
    segments: std::collections::VecDeque<Bytes>,
}

impl Cursor {
    fn byte(&mut self) -> Option<u8> {
        let first = self.segments.front_mut()?;
        let byte = first.get_u8();
        self.drop_exhausted();
        Some(byte)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for index in 0..10 {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << (7 * index);
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    /// Takes the next bytes as slices of their segments.
    fn take(&mut self, length: u64) -> Option<Payload> {
        let mut left = usize::try_from(length).ok()?;
        let mut payload = Payload::default();
        while left > 0 {
            let first = self.segments.front_mut()?;
            let part = first.split_to(left.min(first.len()));
            left -= part.len();
            payload.push(part);
            self.drop_exhausted();
        }
        Some(payload)
    }

    fn copy(&mut self, length: u64, out: &mut Vec<u8>) -> Option<()> {
        let taken = self.take(length)?;
        taken.segments().for_each(|segment| out.extend_from_slice(segment));
        Some(())
    }

    fn drop_exhausted(&mut self) {
        while self.segments.front().is_some_and(Bytes::is_empty) {
            self.segments.pop_front();
        }
    }
}
