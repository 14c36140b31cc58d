//! Counts a message's fields before it is decoded: an empty one takes two bytes on the wire and
//! hundreds in memory, so what is to be decoded is bounded by their number, not only by its bytes.

use bytes::{Buf, Bytes};

use crate::Payload;

/// Fields that hold messages or maps whose own fields count, each with its number.
#[derive(Clone, Copy, Debug)]
pub struct Nest(pub &'static [(u64, Nest)]);

impl Nest {
    /// Holds nothing whose fields count.
    pub const LEAF: Self = Self(&[]);
}

/// Why fields are not counted to the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Uncounted {
    /// There are more than allowed.
    TooMany,
    /// The bytes are no message of this nest.
    Malformed,
}

/// The fewest bytes of a field.
const FIELD_BYTES: usize = 2;

/// Checks that a message has at most `most` fields, with those of the messages in `nest`. One that
/// is too short for more is not looked at.
///
/// Errors: more fields, bytes that are no message.
pub fn count_fields(message: &Payload, nest: Nest, most: usize) -> Result<(), Uncounted> {
    let length = message.len();
    if length / FIELD_BYTES <= most {
        return Ok(());
    }
    let segments = message.segments().cloned().collect();
    let mut count = Count { segments, at: 0, left: most };
    count.message(length, nest)
}

/// A walk over a message.
struct Count {
    segments: std::collections::VecDeque<Bytes>,
    /// The bytes behind.
    at: usize,
    /// How many fields may still come.
    left: usize,
}

impl Count {
    /// Counts up to the end of a message. The depth is that of the nest.
    fn message(&mut self, end: usize, nest: Nest) -> Result<(), Uncounted> {
        while self.at < end {
            let tag = self.varint()?;
            self.left = self.left.checked_sub(1).ok_or(Uncounted::TooMany)?;
            let inner = nest.0.iter().find(|(number, _)| *number == tag >> 3);
            match (tag & 7, inner) {
                (2, Some((_, inner))) => {
                    let end_of_inner = self.length(end)?;
                    self.message(end_of_inner, *inner)?;
                }
                // The decoder reads a length for a map whatever the tag says.
                (_, Some(_)) => return Err(Uncounted::Malformed),
                (0, None) => {
                    self.varint()?;
                }
                (1, None) => self.skip(8)?,
                (2, None) => {
                    let behind = self.length(end)?;
                    self.skip(behind - self.at)?;
                }
                (5, None) => self.skip(4)?,
                // Groups, which the decoder skips: what is in them counts as well.
                (3 | 4, None) => {}
                _ => return Err(Uncounted::Malformed),
            }
        }
        if self.at == end { Ok(()) } else { Err(Uncounted::Malformed) }
    }

    /// Reads a length; returns where what has it ends, which is not behind `end`.
    fn length(&mut self, end: usize) -> Result<usize, Uncounted> {
        let length = usize::try_from(self.varint()?).map_err(|_| Uncounted::Malformed)?;
        let behind = self.at.checked_add(length).filter(|behind| *behind <= end);
        behind.ok_or(Uncounted::Malformed)
    }

    fn varint(&mut self) -> Result<u64, Uncounted> {
        let mut value = 0u64;
        for index in 0..10 {
            let byte = self.byte().ok_or(Uncounted::Malformed)?;
            if index == 9 && byte > 1 {
                break; // It has more than 64 bits.
            }
            value |= u64::from(byte & 0x7f) << (7 * index);
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Uncounted::Malformed)
    }

    fn byte(&mut self) -> Option<u8> {
        let byte = self.segments.front_mut()?.try_get_u8().ok()?;
        self.at += 1;
        self.drop_exhausted();
        Some(byte)
    }

    fn skip(&mut self, length: usize) -> Result<(), Uncounted> {
        let mut left = length;
        while left > 0 {
            let first = self.segments.front_mut().ok_or(Uncounted::Malformed)?;
            let step = left.min(first.len());
            first.advance(step);
            left -= step;
            self.at += step;
            self.drop_exhausted();
        }
        Ok(())
    }

    fn drop_exhausted(&mut self) {
        while self.segments.front().is_some_and(Bytes::is_empty) {
            self.segments.pop_front();
        }
    }
}
