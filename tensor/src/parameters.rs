//! Named scalar parameters of a request, an input, an output or a response.

use std::collections::{BTreeMap, HashMap};

use proto::inference::InferParameter;
use proto::inference::infer_parameter::ParameterChoice;

use crate::{Error, Result};

/// The value of a parameter: one of the five kinds of the Triton protocol.
#[derive(Clone, Debug, PartialEq)]
pub enum Parameter {
    /// `bool_param`
    Bool(bool),
    /// `int64_param`
    Int64(i64),
    /// `uint64_param`
    Uint64(u64),
    /// `double_param`
    Double(f64),
    /// `string_param`
    String(String),
}

/// Parameters by name.
pub type Parameters = BTreeMap<String, Parameter>;

/// Reads parameters from the wire.
///
/// Errors: a parameter without a value.
pub fn decode(wire: HashMap<String, InferParameter>) -> Result<Parameters> {
    wire.into_iter()
        .map(|(key, value)| match value.parameter_choice {
            Some(ParameterChoice::BoolParam(value)) => Ok((key, Parameter::Bool(value))),
            Some(ParameterChoice::Int64Param(value)) => Ok((key, Parameter::Int64(value))),
            Some(ParameterChoice::Uint64Param(value)) => Ok((key, Parameter::Uint64(value))),
            Some(ParameterChoice::DoubleParam(value)) => Ok((key, Parameter::Double(value))),
            Some(ParameterChoice::StringParam(value)) => Ok((key, Parameter::String(value))),
            None => Err(Error::new(format!(
                "invalid value type for '{key}' parameter, expected one of bool_param, \
                 int64_param, uint64_param, double_param and string_param, got none"
            ))),
        })
        .collect()
}

/// Writes a parameter for the wire.
pub fn encode(value: &Parameter) -> InferParameter {
    let choice = match value {
        Parameter::Bool(value) => ParameterChoice::BoolParam(*value),
        Parameter::Int64(value) => ParameterChoice::Int64Param(*value),
        Parameter::Uint64(value) => ParameterChoice::Uint64Param(*value),
        Parameter::Double(value) => ParameterChoice::DoubleParam(*value),
        Parameter::String(value) => ParameterChoice::StringParam(value.clone()),
    };
    InferParameter { parameter_choice: Some(choice) }
}
