//! From a wire request to tensors: raw or typed, payloads shared with the receive buffer.

use std::borrow::Cow;
use std::collections::HashSet;

use bytes::Bytes;
use proto::inference::ModelInferRequest;
use proto::inference::model_infer_request::InferInputTensor;

use crate::{Datatype, Error, ModelConfig, Result, Tensor, contents};

/// Up to so many inputs are compared with each other; more are hashed.
const FEW: usize = 16;

/// Reads the inputs of a request. What they have to look like is checked afterwards, by
/// [`ModelConfig::validate`].
///
/// `raw_input_contents[k]` belongs to the k-th input; entries beyond the inputs are ignored, as
/// Triton does. Errors, with Triton's fragments: an input given twice, typed and raw contents
/// together, typed contents that do not belong to the datatype, an input without data, an unknown
/// datatype.
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
/// let inputs = decode_inputs(&config, request).unwrap();
/// assert_eq!(inputs[0].values::<i32>().unwrap().collect::<Vec<_>>(), [1, 2]);
/// ```
pub fn decode_inputs(config: &ModelConfig, request: ModelInferRequest) -> Result<Vec<Tensor>> {
    let ModelInferRequest { inputs, raw_input_contents, .. } = request;
    if let Some(name) = duplicate(&inputs) {
        return Err(Error::new(format!("input '{name}' already exists in request")));
    }
    if let Some(unknown) = inputs.iter().find(|input| Datatype::parse(&input.datatype).is_none()) {
        let names: Vec<&str> = inputs.iter().map(|input| input.name.as_str()).collect();
        config.check_input_names(&names)?;
        return Err(config.wrong_datatype(&unknown.name, "<invalid>"));
    }
    let mut raw = raw_input_contents.into_iter();
    let has_raw = raw.len() > 0;
    inputs
        .into_iter()
        .map(|input| {
            let data = data(config, &input, &mut raw, has_raw)?;
            let datatype = Datatype::parse(&input.datatype)
                .ok_or_else(|| config.wrong_datatype(&input.name, "<invalid>"))?;
            Ok(Tensor { name: Cow::Owned(input.name), datatype, shape: input.shape, data })
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
    raw: &mut impl Iterator<Item = Bytes>,
    has_raw: bool,
) -> Result<Bytes> {
    let (name, model) = (&input.name, &config.name);
    match &input.contents {
        Some(typed) if has_raw && !contents::is_empty(typed) => Err(Error::new(format!(
            "contents field must not be specified when using raw_input_contents for '{name}' \
             for model '{model}'"
        ))),
        Some(typed) if !has_raw => {
            let datatype = Datatype::parse(&input.datatype)
                .ok_or_else(|| config.wrong_datatype(name, "<invalid>"))?;
            contents::decode(datatype, typed).map_err(|why| {
                Error::new(format!(
                    "unexpected explicit tensor data for input tensor '{name}' \
                     for model '{model}': {why}"
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
