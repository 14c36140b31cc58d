//! JSON as the values that templates see.

use std::fmt;
use std::sync::Arc;

use minijinja::Value;
use minijinja::value::{Object, ObjectRepr};
use serde_json::Value as Json;

use super::python;

/// A float that Python writes with an exponent, which the library's own floats are not; it is
/// text and a number, but not for arithmetic.
#[derive(Debug)]
struct Float(f64);

impl Object for Float {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn render(self: &Arc<Self>, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&python::float(self.0))
    }
}

/// Makes the value of a JSON.
pub(super) fn value(json: &Json) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(flag) => Value::from(*flag),
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(items) => list(items),
        Json::Object(fields) => {
            Value::from_pairs(fields.iter().map(|(name, field)| (name.as_str(), value(field))))
        }
        Json::Number(number) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
            (Some(number), _, _) => Value::from(number),
            (_, Some(number), _) => Value::from(number),
            (_, _, Some(number)) if python::float(number).contains('e') => {
                Value::from_object(Float(number))
            }
            (_, _, number) => Value::from(number),
        },
    }
}

/// Makes the value of a list.
pub(super) fn list(items: &[Json]) -> Value {
    items.iter().map(value).collect()
}

/// Returns whether a value is a float, of the library's kind or of ours.
pub(super) fn is_float(value: &Value) -> bool {
    value.downcast_object_ref::<Float>().is_some() || value.is_number() && !value.is_integer()
}

/// Returns a float, of the library's kind or of ours.
pub(super) fn float(value: &Value) -> Option<f64> {
    match value.downcast_object_ref::<Float>() {
        Some(Float(number)) => Some(*number),
        None => f64::try_from(value.clone()).ok(),
    }
}
