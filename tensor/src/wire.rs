//! Inference responses straight to protobuf bytes.
//!
//! What is written is, field for field, the message that the general encoder would write from
//! `ModelInferResponse`; a response of one token costs no intermediate structs, and a large
//! payload is handed on as it is. Answers are always `raw_output_contents`, as Triton's are.

use bytes::{BufMut, Bytes};
use proto::Payload;

use crate::{Parameter, Parameters, Tensor};

/// What stands before the tensors of a response.
#[derive(Clone, Copy, Debug)]
pub struct ResponseHead<'a> {
    /// The model that answered.
    pub model_name: &'a str,
    /// Its version.
    pub model_version: &'a str,
    /// The id of the request.
    pub id: &'a str,
    /// The parameters of the response.
    pub parameters: &'a Parameters,
}

/// A payload from this size on is a segment of its own, since copying it twice would cost more
/// than another segment.
const LARGE_BYTES: usize = 2048;

/// The response parameter that ends a request on a stream.
const FINAL: &str = "triton_final_response";

/// Encodes a `ModelInferResponse`.
pub fn encode_response(head: &ResponseHead<'_>, tensors: &[Tensor]) -> Payload {
    let layout = Layout::measure(head, tensors, None);
    let mut writer = Writer::with_capacity(layout.small_bytes);
    write_response(&mut writer, head, tensors, None);
    writer.finish()
}

/// Encodes a `ModelStreamInferResponse` that holds a response and says whether it is the last.
pub fn encode_stream_response(
    head: &ResponseHead<'_>,
    tensors: &[Tensor],
    is_last: bool,
) -> Payload {
    let layout = Layout::measure(head, tensors, Some(is_last));
    let mut writer = Writer::with_capacity(layout.small_bytes + 16);
    writer.length_delimited(2, layout.total_bytes);
    write_response(&mut writer, head, tensors, Some(is_last));
    writer.finish()
}

fn write_response(
    writer: &mut Writer,
    head: &ResponseHead<'_>,
    tensors: &[Tensor],
    is_last: Option<bool>,
) {
    writer.string(1, head.model_name);
    writer.string(2, head.model_version);
    writer.string(3, head.id);
    for (key, value) in head.parameters {
        writer.length_delimited(4, entry_bytes(key, value));
        writer.entry(key, value);
    }
    if let Some(is_last) = is_last {
        let value = Parameter::Bool(is_last);
        writer.length_delimited(4, entry_bytes(FINAL, &value));
        writer.entry(FINAL, &value);
    }
    for tensor in tensors {
        writer.length_delimited(5, output_bytes(tensor));
        writer.string(1, &tensor.name);
        writer.string(2, tensor.datatype.name());
        if !tensor.shape.is_empty() {
            writer.length_delimited(3, shape_bytes(&tensor.shape));
            tensor.shape.iter().for_each(|&dim| writer.varint(dim as u64));
        }
        for (key, value) in &tensor.parameters {
            writer.length_delimited(4, entry_bytes(key, value));
            writer.entry(key, value);
        }
    }
    for tensor in tensors {
        let length = tensor.data.len();
        writer.length_delimited(6, length);
        writer.payload(&tensor.data, length);
    }
}

/// The lengths that have to be known before writing.
struct Layout {
    total_bytes: usize,
    small_bytes: usize,
}

impl Layout {
    fn measure(head: &ResponseHead<'_>, tensors: &[Tensor], is_last: Option<bool>) -> Self {
        let mut bytes = string_bytes(head.model_name)
            + string_bytes(head.model_version)
            + string_bytes(head.id);
        for (key, value) in head.parameters {
            bytes += field_bytes(entry_bytes(key, value));
        }
        if let Some(is_last) = is_last {
            bytes += field_bytes(entry_bytes(FINAL, &Parameter::Bool(is_last)));
        }
        let mut large = 0;
        for tensor in tensors {
            let length = tensor.data.len();
            bytes += field_bytes(output_bytes(tensor)) + field_bytes(length);
            large += Some(length).filter(|&n| n >= LARGE_BYTES).unwrap_or(0);
        }
        Self { total_bytes: bytes, small_bytes: bytes - large }
    }
}

