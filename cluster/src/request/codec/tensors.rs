//! Tensors and parameters as messages; data stands apart.

use std::collections::BTreeMap;

use engine::{Error, Result};
use proto::{Payload, worker as wire};
use tensor::{Datatype, Parameter, Parameters, Tensor};
use wire::parameter::Value;

/// Writes all of a tensor but its data.
pub(super) fn tensor_to(tensor: &Tensor) -> wire::Tensor {
    wire::Tensor {
        name: tensor.name.to_string(),
        datatype: tensor.datatype.name().to_owned(),
        shape: tensor.shape.clone(),
        parameters: parameters_to(&tensor.parameters),
    }
}

/// Reads tensors, each with the next of `contents`.
///
/// Errors: a datatype that there is not, a negative dimension, data of another length than shape
/// and datatype ask for.
pub(super) fn tensors_of(
    wire: Vec<wire::Tensor>,
    contents: &mut impl Iterator<Item = Payload>,
) -> Result<Vec<Tensor>> {
    wire.into_iter().map(|wire| tensor_of(wire, contents.next().unwrap_or_default())).collect()
}

fn tensor_of(wire: wire::Tensor, data: Payload) -> Result<Tensor> {
    let datatype = Datatype::parse(&wire.datatype).ok_or_else(|| {
        Error::invalid(format!("tensor `{}`: no datatype `{}`", wire.name, wire.datatype))
    })?;
    let count = tensor::shape::element_count(&wire.shape)?;
    let expected = datatype.size_bytes().map(|size| count.saturating_mul(size));
    if let Some(expected) = expected.filter(|expected| *expected != data.len()) {
        return Err(Error::invalid(format!(
            "tensor `{}`: expected {expected} bytes for {datatype} {}, got {}",
            wire.name,
            tensor::shape::spell(&wire.shape),
            data.len()
        )));
    }
    let mut tensor = Tensor::new(wire.name, datatype, wire.shape, data);
    tensor.parameters = parameters_of(wire.parameters)?;
    Ok(tensor)
}

/// Writes parameters.
pub(super) fn parameters_to(parameters: &Parameters) -> BTreeMap<String, wire::Parameter> {
    let value = |parameter: &Parameter| match parameter {
        Parameter::Bool(value) => Value::BoolValue(*value),
        Parameter::Int64(value) => Value::Int64Value(*value),
        Parameter::Uint64(value) => Value::Uint64Value(*value),
        Parameter::Double(value) => Value::DoubleValue(*value),
        Parameter::String(value) => Value::StringValue(value.clone()),
    };
    let entry = |(name, parameter): (&String, &Parameter)| {
        (name.clone(), wire::Parameter { value: Some(value(parameter)) })
    };
    parameters.iter().map(entry).collect()
}

/// Reads parameters. Errors: one without a value.
pub(super) fn parameters_of(wire: BTreeMap<String, wire::Parameter>) -> Result<Parameters> {
    let entry = |(name, parameter): (String, wire::Parameter)| {
        let value = match parameter.value {
            Some(Value::BoolValue(value)) => Parameter::Bool(value),
            Some(Value::Int64Value(value)) => Parameter::Int64(value),
            Some(Value::Uint64Value(value)) => Parameter::Uint64(value),
            Some(Value::DoubleValue(value)) => Parameter::Double(value),
            Some(Value::StringValue(value)) => Parameter::String(value),
            None => return Err(Error::invalid(format!("parameter `{name}` has no value"))),
        };
        Ok((name, value))
    };
    wire.into_iter().map(entry).collect()
}
