//! From a wire request to tensors: raw or typed, payloads shared with the receive buffer.

use std::borrow::Cow;
use std::collections::HashSet;

use bytes::Bytes;
use proto::Payload;
use proto::inference::ModelInferRequest;
use proto::inference::model_infer_request::InferInputTensor;

use crate::{Datatype, Error, ModelConfig, Result, Tensor, contents, parameters};

/// Up to so many inputs are compared with each other; more are hashed.
const FEW: usize = 16;

/// The inputs of a request before they are tensors.
#[derive(Clone, Debug, Default)]
pub struct WireInputs {
    /// Names, datatypes, shapes, parameters, and typed contents.
    pub inputs: Vec<InferInputTensor>,
    /// The raw data: the k-th belongs to the k-th input that has no region.
    pub payloads: Vec<Payload>,
    /// By input, the data that lies in a shared memory region; empty when no input has one.
    pub lent: Vec<Option<Payload>>,
}

impl From<ModelInferRequest> for WireInputs {
    fn from(request: ModelInferRequest) -> Self {
        let payloads = request.raw_input_contents.into_iter().map(Payload::from).collect();
        Self { inputs: request.inputs, payloads, lent: Vec::new() }
    }
}

/// Reads the inputs of a request. What they have to look like is checked afterwards, by
/// [`ModelConfig::validate`].
///
/// Raw entries beyond the inputs are ignored, as Triton does. Errors, with Triton's fragments: an
/// input given twice, typed and raw contents together, typed contents that do not belong to the
/// datatype, an input without data, an unknown datatype.
///
/// ```
/// use proto::inference::{ModelInferRequest, model_infer_request::InferInputTensor};
/// use tensor::{Datatype, ModelConfig, TensorSpec, request::decode_inputs};
///
/// let input = TensorSpec::new("IN", Datatype::Int32, [2]);
/// let config = ModelConfig::new("m", 0, vec![input], vec![]);
/// let request = ModelInferRequest {
///     inputs: vec![InferInputTensor {
///         name: "IN".into(),
///         datatype: "INT32".into(),
///         shape: vec![2],
///         ..Default::default()
///     }],
///     raw_input_contents: vec![vec![1, 0, 0, 0, 2, 0, 0, 0].into()],
///     ..Default::default()
/// };
/// let inputs = decode_inputs(&config, request.into()).unwrap();
/// assert_eq!(inputs[0].values::<i32>().unwrap().collect::<Vec<_>>(), [1, 2]);
/// ```
pub fn decode_inputs(config: &ModelConfig, wire: WireInputs) -> Result<Vec<Tensor>> {
    let WireInputs { inputs, payloads, lent } = wire;
    if let Some(name) = duplicate(&inputs) {
        return Err(Error::new(format!("input '{name}' already exists in request")));
    }
    if let Some(unknown) = inputs.iter().find(|input| Datatype::parse(&input.datatype).is_none()) {
        let names: Vec<&str> = inputs.iter().map(|input| input.name.as_str()).collect();
        config.check_input_names(&names)?;
        return Err(config.wrong_datatype(&unknown.name, "<invalid>"));
    }
    let has_raw = !payloads.is_empty();
    let mut raw = payloads.into_iter();
    let mut lent = lent.into_iter();
    inputs
        .into_iter()
        .map(|input| {
            let datatype = Datatype::parse(&input.datatype)
                .ok_or_else(|| config.wrong_datatype(&input.name, "<invalid>"))?;
            // Elements of any length are walked through more than once: they lie together, and
            // not where a client may change them meanwhile.
            let data = match (lent.next().flatten(), datatype) {
                (Some(data), Datatype::Bytes) => Bytes::copy_from_slice(&data.to_bytes()).into(),
                (Some(data), _) => data,
                (None, Datatype::Bytes) => {
                    data(config, &input, &mut raw, has_raw)?.to_bytes().into()
                }
                (None, _) => data(config, &input, &mut raw, has_raw)?,
            };
            let parameters = parameters::decode(input.parameters)?;
            let name = Cow::Owned(input.name);
            Ok(Tensor { name, datatype, shape: input.shape, data, parameters })
        })
        .collect()
}

/// Returns a name that stands twice.
fn duplicate(inputs: &[InferInputTensor]) -> Option<&str> {
    if inputs.len() <= FEW {
        let mut rest = inputs;
        while let [first, others @ ..] = rest {
            if others.iter().any(|other| other.name == first.name) {
                return Some(&first.name);
            }
            rest = others;
        }
        return None;
    }
    let mut seen = HashSet::with_capacity(inputs.len());
    inputs.iter().map(|input| input.name.as_str()).find(|name| !seen.insert(*name))
}

fn data(
    config: &ModelConfig,
    input: &InferInputTensor,
    raw: &mut impl Iterator<Item = Payload>,
    has_raw: bool,
) -> Result<Payload> {
    let (name, model) = (&input.name, &config.name);
    match &input.contents {
        Some(typed) if has_raw && !contents::is_empty(typed) => Err(Error::new(format!(
            "contents field must not be specified when using raw_input_contents for '{name}' \
             for model '{model}'"
        ))),
        Some(typed) if !has_raw => {
            let datatype = Datatype::parse(&input.datatype)
                .ok_or_else(|| config.wrong_datatype(name, "<invalid>"))?;
            contents::decode(datatype, typed).map(Payload::from).map_err(|why| {
                Error::new(format!(
                    "unexpected explicit tensor data for input tensor '{name}' \
                     for model '{model}' {why}"
                ))
            })
        }
        _ => raw.next().ok_or_else(|| {
            Error::new(format!(
                "unable to find data for input tensor '{name}' for model '{model}' in request."
            ))
        }),
    }
}
