//! Decodes messages whose largest field stands apart: its payloads stay in the segments they came in.
//!
//! The field is `repeated bytes`, and all fields of smaller numbers have a length.

use bytes::{Buf, Bytes};
use prost::encoding::encode_varint;
use prost::{DecodeError, Message};

use crate::Payload;

/// Decodes a message that may lie in segments, and the payloads of its field `raw`, uncopied.
/// `take` takes them out of a message that the general decoder read; `look` sees the number of
/// each field of a message in several segments before it is kept.
///
/// Errors: bytes that are not such a message, those of `look`.
pub fn decode_apart<M, E>(
    message: Payload,
    raw: u64,
    take: impl FnOnce(&mut M) -> Vec<Bytes>,
    look: impl FnMut(u64) -> Result<(), E>,
) -> Result<(M, Vec<Payload>), E>
where
    M: Message + Default,
    E: From<DecodeError>,
{
    if message.segments().nth(1).is_some() {
        let mut parts = Parts::default();
        if parts.split(&message, raw, look)?.is_some() {
            return Ok((M::decode(Bytes::from(parts.rest))?, parts.payloads));
        }
        // A shape that only the general decoder judges: it has the last word.
    }
    let mut message = M::decode(message.to_bytes())?;
    let payloads = take(&mut message).into_iter().map(Payload::from).collect();
    Ok((message, payloads))
}

/// A message parted into its raw payloads and the other fields.
#[derive(Default)]
struct Parts {
    rest: Vec<u8>,
    payloads: Vec<Payload>,
}

impl Parts {
    /// Parts a message; none for what is not plainly one.
    fn split<E>(
        &mut self,
        message: &Payload,
        raw: u64,
        mut look: impl FnMut(u64) -> Result<(), E>,
    ) -> Result<Option<()>, E> {
        let mut cursor = Cursor { segments: message.segments().cloned().collect() };
        while !cursor.segments.is_empty() {
            let Some(tag) = cursor.varint() else { return Ok(None) };
            look(tag >> 3)?;
            if self.field(tag, raw, &mut cursor).is_none() {
                return Ok(None);
            }
        }
        Ok(Some(()))
    }

    fn field(&mut self, tag: u64, raw: u64, cursor: &mut Cursor) -> Option<()> {
        if (tag >> 3, tag & 7) == (raw, 2) {
            let length = cursor.varint()?;
            self.payloads.push(cursor.take(length)?);
            return Some(());
        }
        if (1..=raw).contains(&(tag >> 3)) && tag & 7 != 2 {
            // Every field up to the raw one has a length. The general decoder reads one for a map
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
