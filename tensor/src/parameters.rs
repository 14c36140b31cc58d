//! Named scalar parameters of a request, an input, an output or a response.

use std::collections::BTreeMap;

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
