//! Requests for inference over REST: JSON and binary tensors to the messages of the gRPC protocol.
//!
//! With `Inference-Header-Content-Length` the body is so many bytes of JSON and then the binary
//! data of the inputs that say so, in their order; an answer with binary data has the same form.

use std::collections::{BTreeMap, HashMap};
use std::num::IntErrorKind;

use bytes::Bytes;
use engine::{Error, Result};
use http::HeaderName;
use proto::inference::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use proto::inference::{InferParameter, ModelInferRequest};
use proto::{Envelope, Payload};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use tensor::{Datatype, ModelConfig, Parameter, parameters, shape};

use super::outputs::BinaryOutputs;
use crate::serving::inference::heavy;
use crate::surfaces::http::receive::{Received, Tensors, tensors};

/// The header that says how much of a body is JSON.
pub(super) const JSON_LENGTH: HeaderName =
    HeaderName::from_static("inference-header-content-length");

/// The parameters of the binary tensor data extension.
pub(super) const BINARY_SIZE: &str = "binary_data_size";
const BINARY: &str = "binary_data";
const BINARY_ALL: &str = "binary_data_output";

/// The JSON of a request.
#[derive(Deserialize)]
struct Body<'a> {
    #[serde(default)]
    id: String,
    #[serde(default, deserialize_with = "scalars")]
    parameters: Map<String, Value>,
    #[serde(borrow)]
    inputs: Tensors<Input<'a>>,
    #[serde(default)]
    outputs: Tensors<Output>,
}

#[derive(Deserialize)]
struct Input<'a> {
    name: String,
    datatype: String,
    shape: Vec<i64>,
    #[serde(default, deserialize_with = "scalars")]
    parameters: Map<String, Value>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Output {
    name: String,
    #[serde(default, deserialize_with = "scalars")]
    parameters: Map<String, Value>,
}

/// Reads parameters, which hold single values: a list or an object is read as an empty one, which
/// is refused as any of them, and takes no memory.
fn scalars<'de, D: Deserializer<'de>>(
    json: D,
) -> std::result::Result<Map<String, Value>, D::Error> {
    let all = BTreeMap::<String, &RawValue>::deserialize(json)?;
    let value = |text: &str| match text.as_bytes().first() {
        Some(b'[' | b'{') => Ok(Value::Array(Vec::new())),
        _ => serde_json::from_str(text).map_err(D::Error::custom),
    };
    all.into_iter().map(|(key, raw)| Ok((key, value(raw.get())?))).collect()
}

/// Reads a request for a model.
///
/// Errors: as KServe and Triton have them; each names what is wrong.
pub(super) fn decode(
    received: &Received,
    model: (&str, &str),
    config: &ModelConfig,
) -> Result<(Envelope, BinaryOutputs)> {
    let (model_name, model_version) = (model.0.to_owned(), model.1.to_owned());
    let (json, mut binary) = split(received)?;
    if json.is_empty() && received.headers.contains_key(JSON_LENGTH) {
        return raw(binary, model, config);
    }
    let body: Body<'_> = tensors(received, &json)?;
    let mut envelope = Envelope::default();
    let has_binary = received.headers.contains_key(JSON_LENGTH);
    for input in body.inputs.0 {
        let (tensor, payload) = input.decode(&mut binary, has_binary, &model_name)?;
        envelope.payloads.extend(payload);
        envelope.message.inputs.push(tensor);
    }
    if !binary.is_empty() {
        return Err(Error::invalid(format!(
            "unexpected additional input data for model '{model_name}': {} bytes",
            binary.len()
        )));
    }
    let mut binary_outputs = BinaryOutputs::default();
    let mut own = body.parameters;
    if let Some(value) = own.remove(BINARY_ALL) {
        binary_outputs.by_default = boolean(BINARY_ALL, &value)?;
    }
    for mut output in body.outputs.0 {
        check_region(&output)?;
        if let Some(value) = output.parameters.remove(BINARY) {
            binary_outputs.by_name.insert(output.name.clone(), boolean(BINARY, &value)?);
        }
        envelope.message.outputs.push(InferRequestedOutputTensor {
            name: output.name,
            parameters: wire_parameters(output.parameters)?,
        });
    }
    let message = &mut envelope.message;
    check_reserved(&own)?;
    check_known(&own)?;
    message.parameters = wire_parameters(own)?;
    (message.id, message.model_name, message.model_version) = (body.id, model_name, model_version);
    Ok((envelope, binary_outputs))
}

/// Returns how much of a body is JSON; binary data is taken as it is, which takes no time.
pub(super) fn json_bytes(received: &Received) -> usize {
    split(received).map_or(0, |(json, _)| json.len())
}