/// Returns the bytes of a varint.
fn varint_bytes(value: u64) -> usize {
    // Seven bits a byte, and at least one byte.
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

/// Returns the bytes of a length-delimited field with a tag under 16.
fn field_bytes(length: usize) -> usize {
    1 + varint_bytes(length as u64) + length
}

fn string_bytes(text: &str) -> usize {
    if text.is_empty() { 0 } else { field_bytes(text.len()) }
}

fn shape_bytes(shape: &[i64]) -> usize {
    shape.iter().map(|&dim| varint_bytes(dim as u64)).sum()
}

fn output_bytes(tensor: &Tensor) -> usize {
    let shape = match tensor.shape.is_empty() {
        true => 0,
        false => field_bytes(shape_bytes(&tensor.shape)),
    };
    let parameters = tensor.parameters.iter();
    let parameters = parameters.map(|(key, value)| field_bytes(entry_bytes(key, value)));
    string_bytes(&tensor.name)
        + string_bytes(tensor.datatype.name())
        + shape
        + parameters.sum::<usize>()
}

/// Returns the bytes of an `InferParameter`. A member of a oneof is written even when it is zero.
fn parameter_bytes(value: &Parameter) -> usize {
    match value {
        Parameter::Bool(_) => 2,
        Parameter::Int64(value) => 1 + varint_bytes(*value as u64),
        Parameter::Uint64(value) => 1 + varint_bytes(*value),
        Parameter::Double(_) => 9,
        Parameter::String(value) => field_bytes(value.len()),
    }
}

fn entry_bytes(key: &str, value: &Parameter) -> usize {
    string_bytes(key) + field_bytes(parameter_bytes(value))
}

/// Writes protobuf fields into the segments of a message.
struct Writer {
    current: Vec<u8>,
    done: Payload,
}

impl Writer {
    fn with_capacity(bytes: usize) -> Self {
        Self { current: Vec::with_capacity(bytes), done: Payload::default() }
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.current.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.current.push(value as u8);
    }

    /// Writes the tag and the length of a length-delimited field.
    fn length_delimited(&mut self, field: u8, length: usize) {
        self.current.push(field << 3 | 2);
        self.varint(length as u64);
    }

    fn string(&mut self, field: u8, text: &str) {
        if !text.is_empty() {
            self.length_delimited(field, text.len());
            self.current.extend_from_slice(text.as_bytes());
        }
    }

    fn entry(&mut self, key: &str, value: &Parameter) {
        self.string(1, key);
        self.length_delimited(2, parameter_bytes(value));
        match value {
            Parameter::Bool(value) => self.current.extend_from_slice(&[1 << 3, u8::from(*value)]),
            Parameter::Int64(value) => {
                self.current.push(2 << 3);
                self.varint(*value as u64);
            }
            Parameter::String(value) => {
                self.length_delimited(3, value.len());
                self.current.extend_from_slice(value.as_bytes());
            }
            Parameter::Double(value) => {
                self.current.push(4 << 3 | 1);
                self.current.put_f64_le(*value);
            }
            Parameter::Uint64(value) => {
                self.current.push(5 << 3);
                self.varint(*value);
            }
        }
    }

    fn payload(&mut self, data: &Payload, length: usize) {
        if length < LARGE_BYTES {
            data.segments().for_each(|segment| self.current.extend_from_slice(segment));
            return;
        }
        self.cut();
        data.segments().for_each(|segment| self.done.push(segment.clone()));
    }

    /// Ends the segment being written.
    fn cut(&mut self) {
        self.done.push(Bytes::from(std::mem::take(&mut self.current)));
    }

    fn finish(mut self) -> Payload {
        self.cut();
        self.done
    }
}

#[cfg(test)]
mod tests;
