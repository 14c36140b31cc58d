//! Built-in tensor models: Triton's own examples, for tests and load tests.
//!
//! Each is made for a configuration and refuses one that it cannot serve; without one it has its
//! own default.

mod accumulator;
mod add_sub;
mod identity;
mod mock_image;
mod repeat_int32;
mod square;

pub use accumulator::Accumulator;
pub use add_sub::AddSub;
pub use identity::Identity;
pub use mock_image::MockImageModel;
pub use repeat_int32::RepeatInt32;
pub use square::Square;

use engine::{Error, InferRequest, OutputStream, Result};
use futures_util::stream;
use tensor::{Element, ModelConfig, Tensor, TensorSpec};

/// Returns the input of a name, which validation has made sure of.
fn input<'a>(request: &'a InferRequest, name: &str) -> Result<&'a Tensor> {
    let missing = || Error::internal(format!("input '{name}' was not validated"));
    request.input(name).ok_or_else(missing)
}

/// Returns the numbers of an input, whose datatype validation has made sure of.
fn numbers<T: Element>(request: &InferRequest, name: &str) -> Result<Vec<T>> {
    let wrong = || Error::internal(format!("input '{name}' was not validated"));
    Ok(input(request, name)?.values().ok_or_else(wrong)?.collect())
}

/// Returns the declared input or output of a name.
///
/// Errors: what the model's configuration lacks.
fn declared<'a>(
    config: &ModelConfig,
    tensors: &'a [TensorSpec],
    name: &str,
) -> std::result::Result<&'a TensorSpec, crate::Error> {
    tensors.iter().find(|spec| spec.name == name).ok_or_else(|| {
        crate::Error::Model(format!("model `{}` has to declare a tensor `{name}`", config.name))
    })
}

/// Makes a stream of one output.
fn once(output: engine::InferOutput) -> OutputStream<InferRequest> {
    Box::pin(stream::once(std::future::ready(Ok(output))))
}
