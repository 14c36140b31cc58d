//! Counts a message's fields before it is decoded: an empty one takes two bytes on the wire and
//! hundreds in memory, so what is to be decoded is bounded by their number, not only by its bytes.

use crate::Payload;
use crate::cursor::Cursor;

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
    Count { cursor: Cursor::new(message), left: most }.message(length, nest)
}

/// A walk over a message.
struct Count {
    cursor: Cursor,
    /// How many fields may still come.
    left: usize,
}

impl Count {
    /// Counts up to the end of a message. The depth is that of the nest.
    fn message(&mut self, end: usize, nest: Nest) -> Result<(), Uncounted> {
        while self.cursor.at < end {
            let tag = self.cursor.varint().ok_or(Uncounted::Malformed)?;
            self.left = self.left.checked_sub(1).ok_or(Uncounted::TooMany)?;
            let inner = nest.0.iter().find(|(number, _)| *number == tag >> 3);
            match (tag & 7, inner) {
                (2, Some((_, inner))) => {
                    let end_of_inner = self.cursor.length(end).ok_or(Uncounted::Malformed)?;
                    self.message(end_of_inner, *inner)?;
                }
                // The decoder reads a length for a map whatever the tag says.
                (_, Some(_)) => return Err(Uncounted::Malformed),
                (kind, None) => {
                    self.cursor.field(kind, end).ok_or(Uncounted::Malformed)?;
                }
            }
        }
        if self.cursor.at == end { Ok(()) } else { Err(Uncounted::Malformed) }
    }
}
