//! A ModelInferRequest whose raw inputs stand beside it, each still in its segments.

use std::fmt;

use prost::DecodeError;
use prost::encoding::decode_varint;

use crate::Payload;
use crate::apart::decode_apart;
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
        let mut counts = Counts::default();
        if message.segments().nth(1).is_none() {
            count(&message.to_bytes())?;
        }
        let raw = |message: &mut ModelInferRequest| std::mem::take(&mut message.raw_input_contents);
        let (message, payloads) =
            decode_apart(message, RAW_INPUTS, raw, |field| counts.add(field))?;
        Ok(Self { message, payloads })
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
