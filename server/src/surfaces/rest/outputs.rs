//! Answers of inference over REST: JSON, or JSON and binary data. How long one may become is told
//! before it is made, so that memory for it can be held.

use std::collections::HashMap;

use axum::response::Response;
use engine::Result;
use http::{HeaderMap, HeaderValue};
use serde_json::{Map, Value, json};
use tensor::wire::ResponseHead;
use tensor::{Parameter, Parameters, Tensor};

use super::answer;
use super::infer::{BINARY_SIZE, JSON_LENGTH};

/// What is written for a tensor, or for the answer, besides names, shapes and data.
const TENSOR_BYTES: usize = 160;

/// What a dimension takes as text at most.
const DIM_BYTES: usize = 20;

/// What a byte of a name takes in JSON at most.
const ESCAPED: usize = 6;

/// Which outputs the client wants as binary data.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct BinaryOutputs {
    pub by_default: bool,
    pub by_name: HashMap<String, bool>,
}

impl BinaryOutputs {
    fn wants(&self, name: &str) -> bool {
        self.by_name.get(name).copied().unwrap_or(self.by_default)
    }
}

/// Returns the most bytes of an answer with these outputs, but for a model's own parameters.
pub(super) fn answer_bytes(
    wanted: &BinaryOutputs,
    head: &ResponseHead<'_>,
    tensors: &[Tensor],
) -> usize {
    let tensor = |tensor: &Tensor| {
        let data = match wanted.wants(&tensor.name) {
            true => tensor.data.len(),
            false => tensor::json::most_bytes(tensor),
        };
        TENSOR_BYTES + ESCAPED * tensor.name.len() + DIM_BYTES * tensor.shape.len() + data
    };
    let names = head.id.len() + head.model_name.len() + head.model_version.len();
    TENSOR_BYTES + ESCAPED * names + tensors.iter().map(tensor).sum::<usize>()
}

/// Writes an answer, of at most `most` bytes: JSON, or JSON and binary data if the client wants any.
///
/// Errors: an output that JSON cannot hold.
pub(super) fn encode(
    asked: &HeaderMap,
    wanted: &BinaryOutputs,
    (head, tensors): (&ResponseHead<'_>, &[Tensor]),
    most: usize,
) -> Result<Response> {
    let mut json = Vec::with_capacity(most);
    let mut binary: Vec<&Tensor> = Vec::new();
    let mut object = Map::new();
    if !head.id.is_empty() {
        object.insert("id".into(), json!(head.id));
    }
    object.insert("model_name".into(), json!(head.model_name));
    object.insert("model_version".into(), json!(head.model_version));
    if !head.parameters.is_empty() {
        object.insert("parameters".into(), json_parameters(head.parameters));
    }
    let start = Value::Object(object).to_string();
    json.extend_from_slice(&start.as_bytes()[..start.len() - 1]);
    json.extend_from_slice(br#","outputs":["#);
    for (index, tensor) in tensors.iter().enumerate() {
        if index > 0 {
            json.push(b',');
        }
        let is_binary = wanted.wants(&tensor.name);
        // An output in shared memory has neither data nor, over REST, parameters: NVIDIA's C++
        // client takes any parameters for those of binary data.
        let has_region = !tensor.parameters.is_empty();
        let mut parameters = Parameters::new();
        if is_binary && !has_region {
            let size = Parameter::Int64(tensor.data.len() as i64);
            parameters.insert(BINARY_SIZE.to_owned(), size);
            binary.push(tensor);
        }
        let mut object = Map::new();
        object.insert("name".into(), json!(tensor.name));
        object.insert("datatype".into(), json!(tensor.datatype.name()));
        object.insert("shape".into(), json!(tensor.shape));
        if !parameters.is_empty() {
            object.insert("parameters".into(), json_parameters(&parameters));
        }
        let text = Value::Object(object).to_string();
        match is_binary || has_region {
            true => json.extend_from_slice(text.as_bytes()),
            false => {
                // One brace is the object's own; a nested one cannot come last here.
                json.extend_from_slice(&text.as_bytes()[..text.len() - 1]);
                json.extend_from_slice(br#","data":["#);
                tensor::json::encode(tensor, &mut json)?;
                json.extend_from_slice(b"]}");
            }
        }
    }
    json.extend_from_slice(b"]}");
    if binary.is_empty() {
        return Ok(answer::bytes(asked, "application/json", json));
    }
    let length = json.len();
    for segment in binary.iter().flat_map(|tensor| tensor.data.segments()) {
        json.extend_from_slice(segment);
    }
    let mut response = answer::bytes(asked, "application/octet-stream", json);
    response.headers_mut().insert(JSON_LENGTH, HeaderValue::from(length));
    Ok(response)
}

/// Writes parameters as JSON.
fn json_parameters(parameters: &Parameters) -> Value {
    let value = |value: &Parameter| match value {
        Parameter::Bool(value) => json!(value),
        Parameter::Int64(value) => json!(value),
        Parameter::Uint64(value) => json!(value),
        Parameter::Double(value) => json!(value),
        Parameter::String(value) => json!(value),
    };
    parameters.iter().map(|(key, given)| (key.clone(), value(given))).collect()
}