/// Parts a body into its JSON and its binary data.
fn split(received: &Received) -> Result<(Bytes, Bytes)> {
    let body = received.body.clone();
    let Some(value) = received.headers.get(JSON_LENGTH) else {
        return Ok((body, Bytes::new()));
    };
    let text = value.to_str().unwrap_or("?").trim();
    let shown: String = text.chars().take(40).collect();
    // Triton's sentences.
    let wrong = match text.parse::<usize>() {
        Ok(length) if length <= body.len() => {
            return Ok((body.slice(..length), body.slice(length..)));
        }
        Ok(_) => format!("inference header size should be in range (0, {})", body.len()),
        Err(error) if *error.kind() == IntErrorKind::PosOverflow => format!(
            "Unable to parse Inference-Header-Content-Length, value is out of range [ 0, {} ]",
            usize::MAX
        ),
        Err(_) => "Unable to parse Inference-Header-Content-Length".to_owned(),
    };
    Err(Error::invalid(format!("{wrong}, got: {shown}")))
}

/// Makes a request of a body that is nothing but the data of a model's one input.
fn raw(
    data: Bytes,
    model: (&str, &str),
    config: &ModelConfig,
) -> Result<(Envelope, BinaryOutputs)> {
    let [spec] = &config.inputs[..] else {
        return Err(Error::invalid(format!(
            "Raw request must only have 1 input (found 1) to be deduced but got {} inputs in '{}' \
             model configuration",
            config.inputs.len(),
            model.0
        )));
    };
    if spec.dims.iter().filter(|dim| **dim < 0).count() > 1 {
        return Err(Error::invalid(format!(
            "The shape of the raw input '{}' can not be deduced because there are more than one \
             variable-sized dimension",
            spec.name
        )));
    }
    if spec.datatype == Datatype::Bytes && spec.dims.iter().any(|dim| *dim != 1) {
        return Err(Error::invalid(format!(
            "For BYTE datatype raw input '{}', the model must have input shape [1]",
            spec.name
        )));
    }
    let (data, count) = match spec.datatype.size_bytes() {
        // One element, whose length the client need not write.
        None => (heavy(data.len(), || tensor::encode_elements([&data])), 1),
        Some(size) => {
            let count = data.len() / size;
            (data, count)
        }
    };
    // Bytes that fit no shape are refused with the others, by their size.
    let mut shape = shape::fit(&spec.dims, count).unwrap_or_else(|| vec![count as i64]);
    if config.max_batch_size > 0 {
        shape.insert(0, 1);
    }
    let input = InferInputTensor {
        name: spec.name.to_string(),
        datatype: spec.datatype.name().to_owned(),
        shape,
        ..Default::default()
    };
    let message = ModelInferRequest {
        model_name: model.0.to_owned(),
        model_version: model.1.to_owned(),
        inputs: vec![input],
        ..Default::default()
    };
    let outputs = BinaryOutputs { by_default: true, by_name: HashMap::new() };
    Ok((Envelope { message, payloads: vec![data.into()] }, outputs))
}

impl Input<'_> {
    /// Returns the input and its data, which a region may hold instead.
    fn decode(
        mut self,
        binary: &mut Bytes,
        has_binary: bool,
        model: &str,
    ) -> Result<(InferInputTensor, Option<Payload>)> {
        self.check_shape()?;
        let name = &self.name;
        let size = self.parameters.remove(BINARY_SIZE);
        let has_region = self.parameters.contains_key("shared_memory_region");
        let given = [self.data.is_some(), size.is_some(), has_region];
        match given.into_iter().filter(|is_given| *is_given).count() {
            1 => {}
            count => {
                let found = if count == 0 { "no field was" } else { "more than one field was" };
                return Err(Error::invalid(format!(
                    "Unable to parse 'data': Input must set only one of the following fields: \
                     'data', 'binary_data_size' in 'parameters', 'shared_memory_region' in \
                     'parameters'. But {found} set for input '{name}'"
                )));
            }
        }
        let payload = match (self.data, size) {
            (Some(data), _) => Some(self.data(data)?),
            (None, Some(_)) if !has_binary => {
                return Err(Error::invalid(
                    "must specify valid 'Infer-Header-Content-Length' in request header and \
                     'binary_data_size' when passing inputs in binary data format",
                ));
            }
            (None, Some(size)) => Some(self.binary(&size, binary, model)?.into()),
            (None, None) => None,
        };
        let parameters = wire_parameters(self.parameters)?;
        let Self { name, datatype, shape, .. } = self;
        Ok((InferInputTensor { name, datatype, shape, parameters, contents: None }, payload))
    }

    fn data(&self, data: &RawValue) -> Result<Payload> {
        // A datatype that is none is refused with the others, by the model's configuration.
        let Some(datatype) = Datatype::parse(&self.datatype) else {
            return Ok(Payload::default());
        };
        if matches!(datatype, Datatype::Fp16 | Datatype::Bf16) {
            return Err(Error::invalid(format!(
                "receiving {datatype} data via JSON is not supported. Please use the binary data \
                 format for input {}",
                self.name
            )));
        }
        let (payload, count) = tensor::json::decode(datatype, data.get()).map_err(|why| {
            Error::invalid(format!("Unable to parse 'data' of input '{}': {why}", self.name))
        })?;
        match shape::element_count(&self.shape) {
            Ok(expected) if expected == count => Ok(payload),
            Ok(expected) => Err(Error::invalid(format!(
                "Unable to parse 'data': shape does not match true shape of 'data' field: input \
                 '{}' has {expected} elements, got {count}",
                self.name
            ))),
            Err(error) => Err(Error::invalid(format!("input '{}': {error}", self.name))),
        }
    }

    /// Checks a shape as Triton's HTTP door does, before the model's.
    fn check_shape(&self) -> Result<()> {
        let Self { name, shape, .. } = self;
        let shown = shape::spell(shape);
        if shape.iter().any(|dim| *dim < 0) {
            return Err(Error::invalid(format!(
                "invalid shape for input '{name}': shape {shown} contains one or more invalid \
                 dimensions. All input dimensions should be specified"
            )));
        }
        let size = Datatype::parse(&self.datatype).and_then(Datatype::size_bytes).unwrap_or(1);
        let most = i64::MAX as usize;
        match shape::element_count(shape).ok().filter(|count| *count <= most) {
            None => Err(Error::invalid(format!(
                "invalid shape for input '{name}': shape {shown} causes total element count to \
                 exceed maximum size of {most}"
            ))),
            Some(count) if count > most / size => Err(Error::invalid(format!(
                "byte size overflow for input '{name}': element count ({count}) * data type size \
                 ({size}) exceeds {most}"
            ))),
            Some(_) => Ok(()),
        }
    }

    fn binary(&self, size: &Value, binary: &mut Bytes, model: &str) -> Result<Bytes> {
        let length = size.as_u64().and_then(|size| usize::try_from(size).ok());
        match length {
            Some(length) if length <= binary.len() => Ok(binary.split_to(length)),
            Some(length) => Err(Error::invalid(format!(
                "unexpected size for input '{}', expecting {} additional bytes for model '{model}'",
                self.name,
                length - binary.len()
            ))),
            None => Err(Error::invalid(format!(
                "Unable to parse 'binary_data_size' of input '{}': expected a number of at least 0",
                self.name
            ))),
        }
    }
}

