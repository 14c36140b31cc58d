//! Messages on their way out: small ones together in one frame, large payloads as they are.

use std::collections::VecDeque;

use bytes::{BufMut, Bytes, BytesMut};
use engine::{Error, Result};
use prost::Message;
use prost::encoding::{encode_varint, encoded_len_varint};
use proto::{PREFIX_BYTES, Payload};

/// The tag of the field `contents`, which stands last in a message that has it.
const CONTENTS_TAG: u8 = super::codec::CONTENTS << 3 | 2;

/// A segment from this size on is a frame of its own: copying it would cost more.
const LARGE_BYTES: usize = 2048;

/// Framed messages that wait to be sent, in order.
#[derive(Debug)]
pub(super) struct Outbox {
    max_message_bytes: usize,
    frames: VecDeque<Bytes>,
    /// Small things, not yet a frame.
    current: BytesMut,
}

impl Outbox {
    /// Makes an empty one for messages of at most so many bytes each.
    pub(super) fn new(max_message_bytes: usize) -> Self {
        Self { max_message_bytes, frames: VecDeque::new(), current: BytesMut::new() }
    }

    /// Adds a message. Errors: it is over the limit; nothing is added then.
    pub(super) fn message(&mut self, message: &impl Message) -> Result<()> {
        self.message_with(message, std::iter::empty())
    }

    /// Adds a message whose field `contents` is empty, and what belongs into that field.
    ///
    /// Errors: it is over the limit; nothing is added then.
    pub(super) fn message_with<'a>(
        &mut self,
        message: &impl Message,
        contents: impl Iterator<Item = &'a Payload> + Clone,
    ) -> Result<()> {
        let head = message.encoded_len();
        let field =
            |payload: &Payload| 1 + encoded_len_varint(payload.len() as u64) + payload.len();
        let length = head + contents.clone().map(field).sum::<usize>();
        let prefix = u32::try_from(length).ok().filter(|_| length <= self.max_message_bytes);
        let prefix = prefix.ok_or_else(|| too_long(length, self.max_message_bytes))?;
        self.current.reserve(PREFIX_BYTES + head);
        self.current.put_u8(0);
        self.current.put_u32(prefix);
        message
            .encode(&mut self.current)
            .map_err(|error| Error::internal("a message cannot be encoded").with_source(error))?;
        for payload in contents {
            self.current.put_u8(CONTENTS_TAG);
            encode_varint(payload.len() as u64, &mut self.current);
            payload.segments().for_each(|segment| self.segment(segment));
        }
        Ok(())
    }

    fn segment(&mut self, segment: &Bytes) {
        if segment.len() < LARGE_BYTES {
            self.current.extend_from_slice(segment);
        } else {
            self.seal();
            self.frames.push_back(segment.clone());
        }
    }

    fn seal(&mut self) {
        if !self.current.is_empty() {
            self.frames.push_back(self.current.split().freeze());
        }
    }

    /// Returns whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.current.is_empty() && self.frames.is_empty()
    }

    /// Returns whether there is enough to be sent without waiting for more.
    pub(super) fn is_full(&self, limit: usize) -> bool {
        !self.frames.is_empty() || self.current.len() >= limit
    }

    /// Takes the next frame, and whether it is the last one.
    pub(super) fn next(&mut self) -> Option<(Bytes, bool)> {
        let frame = match self.frames.pop_front() {
            Some(frame) => frame,
            None if self.current.is_empty() => return None,
            None => self.current.split().freeze(),
        };
        Some((frame, self.is_empty()))
    }
}

fn too_long(length: usize, limit: usize) -> Error {
    Error::invalid(format!("a message has {length} bytes, between processes at most {limit} pass"))
}
