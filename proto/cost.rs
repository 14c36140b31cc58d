//! What a message will take in memory once it is decoded, told from its bytes: two of them on the
//! wire may be hundreds in memory, so that memory is set aside before the decoder makes them.
//!
//! The numbers are estimates on the high side: lists grow to twice of what they hold, and a tensor
//! is made of an input's contents beside them.

use crate::MAX_TENSORS;
use crate::Payload;
use crate::cursor::Cursor;

/// What the fields of a message cost.
#[derive(Clone, Copy, Debug)]
pub struct Cost(&'static [(u64, Kind)]);

#[derive(Clone, Copy, Debug)]
enum Kind {
    /// Stays in the message's bytes.
    Shared,
    /// A message or an entry of a map: so many bytes, its length, and its fields.
    Nested(usize, Cost),
    /// Numbers as varints, so many bytes each.
    Varints(usize),
    /// Numbers of a fixed width, or strings: so many bytes each, and three times their length.
    Plain(usize),
}

use Kind::{Nested, Plain, Shared, Varints};

/// An entry of a map, with its key, its value, and what the map grows by.
const ENTRY: Kind = Nested(512, Cost(&[]));

const CONTENTS: Cost = Cost(&[
    (1, Varints(8)),
    (2, Varints(16)),
    (3, Varints(32)),
    (4, Varints(16)),
    (5, Varints(32)),
    (6, Plain(16)),
    (7, Plain(32)),
    (8, Plain(96)),
]);

const INPUT: Cost = Cost(&[
    (1, Plain(32)),
    (2, Plain(32)),
    (3, Varints(32)),
    (4, ENTRY),
    (5, Nested(256, CONTENTS)),
]);

const OUTPUT: Cost = Cost(&[(1, Plain(32)), (2, ENTRY)]);

impl Cost {
    /// Of a ModelInferRequest, without its raw inputs.
    pub const INFER: Self = Self(&[
        (1, Plain(32)),
        (2, Plain(32)),
        (3, Plain(32)),
        (4, ENTRY),
        (5, Nested(1024, INPUT)),
        (6, Nested(512, OUTPUT)),
        (7, Shared),
    ]);

    /// Of messages whose third field is a map and which else hold texts: RepositoryModelLoad.
    pub const LOAD: Self = Self(&[(1, Plain(32)), (2, Plain(32)), (3, ENTRY)]);
}

/// Returns how many bytes a message takes in memory once it is decoded. What follows the first
/// bytes that no decoder takes is not counted, since none comes there: more than [`MAX_TENSORS`]
/// inputs or outputs are refused before they are decoded.
pub fn cost_of(message: &Payload, cost: Cost) -> usize {
    let mut walk = Walk { cursor: Cursor::new(message), bytes: 0 };
    let _ = walk.message(message.len(), cost, true);
    walk.bytes
}

struct Walk {
    cursor: Cursor,
    bytes: usize,
}

impl Walk {
    fn add(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// Counts up to the end of a message, which is the request or a part of it. The depth is that of
    /// the table.
    fn message(&mut self, end: usize, cost: Cost, is_request: bool) -> Option<()> {
        let mut tensors = 0;
        while self.cursor.at < end {
            let tag = self.cursor.varint()?;
            let kind = cost.0.iter().find(|(number, _)| *number == tag >> 3).map(|(_, kind)| *kind);
            match (kind, tag & 7) {
                // The decoder reads a length for a map whatever the tag says, and refuses a
                // message of another type.
                (Some(Nested(each, inner)), _) => {
                    let behind = self.cursor.length(end)?;
                    tensors += usize::from(is_request && !inner.0.is_empty());
                    if tensors > 2 * MAX_TENSORS {
                        return None;
                    }
                    self.add(each + (behind - self.cursor.at));
                    match inner.0.is_empty() {
                        true => self.cursor.pass(behind, |_| {})?,
                        false => self.message(behind, inner, false)?,
                    }
                }
                (Some(Varints(each)), 2) => {
                    let behind = self.cursor.length(end)?;
                    let mut count = 0;
                    let ends = |bytes: &[u8]| bytes.iter().filter(|byte| **byte < 0x80).count();
                    self.cursor.pass(behind, |bytes| count += ends(bytes))?;
                    self.add(each.saturating_mul(count));
                }
                (Some(Plain(each)), 2) => {
                    let behind = self.cursor.length(end)?;
                    self.add(each + 3 * (behind - self.cursor.at));
                    self.cursor.pass(behind, |_| {})?;
                }
                (Some(Varints(each) | Plain(each)), wire_type) => {
                    self.add(each);
                    self.cursor.field(wire_type, end)?;
                }
                (Some(Shared) | None, wire_type) => self.cursor.field(wire_type, end)?,
            }
        }
        (self.cursor.at == end).then_some(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use prost::Message;

    use super::*;
    use crate::inference::model_infer_request::InferInputTensor;
    use crate::inference::{InferParameter, InferTensorContents, ModelInferRequest};

    fn cost(contents: InferTensorContents) -> usize {
        let input = InferInputTensor { contents: Some(contents), ..Default::default() };
        let message = ModelInferRequest { inputs: vec![input], ..Default::default() };
        let whole = message.encode_to_vec();
        let cut = whole.chunks(7).map(bytes::Bytes::copy_from_slice).collect();
        let cost = cost_of(&cut, Cost::INFER);
        assert_eq!(cost, cost_of(&whole.into(), Cost::INFER), "however it is cut");
        cost
    }

    #[test]
    fn what_is_small_on_the_wire_counts_as_in_memory() {
        let many = 100_000;
        let bytes = InferTensorContents {
            bytes_contents: vec![Default::default(); many],
            ..Default::default()
        };
        assert!(cost(bytes) > 64 * many);
        let numbers = InferTensorContents { int64_contents: vec![0; many], ..Default::default() };
        assert!(cost(numbers) > 24 * many);
        let fixed = InferTensorContents { fp64_contents: vec![0.0; many], ..Default::default() };
        assert!(cost(fixed) > 24 * many);
        let parameters: HashMap<_, _> =
            (0..many).map(|key| (key.to_string(), InferParameter::default())).collect();
        let message = ModelInferRequest { parameters, ..Default::default() };
        assert!(cost_of(&message.encode_to_vec().into(), Cost::INFER) > 256 * many);
        let inputs = vec![InferInputTensor::default(); many];
        let message = ModelInferRequest { inputs, ..Default::default() };
        assert!(cost_of(&message.encode_to_vec().into(), Cost::INFER) > 512 * many);
    }

    #[test]
    fn raw_inputs_stay_where_they_are() {
        let raw = vec![vec![7; 1 << 20].into(); 4];
        let message = ModelInferRequest { raw_input_contents: raw, ..Default::default() };
        assert_eq!(cost_of(&message.encode_to_vec().into(), Cost::INFER), 0);
    }

    #[test]
    fn broken_bytes_are_walked_to_where_they_break() {
        assert_eq!(cost_of(&vec![0xff; 100].into(), Cost::INFER), 0);
        // A map's entry whose tag says "varint", and an input that is longer than the message.
        assert_eq!(cost_of(&vec![4 << 3, 3, 1, 2, 3].into(), Cost::INFER), 515);
        assert_eq!(cost_of(&vec![5 << 3 | 2, 100, 1].into(), Cost::INFER), 0);
    }
}
