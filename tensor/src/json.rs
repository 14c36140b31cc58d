//! Tensor data as JSON: KServe's `data`, flat or nested, and the numbers of an answer.
//!
//! Numbers go from the text to the tensor's bytes without a tree in between. Integers may stand
//! for floats, not the other way; what a datatype cannot hold is refused. FP16 and BF16 have no
//! JSON form.

use std::fmt;
use std::io::Write;

use bytes::Bytes;
use serde::de::{DeserializeSeed, Deserializer, Error as _, SeqAccess, Visitor};

use crate::{Datatype, Element, Error, Payload, Result, Tensor};

/// How deep arrays may be nested.
const MAX_DEPTH: usize = 100;

/// Reads the JSON text of an input's data; returns it encoded and the number of elements.
///
/// Errors: text that is not JSON, elements that are not of the datatype.
///
/// ```
/// use tensor::{Datatype, json};
/// let (data, count) = json::decode(Datatype::Int32, "[[1, 2], [3, 4]]").unwrap();
/// assert_eq!((data.len(), count), (16, 4));
/// assert!(json::decode(Datatype::Int32, "[1.5]").is_err());
/// ```
pub fn decode(datatype: Datatype, text: &str) -> std::result::Result<(Payload, usize), String> {
    if matches!(datatype, Datatype::Fp16 | Datatype::Bf16) {
        return Err(format!("sending {datatype} data via JSON is not supported, use binary data"));
    }
    let mut sink = Sink { datatype, data: Vec::new(), count: 0 };
    let mut json = serde_json::Deserializer::from_str(text);
    let seed = Elements { sink: &mut sink, depth: 0 };
    let outcome = seed.deserialize(&mut json).and_then(|()| json.end());
    match outcome {
        Ok(()) => Ok((sink.data.into(), sink.count)),
        Err(error) => Err(explain(&error, sink.count)),
    }
}

/// Says what is wrong. An element that does not fit is named by its index: its line and column
/// would be those of `text`, which mostly is a part of what the client wrote.
fn explain(error: &serde_json::Error, index: usize) -> String {
    let text = error.to_string();
    match text.rsplit_once(" at line ") {
        Some((what, _)) if error.is_data() => format!("element {index}: {what}"),
        _ => text,
    }
}

/// Where elements are written.
struct Sink {
    datatype: Datatype,
    data: Vec<u8>,
    count: usize,
}

