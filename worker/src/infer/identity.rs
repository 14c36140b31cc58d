//! `identity`: gives back what it gets, at once or after a delay.

use std::time::Duration;

use async_trait::async_trait;
use engine::{Context, Engine, InferOutput, InferRequest, OutputStream, Result};
use futures_util::stream;
use tensor::{Datatype, ModelConfig, Tensor, TensorSpec};

use super::{input, once};
use crate::Error;

/// Answers each input as the output of the same place; payloads are shared, not copied.
#[derive(Clone, Debug)]
pub struct Identity {
    pairs: Vec<(String, String)>,
    delay: Duration,
    has_echo: bool,
}

impl Identity {
    /// Makes an identity for a configuration that answers after a delay and, with `has_echo`,
    /// gives the request's parameters back as the response's.
    ///
    /// Errors: inputs and outputs that do not pair up by place, datatype and dimensions.
    pub fn new(
        config: &ModelConfig,
        delay: Duration,
        has_echo: bool,
    ) -> std::result::Result<Self, Error> {
        let (inputs, outputs) = (&config.inputs, &config.outputs);
        if inputs.len() != outputs.len() || inputs.is_empty() {
            return Err(Error::Model(format!(
                "identity `{}`: expected as many outputs as inputs and at least one, \
                 got {} inputs and {} outputs",
                config.name,
                inputs.len(),
                outputs.len()
            )));
        }
        for (input, output) in inputs.iter().zip(outputs) {
            if (input.datatype, &input.dims) != (output.datatype, &output.dims) {
                return Err(Error::Model(format!(
                    "identity `{}`: output `{}` differs from input `{}` in datatype or dims",
                    config.name, output.name, input.name
                )));
            }
        }
        let pairs = inputs.iter().zip(outputs);
        let pairs = pairs.map(|(input, output)| (input.name.to_string(), output.name.to_string()));
        Ok(Self { pairs: pairs.collect(), delay, has_echo })
    }

    /// Returns the configuration of one input `INPUT0` and one output `OUTPUT0`.
    pub fn config(
        name: &str,
        datatype: Datatype,
        dims: Vec<i64>,
        max_batch_size: u32,
    ) -> ModelConfig {
        let inputs = vec![TensorSpec::new("INPUT0", datatype, dims.clone())];
        let outputs = vec![TensorSpec::new("OUTPUT0", datatype, dims)];
        ModelConfig::new(name, max_batch_size, inputs, outputs)
    }
}

#[async_trait]
impl Engine<InferRequest> for Identity {
    async fn call(
        &self,
        request: InferRequest,
        _context: Context,
    ) -> Result<OutputStream<InferRequest>> {
        let mut tensors = Vec::with_capacity(self.pairs.len());
        for (from, to) in &self.pairs {
            // An optional input that is not there has no output either.
            if !request.wants(to) || request.input(from).is_none() {
                continue;
            }
            let given = input(&request, from)?;
            let (shape, data) = (given.shape.clone(), given.data.clone());
            tensors.push(Tensor::new(to.clone(), given.datatype, shape, data));
        }
        let parameters = if self.has_echo { request.parameters } else { Default::default() };
        let output = InferOutput { tensors, parameters, is_last: true, ..InferOutput::default() };
        let delay = self.delay;
        if delay.is_zero() {
            return Ok(once(output));
        }
        // The request is begun from here on.
        Ok(Box::pin(stream::once(async move {
            tokio::time::sleep(delay).await;
            Ok(output)
        })))
    }
}
