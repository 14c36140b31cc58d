//! Reads the bytes of a message through its segments, and knows how far it is.

use std::collections::VecDeque;

use bytes::{Buf, Bytes};

use crate::Payload;

/// A place in a message; segments behind it are dropped.
pub(crate) struct Cursor {
    segments: VecDeque<Bytes>,
    /// The bytes behind.
    pub at: usize,
}

impl Cursor {
    /// Begins at the start of a message.
    pub(crate) fn new(message: &Payload) -> Self {
        Self { segments: message.segments().cloned().collect(), at: 0 }
    }

    /// Reads a varint of at most 64 bits.
    pub(crate) fn varint(&mut self) -> Option<u64> {
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

    /// Reads a length; returns where what has it ends, which is not behind `end`.
    pub(crate) fn length(&mut self, end: usize) -> Option<usize> {
        let length = usize::try_from(self.varint()?).ok()?;
        self.at.checked_add(length).filter(|behind| *behind <= end)
    }

    /// Goes on to a place, and shows the bytes up to it, piece by piece.
    pub(crate) fn pass(&mut self, end: usize, mut look: impl FnMut(&[u8])) -> Option<()> {
        while self.at < end {
            let first = self.segments.front_mut()?;
            let step = first.len().min(end - self.at);
            look(&first[..step]);
            first.advance(step);
            self.at += step;
            self.drop_exhausted();
        }
        Some(())
    }

    /// Passes over a field of some wire type that nobody looks into. Groups, which decoders skip,
    /// are not passed over: what is in them comes next.
    pub(crate) fn field(&mut self, wire_type: u64, end: usize) -> Option<()> {
        match wire_type {
            0 => self.varint().map(drop),
            1 => self.pass(self.at.checked_add(8)?, |_| {}),
            2 => {
                let behind = self.length(end)?;
                self.pass(behind, |_| {})
            }
            3 | 4 => Some(()),
            5 => self.pass(self.at.checked_add(4)?, |_| {}),
            _ => None,
        }
    }

    fn byte(&mut self) -> Option<u8> {
        let byte = self.segments.front_mut()?.try_get_u8().ok()?;
        self.at += 1;
        self.drop_exhausted();
        Some(byte)
    }

    fn drop_exhausted(&mut self) {
        while self.segments.front().is_some_and(Bytes::is_empty) {
            self.segments.pop_front();
        }
    }
}