/// An element, or an array of them.
struct Elements<'a> {
    sink: &'a mut Sink,
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for Elements<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> std::result::Result<(), D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Elements<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "elements of {}", self.sink.datatype)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> std::result::Result<(), A::Error> {
        if self.depth == MAX_DEPTH {
            return Err(A::Error::custom(format!("nested deeper than {MAX_DEPTH} arrays")));
        }
        let depth = self.depth + 1;
        while array.next_element_seed(Elements { sink: &mut *self.sink, depth })?.is_some() {}
        Ok(())
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> std::result::Result<(), E> {
        match self.sink.datatype {
            Datatype::Bool => self.sink.put(value),
            datatype => return Err(E::custom(format!("expected {datatype}, got {value}"))),
        }
        Ok(())
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> std::result::Result<(), E> {
        self.sink.integer(value.into()).map_err(E::custom)
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> std::result::Result<(), E> {
        self.sink.integer(value.into()).map_err(E::custom)
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> std::result::Result<(), E> {
        match self.sink.datatype {
            Datatype::Fp32 if (value as f32).is_infinite() => {
                return Err(E::custom(format!("{value:?} is out of range for FP32")));
            }
            Datatype::Fp32 => self.sink.put(value as f32),
            Datatype::Fp64 => self.sink.put(value),
            datatype => return Err(E::custom(format!("expected {datatype}, got {value:?}"))),
        }
        Ok(())
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> std::result::Result<(), E> {
        if self.sink.datatype != Datatype::Bytes {
            return Err(E::custom(format!("expected {}, got a string", self.sink.datatype)));
        }
        let length = u32::try_from(value.len()).map_err(E::custom)?;
        self.sink.data.extend_from_slice(&length.to_le_bytes());
        self.sink.data.extend_from_slice(value.as_bytes());
        self.sink.count += 1;
        Ok(())
    }
}

impl Sink {
    fn put<T: Element>(&mut self, value: T) {
        value.append_to(&mut self.data);
        self.count += 1;
    }

    fn integer(&mut self, value: i128) -> std::result::Result<(), String> {
        fn fit<T: Element + TryFrom<i128>>(
            sink: &mut Sink,
            value: i128,
        ) -> std::result::Result<(), String> {
            let fitted = T::try_from(value)
                .map_err(|_| format!("{value} is out of range for {}", sink.datatype))?;
            sink.put(fitted);
            Ok(())
        }
        match self.datatype {
            Datatype::Uint8 => fit::<u8>(self, value),
            Datatype::Uint16 => fit::<u16>(self, value),
            Datatype::Uint32 => fit::<u32>(self, value),
            Datatype::Uint64 => fit::<u64>(self, value),
            Datatype::Int8 => fit::<i8>(self, value),
            Datatype::Int16 => fit::<i16>(self, value),
            Datatype::Int32 => fit::<i32>(self, value),
            Datatype::Int64 => fit::<i64>(self, value),
            Datatype::Fp32 => {
                self.put(value as f32);
                Ok(())
            }
            Datatype::Fp64 => {
                self.put(value as f64);
                Ok(())
            }
            datatype => Err(format!("expected {datatype}, got the number {value}")),
        }
    }
}

/// Writes a tensor's elements, comma-separated and without brackets; numbers that JSON lacks are
/// the words NaN, Infinity and -Infinity, as Triton writes them.
///
/// Errors: FP16 and BF16, and BYTES elements that are not UTF-8; binary data can carry them.
pub fn encode(tensor: &Tensor, out: &mut Vec<u8>) -> Result<()> {
    match tensor.datatype {
        Datatype::Bool => numbers::<bool>(tensor, out),
        Datatype::Uint8 => numbers::<u8>(tensor, out),
        Datatype::Uint16 => numbers::<u16>(tensor, out),
        Datatype::Uint32 => numbers::<u32>(tensor, out),
        Datatype::Uint64 => numbers::<u64>(tensor, out),
        Datatype::Int8 => numbers::<i8>(tensor, out),
        Datatype::Int16 => numbers::<i16>(tensor, out),
        Datatype::Int32 => numbers::<i32>(tensor, out),
        Datatype::Int64 => numbers::<i64>(tensor, out),
        Datatype::Fp32 => numbers::<f32>(tensor, out),
        Datatype::Fp64 => numbers::<f64>(tensor, out),
        Datatype::Bytes => return texts(tensor, out),
        Datatype::Fp16 | Datatype::Bf16 => {
            return Err(Error::new(format!(
                "sending {} data via JSON is not supported. Please use the binary data format \
                 for output '{}'",
                tensor.datatype, tensor.name
            )));
        }
    }
    Ok(())
}

/// Returns the most bytes that [`encode`] writes for a tensor.
///
/// ```
/// use tensor::{Tensor, json};
/// let tensor = Tensor::from_values("a", vec![2], [255u8, 7]);
/// assert_eq!(json::most_bytes(&tensor), 8);
/// ```
pub fn most_bytes(tensor: &Tensor) -> usize {
    // With the comma behind it.
    let longest = match tensor.datatype {
        Datatype::Bool => "false,".len(),
        Datatype::Uint8 => "255,".len(),
        Datatype::Int8 => "-128,".len(),
        Datatype::Uint16 => "65535,".len(),
        Datatype::Int16 => "-32768,".len(),
        Datatype::Uint32 => "4294967295,".len(),
        Datatype::Int32 => "-2147483648,".len(),
        Datatype::Uint64 => "18446744073709551615,".len(),
        Datatype::Int64 => "-9223372036854775808,".len(),
        // They have an exponent from 1e16 on.
        Datatype::Fp32 => "-9999999000000000.0,".len(),
        Datatype::Fp64 => "-2.2250738585072014e-308,".len(),
        Datatype::Bytes => return tensor.data.segments().map(escaped_bytes).sum(),
        Datatype::Fp16 | Datatype::Bf16 => return 0,
    };
    tensor.datatype.size_bytes().map_or(0, |size| tensor.data.len() / size * longest)
}

/// Returns what bytes take in JSON texts. The length before an element has bytes that are escaped,
/// which are more than its quotes and its comma.
fn escaped_bytes(bytes: &Bytes) -> usize {
    let length = |byte: &u8| match byte {
        ..0x20 => 6,
        b'"' | b'\\' => 2,
        _ => 1,
    };
    bytes.iter().map(length).sum()
}

/// A number as JSON spells it.
trait Spelled {
    fn spell(self, out: &mut Vec<u8>);
}

macro_rules! spelled {
    ($spell:literal: $($type:ty),*) => {$(
        impl Spelled for $type {
            fn spell(self, out: &mut Vec<u8>) {
                // Writing to a vector cannot fail.
                let _ = write!(out, $spell, self);
            }
        }
    )*};
}

spelled!("{}": bool, u8, u16, u32, u64, i8, i16, i32, i64);

macro_rules! spelled_float {
    ($($type:ty),*) => {$(
        impl Spelled for $type {
            fn spell(self, out: &mut Vec<u8>) {
                let _ = match self {
                    value if value.is_nan() => write!(out, "NaN"),
                    value if value.is_infinite() && value > 0.0 => write!(out, "Infinity"),
                    value if value.is_infinite() => write!(out, "-Infinity"),
                    value => write!(out, "{value:?}"),
                };
            }
        }
    )*};
}

spelled_float!(f32, f64);

fn numbers<T: Element + Spelled>(tensor: &Tensor, out: &mut Vec<u8>) {
    for (index, value) in tensor.values::<T>().into_iter().flatten().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        value.spell(out);
    }
}

fn texts(tensor: &Tensor, out: &mut Vec<u8>) -> Result<()> {
    for (index, element) in tensor.elements().into_iter().flatten().flatten().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        let text = std::str::from_utf8(&element).map_err(|_| {
            Error::new(format!(
                "element {index} of output '{}' is not UTF-8; ask for binary data",
                tensor.name
            ))
        })?;
        serde_json::to_writer(&mut *out, text).map_err(|error| Error::new(error.to_string()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_read_or_refused_by_its_datatype() {
        let fine = [
            (Datatype::Bool, "[true, false]", 2),
            (Datatype::Int8, "[[-128], [127]]", 2),
            (Datatype::Uint64, "[18446744073709551615]", 8),
            (Datatype::Int64, "[-9223372036854775808]", 8),
            (Datatype::Fp32, "[1, 2.5, -3e2]", 12),
            (Datatype::Bytes, r#"["a", "é\n"]"#, 4 + 1 + 4 + 3),
            (Datatype::Int32, "7", 4),
            (Datatype::Int32, "[]", 0),
        ];
        for (datatype, text, bytes) in fine {
            let found = decode(datatype, text).map(|(data, _)| data.len());
            assert_eq!(found, Ok(bytes), "{datatype} {text}");
        }
        let refused = [
            (Datatype::Bool, "[1]", "expected BOOL"),
            (Datatype::Int8, "[128]", "128 is out of range for INT8"),
            (Datatype::Uint8, "[-1]", "-1 is out of range for UINT8"),
            (Datatype::Int32, "[1.0]", "expected INT32"),
            (Datatype::Fp32, "[1e39]", "1e39 is out of range for FP32"),
            (Datatype::Int32, "[\"1\"]", "got a string"),
            (Datatype::Int32, "[null]", "null"),
            (Datatype::Int32, "[{}]", "map"),
            (Datatype::Fp16, "[1]", "via JSON is not supported"),
            (Datatype::Bytes, "[1]", "expected BYTES"),
            (Datatype::Int32, "[1", "EOF"),
        ];
        for (datatype, text, expected) in refused {
            let error = decode(datatype, text).unwrap_err();
            assert!(error.contains(expected), "{datatype} {text}: {error}");
        }
        let deep = format!("{}1{}", "[".repeat(101), "]".repeat(101));
        assert!(decode(Datatype::Int32, &deep).unwrap_err().contains("nested deeper than 100"));
        assert!(decode(Datatype::Int32, &"[".repeat(1 << 20)).is_err());
    }

    #[test]
    fn no_element_is_longer_than_foreseen() {
        fn check<T: Element>(values: impl IntoIterator<Item = T>) {
            for value in values {
                let tensor = Tensor::from_values("o", vec![1], [value]);
                let mut out = Vec::new();
                encode(&tensor, &mut out).unwrap();
                let (text, most) = (String::from_utf8(out).unwrap(), most_bytes(&tensor));
                assert!(text.len() < most, "{text} has more than {most} bytes");
            }
        }
        check([false, true]);
        check([u8::MAX]);
        check([i8::MIN]);
        check([u16::MAX]);
        check([i16::MIN]);
        check([u32::MAX]);
        check([i32::MIN]);
        check([u64::MAX]);
        check([i64::MIN]);
        let patterns = || (0..200_000u64).map(|n| n.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        check(patterns().map(|bits| f32::from_bits((bits >> 32) as u32)));
        check(patterns().map(f64::from_bits));
        let decades = || (-40..40).flat_map(|n| [-1.234_567_9, -9.999_999, -1.0].map(|x| (x, n)));
        check(decades().map(|(x, n)| (x * 10f64.powi(n)) as f32));
        check(decades().map(|(x, n)| x * 1.000_000_012_345_678 * 10f64.powi(n)));
    }

    #[test]
    fn answers_are_json_with_tritons_words_for_what_json_lacks() {
        let table = [
            (
                Tensor::from_values("o", vec![3], [1.5f32, f32::NAN, f32::NEG_INFINITY]),
                "1.5,NaN,-Infinity",
            ),
            (Tensor::from_values("o", vec![2], [1e30f64, 1.0]), "1e30,1.0"),
            (Tensor::from_values("o", vec![1], [u64::MAX]), "18446744073709551615"),
            (Tensor::from_values("o", vec![1], [true]), "true"),
            (Tensor::from_elements("o", vec![2], ["a\"", ""]), r#""a\"","""#),
        ];
        for (tensor, expected) in table {
            let mut out = Vec::new();
            encode(&tensor, &mut out).unwrap();
            assert_eq!(String::from_utf8(out).unwrap(), expected);
            assert!(most_bytes(&tensor) >= expected.len(), "{expected}");
        }
        let broken = Tensor::from_elements("o", vec![1], [b"\xff"]);
        assert!(encode(&broken, &mut Vec::new()).is_err());
    }
}
