//! `identity`: gives back what it gets, at once or after a delay.

use std::time::Duration;

use async_trait::async_trait;
use engine::{Context, Engine, InferOutput, InferRequest, OutputStream, Result};
use tensor::{Datatype, ModelConfig, Tensor, TensorSpec};

use super::{input, once};

/// Answers `INPUT0` as `OUTPUT0`; the payload is shared, not copied.
#[derive(Clone, Copy, Debug, Default)]
pub struct Identity {
    delay: Duration,
}

impl Identity {
    /// Makes an identity that answers after a delay.
    pub fn new(delay: Duration) -> Self {
        Self { delay }
    }

    /// Returns its configuration for a datatype and dimensions.
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
        if !self.delay.is_zero() {
            tokio::time::sleep(self.delay).await;
        }
        let input = input(&request, "INPUT0")?;
        let output =
            Tensor::new("OUTPUT0", input.datatype, input.shape.clone(), input.data.clone());
        Ok(once(InferOutput { tensors: vec![output], is_last: true, ..InferOutput::default() }))
    }
}
