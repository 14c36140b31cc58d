//! MessagePack, as much of it as events are made of, borrowed from the message.

/// How deep values may lie in one another.
const MAX_DEPTH: u32 = 16;

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value<'a> {
    Nil,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(&'a str),
    Bytes(&'a [u8]),
    List(Vec<Value<'a>>),
    Map(Vec<(Value<'a>, Value<'a>)>),
}

impl<'a> Value<'a> {
    /// Reads one value that is all of a message; none: it is not MessagePack.
    pub(super) fn read(bytes: &'a [u8]) -> Option<Self> {
        let mut reader = Reader { rest: bytes };
        let value = reader.value(0)?;
        reader.rest.is_empty().then_some(value)
    }

    pub(super) fn list(&self) -> Option<&[Value<'a>]> {
        match self {
            Self::List(values) => Some(values),
            _ => None,
        }
    }

    pub(super) fn text(&self) -> Option<&'a str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn int<T: TryFrom<i128>>(&self) -> Option<T> {
        match self {
            Self::Int(number) => T::try_from(*number).ok(),
            _ => None,
        }
    }

    /// Returns the value of a key of a map.
    pub(super) fn get(&self, key: &str) -> Option<&Value<'a>> {
        match self {
            Self::Map(pairs) => {
                pairs.iter().find(|(name, _)| name.text() == Some(key)).map(|(_, value)| value)
            }
            _ => None,
        }
    }
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(count)?;
        self.rest = rest;
        Some(taken)
    }

    /// Reads an unsigned number of so many bytes.
    fn number(&mut self, bytes: usize) -> Option<u64> {
        let taken = self.take(bytes)?;
        Some(taken.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    fn length(&mut self, bytes: usize) -> Option<usize> {
        usize::try_from(self.number(bytes)?).ok()
    }

    fn value(&mut self, depth: u32) -> Option<Value<'a>> {
        let tag = self.number(1)? as u8;
        Some(match tag {
            0x00..=0x7F => Value::Int(tag.into()),
            0x80..=0x8F => self.map((tag & 0x0F).into(), depth)?,
            0x90..=0x9F => self.list((tag & 0x0F).into(), depth)?,
            0xA0..=0xBF => self.text((tag & 0x1F).into())?,
            0xC0 => Value::Nil,
            0xC2 | 0xC3 => Value::Bool(tag == 0xC3),
            0xC4..=0xC6 => {
                let length = self.length(1 << (tag - 0xC4))?;
                Value::Bytes(self.take(length)?)
            }
            0xCA => Value::Float(f32::from_bits(self.number(4)? as u32).into()),
            0xCB => Value::Float(f64::from_bits(self.number(8)?)),
            0xCC..=0xCF => Value::Int(self.number(1 << (tag - 0xCC))?.into()),
            0xD0..=0xD3 => {
                let bytes = 1 << (tag - 0xD0);
                // The sign is in the highest bit of as many bytes as there are.
                let shift = 64 - 8 * bytes as u32;
                Value::Int((((self.number(bytes)? << shift) as i64) >> shift).into())
            }
            0xD9..=0xDB => {
                let length = self.length(1 << (tag - 0xD9))?;
                self.text(length)?
            }
            0xDC | 0xDD => {
                let length = self.length(2 << (tag - 0xDC))?;
                self.list(length, depth)?
            }
            0xDE | 0xDF => {
                let length = self.length(2 << (tag - 0xDE))?;
                self.map(length, depth)?
            }
            0xE0.. => Value::Int((tag as i8).into()),
            // Extensions, which nobody sends, and what is never used.
            0xC1 | 0xC7..=0xC9 | 0xD4..=0xD8 => return None,
        })
    }

    fn text(&mut self, length: usize) -> Option<Value<'a>> {
        std::str::from_utf8(self.take(length)?).ok().map(Value::Text)
    }

    /// Each value has at least a byte, so a length that lies is found before memory is taken.
    fn list(&mut self, length: usize, depth: u32) -> Option<Value<'a>> {
        if depth == MAX_DEPTH || length > self.rest.len() {
            return None;
        }
        (0..length).map(|_| self.value(depth + 1)).collect::<Option<_>>().map(Value::List)
    }

    fn map(&mut self, length: usize, depth: u32) -> Option<Value<'a>> {
        if depth == MAX_DEPTH || length > self.rest.len() {
            return None;
        }
        let mut pair = || Some((self.value(depth + 1)?, self.value(depth + 1)?));
        (0..length).map(|_| pair()).collect::<Option<_>>().map(Value::Map)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn values_of_all_kinds_are_read() {
        let table: [(&[u8], Value<'_>); 14] = [
            (&[0x07], Value::Int(7)),
            (&[0xFF], Value::Int(-1)),
            (&[0xCD, 1, 0], Value::Int(256)),
            (&[0xCF, 255, 255, 255, 255, 255, 255, 255, 255], Value::Int(u64::MAX.into())),
            (&[0xD0, 0x80], Value::Int(-128)),
            (&[0xD3, 255, 255, 255, 255, 255, 255, 255, 254], Value::Int(-2)),
            (&[0xC0], Value::Nil),
            (&[0xC3], Value::Bool(true)),
            (&[0xCB, 0x3F, 0xF8, 0, 0, 0, 0, 0, 0], Value::Float(1.5)),
            (&[0xA2, b'h', b'i'], Value::Text("hi")),
            (&[0xD9, 1, b'x'], Value::Text("x")),
            (&[0xC4, 2, 1, 2], Value::Bytes(&[1, 2])),
            (&[0x92, 1, 0xC0], Value::List(vec![Value::Int(1), Value::Nil])),
            (&[0xDE, 0, 1, 0xA1, b'a', 2], Value::Map(vec![(Value::Text("a"), Value::Int(2))])),
        ];
        for (bytes, expected) in table {
            assert_eq!(Value::read(bytes), Some(expected), "{bytes:?}");
            assert_eq!(Value::read(&bytes[..bytes.len() - 1]), None, "{bytes:?} cut off");
        }
        assert_eq!(Value::read(&[1, 1]), None, "more than one value");
        assert_eq!(Value::read(&[0xDD, 255, 255, 255, 255]), None, "a length that lies");
        assert_eq!(Value::read(&[0x91; 100]), None, "too deep");
    }

    proptest! {
        #[test]
        fn no_bytes_are_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = Value::read(&bytes);
        }
    }
}
