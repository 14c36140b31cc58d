//! gRPC messages out of the pieces of an HTTP/2 stream; large pieces are handed on as they are.
//!
//! Each message is one byte that says whether it is compressed, four bytes of length, and the
//! message ("Length-Prefixed-Message" of gRPC over HTTP/2).

use std::collections::VecDeque;

use bytes::{Buf, Bytes, BytesMut};

use crate::Payload;

/// The bytes before each message.
pub const PREFIX_BYTES: usize = 5;

/// Pieces below this size are copied together: a segment of its own costs more than the copy,
/// and a flood of tiny ones would cost far more memory than it has bytes.
const SMALL_BYTES: usize = 2048;

/// Why a message is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadPrefix {
    /// Its flag is none that is understood: 1 for "compressed" where nothing is, or no flag at all.
    Flag(u8),
    /// It is longer than the limit.
    TooLong {
        /// What the prefix says, in bytes.
        length: usize,
        /// The limit.
        max_bytes: usize,
    },
}

/// Bytes received and not yet taken.
#[derive(Debug, Default)]
pub struct Received {
    segments: VecDeque<Bytes>,
    /// Small frames, copied together behind the segments.
    small: BytesMut,
    /// Of the message whose prefix is read: whether it is compressed, and its length.
    expected: Option<(bool, usize)>,
    /// The length of all of it.
    length: usize,
}

impl Received {
    /// Returns whether no part of a message is waiting.
    pub fn is_empty(&self) -> bool {
        self.length == 0 && self.expected.is_none()
    }

    /// Adds a piece of the stream.
    pub fn push(&mut self, data: Bytes) {
        if data.is_empty() {
            return;
        }
        self.length += data.len();
        // The first frame mostly is a whole message, and stays as it is.
        if data.len() >= SMALL_BYTES || (self.segments.is_empty() && self.small.is_empty()) {
            self.seal();
            self.segments.push_back(data);
        } else {
            self.small.extend_from_slice(&data);
        }
    }

    fn seal(&mut self) {
        if !self.small.is_empty() {
            self.segments.push_back(self.small.split().freeze());
        }
    }

    /// Takes the next message if it is whole, of a call without compression.
    ///
    /// Errors: a prefix that says "compressed", or more than `max_bytes`.
    pub fn message(&mut self, max_bytes: usize) -> Result<Option<Payload>, BadPrefix> {
        match self.any_message(max_bytes)? {
            Some((true, _)) => Err(BadPrefix::Flag(1)),
            whole => Ok(whole.map(|(_, message)| message)),
        }
    }

    /// Takes the next message if it is whole, and whether it is compressed.
    ///
    /// Errors: a prefix without such a flag, or of more than `max_bytes`.
    pub fn any_message(&mut self, max_bytes: usize) -> Result<Option<(bool, Payload)>, BadPrefix> {
        let (is_compressed, length) = match self.expected {
            Some(expected) => expected,
            None if self.length < PREFIX_BYTES => {
                self.copy_small();
                return Ok(None);
            }
            None => {
                let prefix = self.take(PREFIX_BYTES).to_bytes();
                let length = (&prefix[1..]).get_u32() as usize;
                if prefix[0] > 1 {
                    return Err(BadPrefix::Flag(prefix[0]));
                }
                if length > max_bytes {
                    return Err(BadPrefix::TooLong { length, max_bytes });
                }
                *self.expected.insert((prefix[0] == 1, length))
            }
        };
        if self.length < length {
            self.copy_small();
            return Ok(None);
        }
        self.expected = None;
        Ok(Some((is_compressed, self.take(length))))
    }

    /// Copies a small piece that waits for more: it may be a part of something far larger.
    fn copy_small(&mut self) {
        if let [first] = self.segments.make_contiguous()
            && first.len() < SMALL_BYTES
            && self.small.is_empty()
        {
            self.small.extend_from_slice(first);
            self.segments.clear();
        }
    }

    /// Takes bytes that are there.
    fn take(&mut self, mut length: usize) -> Payload {
        self.seal();
        self.length = self.length.saturating_sub(length);
        let mut payload = Payload::default();
        while length > 0
            && let Some(mut first) = self.segments.pop_front()
        {
            let part = first.split_to(length.min(first.len()));
            length -= part.len();
            payload.push(part);
            if !first.is_empty() {
                self.segments.push_front(first);
            }
        }
        payload
    }
}
