//! Values of settings as they come: of parameters, of JSON, of tensors.

use std::fmt;

use engine::{Error, Result};
use serde_json::Value as Json;
use tensor::{Datatype, Parameter, Tensor};

use crate::profile::Kind;

/// One value, before it is known to be right.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Bool(bool),
    Integer(i128),
    Real(f64),
    Text(String),
    Json(Json),
    Other(&'static str),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool(value) => value.fmt(f),
            Self::Integer(value) => value.fmt(f),
            Self::Real(value) => value.fmt(f),
            Self::Text(value) => {
                let cut: String = value.chars().take(40).collect();
                write!(f, "{cut:?}")
            }
            Self::Json(_) => f.write_str("a JSON value"),
            Self::Other(kind) => f.write_str(kind),
        }
    }
}

/// Returns a value that was checked, in the type of its kind.
pub(super) fn said(kind: Kind, value: &Value) -> Option<Json> {
    match kind {
        Kind::Flag => as_bool(value).map(Json::from),
        Kind::Integer { .. } | Kind::Tokens => {
            let number = as_integer(value)?;
            i64::try_from(number)
                .map(Json::from)
                .or_else(|_| u64::try_from(number).map(Json::from))
                .ok()
        }
        Kind::Real { .. } => {
            let number = as_real(value)?;
            // A tensor's 0.7 is the float next to it, and 0.7 again when it is spelled shortly.
            let short = (number as f32).to_string().parse().ok();
            let short = short.filter(|_| f64::from(number as f32) == number);
            Some(short.unwrap_or(number).into())
        }
        Kind::Texts | Kind::Word | Kind::Prompt | Kind::Json => match value {
            Value::Text(text) => Some(text.as_str().into()),
            _ => None,
        },
        Kind::Structure => match value {
            Value::Json(value) => Some(value.clone()),
            _ => None,
        },
    }
}

pub(super) fn as_bool(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(value) => Some(*value),
        Value::Text(text) => text.to_ascii_lowercase().parse().ok(),
        _ => None,
    }
}

/// Numbers may be given as text: Triton's vLLM backend reads them so.
pub(super) fn as_integer(value: &Value) -> Option<i128> {
    match value {
        Value::Integer(value) => Some(*value),
        Value::Real(value) if value.fract() == 0.0 && value.abs() < 1e18 => Some(*value as i128),
        Value::Text(text) => text.trim().parse().ok(),
        _ => None,
    }
}

pub(super) fn as_real(value: &Value) -> Option<f64> {
    let real = match value {
        Value::Integer(value) => *value as f64,
        Value::Real(value) => *value,
        Value::Text(text) => text.trim().parse().ok()?,
        _ => return None,
    };
    real.is_finite().then_some(real)
}

pub(super) fn scalar(parameter: &Parameter) -> Value {
    match parameter {
        Parameter::Bool(value) => Value::Bool(*value),
        Parameter::Int64(value) => Value::Integer((*value).into()),
        Parameter::Uint64(value) => Value::Integer((*value).into()),
        Parameter::Double(value) => Value::Real(*value),
        Parameter::String(value) => Value::Text(value.clone()),
    }
}

pub(super) fn json_scalar(value: &Json) -> Value {
    match value {
        Json::Null => Value::Other("null"),
        Json::Bool(value) => Value::Bool(*value),
        Json::Number(number) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
            (Some(value), _, _) => Value::Integer(value.into()),
            (_, Some(value), _) => Value::Integer(value.into()),
            (_, _, Some(value)) => Value::Real(value),
            _ => Value::Other("a number out of range"),
        },
        Json::String(text) => Value::Text(text.clone()),
        Json::Array(_) => Value::Other("an array"),
        Json::Object(_) => Value::Other("an object"),
    }
}

pub(super) fn elements(input: &Tensor) -> Result<Vec<Value>> {
    let unexpected = || Error::internal(format!("input `{}` was not validated", input.name));
    match input.datatype {
        Datatype::Bytes => Ok(texts(input)?.into_iter().map(Value::Text).collect()),
        Datatype::Bool => Ok(input.values().ok_or_else(unexpected)?.map(Value::Bool).collect()),
        Datatype::Int32 => {
            let values = input.values::<i32>().ok_or_else(unexpected)?;
            Ok(values.map(|value| Value::Integer(value.into())).collect())
        }
        Datatype::Uint64 => {
            let values = input.values::<u64>().ok_or_else(unexpected)?;
            Ok(values.map(|value| Value::Integer(value.into())).collect())
        }
        Datatype::Fp32 => {
            let values = input.values::<f32>().ok_or_else(unexpected)?;
            Ok(values.map(|value| Value::Real(value.into())).collect())
        }
        _ => Err(unexpected()),
    }
}

/// Returns the texts of a BYTES input.
///
/// Errors: an element is not UTF-8.
pub(crate) fn texts(input: &Tensor) -> Result<Vec<String>> {
    let elements = input.elements().into_iter().flatten();
    elements
        .enumerate()
        .map(|(index, element)| {
            let element = element.map_err(|error| {
                Error::internal(format!("input `{}` was not validated: {error:?}", input.name))
            })?;
            String::from_utf8(element.into()).map_err(|_| {
                Error::invalid(format!("input `{}`: element {index} is not UTF-8", input.name))
            })
        })
        .collect()
}
