//! `square`: Triton's other decoupled example, which answers a number that many times.

use async_trait::async_trait;
use engine::{Context, Engine, InferOutput, InferRequest, OutputStream, Result};
use futures_util::stream;
use tensor::{Datatype, ModelConfig, Tensor, TensorSpec};

use super::{declared, numbers};
use crate::Error;

/// Answers the number `IN` with as many responses, each with `OUT` the number itself; none for
/// zero and below.
#[derive(Clone, Copy, Debug, Default)]
pub struct Square;

impl Square {
    /// Makes it for a configuration.
    ///
    /// Errors: tensors other than `IN` and `OUT` of one INT32.
    pub fn new(config: &ModelConfig) -> std::result::Result<Self, Error> {
        let (one_in, one_out) =
            (declared(config, &config.inputs, "IN")?, declared(config, &config.outputs, "OUT")?);
        let is_fit = |spec: &TensorSpec| spec.datatype == Datatype::Int32 && spec.dims == [1];
        match is_fit(one_in) && is_fit(one_out) && config.decoupled {
            true => Ok(Self),
            false => Err(Error::Model(format!(
                "square `{}`: expected `IN` and `OUT` of INT32 [1], decoupled",
                config.name
            ))),
        }
    }

    /// Returns its default configuration.
    pub fn config(name: &str) -> ModelConfig {
        let inputs = vec![TensorSpec::new("IN", Datatype::Int32, [1])];
        let outputs = vec![TensorSpec::new("OUT", Datatype::Int32, [1])];
        ModelConfig { decoupled: true, ..ModelConfig::new(name, 0, inputs, outputs) }
    }
}

#[async_trait]
impl Engine<InferRequest> for Square {
    async fn call(
        &self,
        request: InferRequest,
        _context: Context,
    ) -> Result<OutputStream<InferRequest>> {
        let number: i32 = numbers(&request, "IN")?.first().copied().unwrap_or(0);
        Ok(Box::pin(stream::iter((0..number).map(move |_| {
            let tensors = vec![Tensor::from_values("OUT", vec![1], [number])];
            Ok(InferOutput { tensors, ..InferOutput::default() })
        }))))
    }
}
