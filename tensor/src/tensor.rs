//! A named tensor: datatype, shape and shared bytes.

use std::borrow::Cow;

use bytes::Bytes;

use crate::Datatype;

/// A named tensor.
///
/// `data` is little-endian, row-major and unpadded; BYTES elements are a `u32` length and the
/// bytes. A tensor that came through [`ModelConfig::validate`](crate::ModelConfig::validate) has
/// as many elements as its shape says.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// The name of the input or output.
    pub name: Cow<'static, str>,
    /// The type of the elements.
    pub datatype: Datatype,
    /// The dimensions, outermost first.
    pub shape: Vec<i64>,
    /// The elements.
    pub data: Bytes,
}
