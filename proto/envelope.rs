//! A ModelInferRequest whose raw inputs stand beside it, each still in its segments.

use std::fmt;

use bytes::{Buf, Bytes};
use prost::encoding::{decode_varint, encode_varint};
use prost::{DecodeError, Message};

use crate::Payload;
use crate::inference::ModelInferRequest;

/// The field of the raw inputs: `raw_input_contents`.
const RAW_INPUTS: u64 = 7;

/// The fields that are counted: inputs, outputs, raw inputs.
const FEW: [u64; 3] = [5, 6, RAW_INPUTS];

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
    /// Errors: bytes that are not such a message, more than [`MAX_TENSORS`] of a kind.
    pub fn decode(message: Payload) -> Result<Self, Malformed> {
        if message.segments().nth(1).is_none() {
            let message = message.to_bytes();
            count(&message)?;
            return Ok(ModelInferRequest::decode(message).map(Self::from)?);
        }
        let mut parts = Parts::default();
        if parts.split(&message)?.is_none() {
            // A shape that only the general decoder judges: it has the last word.
            return Ok(ModelInferRequest::decode(message.to_bytes()).map(Self::from)?);
        }
        let message = ModelInferRequest::decode(Bytes::from(parts.rest))?;
        Ok(Self { message, payloads: parts.payloads })
    }
}

/// The most inputs, outputs and raw inputs of a request, each. An empty one takes two bytes on the
/// wire and hundreds in memory.
pub const MAX_TENSORS: usize = 65_536;

/// Why bytes are not a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Malformed {
    /// They are no such message.
    Undecodable(DecodeError),
    /// There are more than [`MAX_TENSORS`] inputs, outputs or raw inputs.
    TooMany,
}

impl From<DecodeError> for Malformed {
    fn from(error: DecodeError) -> Self {
        Self::Undecodable(error)
    }
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Undecodable(error) => error.fmt(f),
            Self::TooMany => {
                write!(f, "a request may have at most {MAX_TENSORS} inputs, outputs and raw inputs")
            }
        }
    }
}

/// Counts the fields of which a message has many.
#[derive(Default)]
struct Counts([usize; 3]);

impl Counts {
    fn add(&mut self, field: u64) -> Result<(), Malformed> {
        let Some(place) = FEW.iter().position(|few| *few == field) else {
            return Ok(());
        };
        self.0[place] += 1;
        if self.0[place] > MAX_TENSORS { Err(Malformed::TooMany) } else { Ok(()) }
    }
}

/// Counts the fields of a message in one piece, up to where it stops being one.
fn count(mut message: &[u8]) -> Result<(), Malformed> {
    let mut counts = Counts::default();
    while let Ok(tag) = decode_varint(&mut message) {
        counts.add(tag >> 3)?;
        let length = match tag & 7 {
            0 => decode_varint(&mut message).ok().map(|_| 0),
            1 => Some(8),
            2 => decode_varint(&mut message).ok(),
            5 => Some(4),
            _ => None,
        };
        let length = length.and_then(|length| usize::try_from(length).ok());
        let Some(rest) = length.and_then(|length| message.get(length..)) else { break };
        message = rest;
    }
    Ok(())
}

/// A message parted into its raw inputs and the other fields.
#[derive(Default)]
struct Parts {
    rest: Vec<u8>,
    payloads: Vec<Payload>,
    counts: Counts,
}

impl Parts {
    /// Parts a message; none for what is not plainly one.
    fn split(&mut self, message: &Payload) -> Result<Option<()>, Malformed> {
        let mut cursor = Cursor { segments: message.segments().cloned().collect() };
        while !cursor.segments.is_empty() {
            let Some(tag) = cursor.varint() else { return Ok(None) };
            self.counts.add(tag >> 3)?;
            if self.field(tag, &mut cursor).is_none() {
                return Ok(None);
            }
        }
        Ok(Some(()))
    }

    fn field(&mut self, tag: u64, cursor: &mut Cursor) -> Option<()> {
        if (tag >> 3, tag & 7) == (RAW_INPUTS, 2) {
            let length = cursor.varint()?;
            self.payloads.push(cursor.take(length)?);
            return Some(());
        }
        if (1..=RAW_INPUTS).contains(&(tag >> 3)) && tag & 7 != 2 {
            // Every field of a request has a length. The general decoder reads one for a map
            // whatever the tag says, so what seems to follow here may lie inside of it.
            return None;
        }
        let rest = &mut self.rest;
        encode_varint(tag, rest);
        match tag & 7 {
            0 => encode_varint(cursor.varint()?, rest),
            1 => cursor.copy(8, rest)?,
            2 => {
                let length = cursor.varint()?;
                encode_varint(length, rest);
                cursor.copy(length, rest)?;
            }
            5 => cursor.copy(4, rest)?,
            _ => return None,
        }
        Some(())
    }
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
            if index == 9 && byte > 1 {
                return None; // It has more than 64 bits.
            }
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