fn boolean(key: &str, value: &Value) -> Result<bool> {
    value
        .as_bool()
        .ok_or_else(|| Error::invalid(format!("Unable to parse '{key}': expected a bool")))
}

/// Refuses all request parameters of Triton's own: over REST, in contrast to gRPC, none may be set.
pub(super) fn check_reserved(parameters: &Map<String, Value>) -> Result<()> {
    match parameters.keys().find(|key| key.starts_with("triton_")) {
        None => Ok(()),
        Some(key) => Err(Error::invalid(format!(
            "parameter keys starting with 'triton_' are reserved for Triton usage and should not \
             be specified, got '{key}'"
        ))),
    }
}

/// Checks the types of the request parameters that the protocol knows, with Triton's beginning.
fn check_known(parameters: &Map<String, Value>) -> Result<()> {
    type Known = (&'static str, &'static str, fn(&Value) -> bool);
    let table: [Known; 5] = [
        ("sequence_start", "a bool", Value::is_boolean),
        ("sequence_end", "a bool", Value::is_boolean),
        ("sequence_id", "a number or a string", |value| value.is_u64() || value.is_string()),
        ("priority", "a number of at least 0", Value::is_u64),
        ("timeout", "a number of at least 0", Value::is_u64),
    ];
    for (key, expected, is_fine) in table {
        if parameters.get(key).is_some_and(|value| !is_fine(value)) {
            return Err(Error::invalid(format!(
                "Unable to parse '{key}': invalid value type for '{key}' parameter, expected \
                 {expected}"
            )));
        }
    }
    Ok(())
}

/// Refuses what an output in shared memory can not be beside that.
fn check_region(output: &Output) -> Result<()> {
    let has = |key: &str| output.parameters.contains_key(key);
    let is_binary = output.parameters.get(BINARY).is_some_and(|value| *value == true);
    let other = match () {
        () if !has("shared_memory_region") => return Ok(()),
        () if has("classification") => "classification",
        () if is_binary => BINARY,
        () => return Ok(()),
    };
    Err(Error::invalid(format!("Output can't set both 'shared_memory_region' and '{other}'")))
}

/// Reads parameters: booleans, numbers and strings.
pub(super) fn wire_parameters(
    parameters: Map<String, Value>,
) -> Result<HashMap<String, InferParameter>> {
    let read = |(key, value): (String, Value)| {
        let value = parameter(&key, value)?;
        Ok((key, parameters::encode(&value)))
    };
    parameters.into_iter().map(read).collect()
}

/// Reads a parameter's value.
pub(super) fn parameter(key: &str, value: Value) -> Result<Parameter> {
    match value {
        Value::Bool(value) => Ok(Parameter::Bool(value)),
        Value::String(value) => Ok(Parameter::String(value)),
        Value::Number(number) => Ok(match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => Parameter::Int64(number),
            (None, Some(number)) => Parameter::Uint64(number),
            (None, None) => Parameter::Double(number.as_f64().unwrap_or(f64::NAN)),
        }),
        Value::Null | Value::Array(_) | Value::Object(_) => Err(Error::invalid(format!(
            "parameter '{key}' has invalid type. It should be either 'int', 'bool', or 'string'."
        ))),
    }
}
