//! `repeat_int32`: Triton's decoupled example, which answers once for each element.

use std::time::Duration;

use async_trait::async_trait;
use engine::{Context, Engine, Error, InferOutput, InferRequest, OutputStream, Result};
use futures_util::stream;
use tensor::{Datatype, ModelConfig, Tensor, TensorSpec};
use tokio::time::Instant;

use super::{declared, numbers};

/// Answers each element of `IN` as `OUT` with its index as `IDX`, after the element of `DELAY`
/// in milliseconds; the request is over no sooner than `WAIT` milliseconds after its start.
#[derive(Clone, Copy, Debug, Default)]
pub struct RepeatInt32;

impl RepeatInt32 {
    /// Makes it for a configuration.
    ///
    /// Errors: tensors other than those of the default configuration.
    pub fn new(config: &ModelConfig) -> std::result::Result<Self, crate::Error> {
        let own = Self::config(&config.name);
        let differs = |own: &[TensorSpec], given: &[TensorSpec]| {
            let is_same = |spec: &TensorSpec| {
                declared(config, given, &spec.name).is_ok_and(|g| g.datatype == spec.datatype)
            };
            !own.iter().all(is_same) || own.len() != given.len()
        };
        if !config.decoupled
            || differs(&own.inputs, &config.inputs)
            || differs(&own.outputs, &config.outputs)
        {
            return Err(crate::Error::Model(format!(
                "repeat `{}`: expected IN of INT32, DELAY and WAIT of UINT32, OUT of INT32 and \
                 IDX of UINT32, decoupled",
                config.name
            )));
        }
        Ok(Self)
    }

    /// Returns its default configuration.
    pub fn config(name: &str) -> ModelConfig {
        let inputs = vec![
            TensorSpec::new("IN", Datatype::Int32, [-1]),
            TensorSpec::new("DELAY", Datatype::Uint32, [-1]),
            TensorSpec::new("WAIT", Datatype::Uint32, [1]),
        ];
        let outputs = vec![
            TensorSpec::new("OUT", Datatype::Int32, [1]),
            TensorSpec::new("IDX", Datatype::Uint32, [1]),
        ];
        ModelConfig { decoupled: true, ..ModelConfig::new(name, 0, inputs, outputs) }
    }
}

#[async_trait]
impl Engine<InferRequest> for RepeatInt32 {
    async fn call(
        &self,
        request: InferRequest,
        _context: Context,
    ) -> Result<OutputStream<InferRequest>> {
        let values: Vec<i32> = numbers(&request, "IN")?;
        let delays: Vec<u32> = numbers(&request, "DELAY")?;
        let wait: u32 = numbers(&request, "WAIT")?.first().copied().unwrap_or(0);
        if values.len() != delays.len() {
            return Err(Error::invalid(format!(
                "inputs 'IN' and 'DELAY': expected the same number of elements, got {} and {}",
                values.len(),
                delays.len()
            )));
        }
        let end = Instant::now() + Duration::from_millis(wait.into());
        let steps = values.into_iter().zip(delays).zip(0u32..);
        Ok(Box::pin(stream::unfold((steps, request), move |(mut steps, request)| async move {
            let Some(((value, delay), index)) = steps.next() else {
                tokio::time::sleep_until(end).await;
                return None;
            };
            if delay > 0 {
                tokio::time::sleep(Duration::from_millis(delay.into())).await;
            }
            let out = Tensor::from_values("OUT", vec![1], [value]);
            let idx = Tensor::from_values("IDX", vec![1], [index]);
            let tensors = [out, idx].into_iter().filter(|t| request.wants(&t.name)).collect();
            let output = InferOutput { tensors, ..InferOutput::default() };
            Some((Ok(output), (steps, request)))
        })))
    }
}
