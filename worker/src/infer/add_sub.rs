//! `add_sub`: Triton's example model "simple".

use async_trait::async_trait;
use engine::{Context, Engine, InferOutput, InferRequest, OutputStream, Result};
use tensor::{Datatype, ModelConfig, Tensor, TensorSpec};

use super::{input, numbers, once};

/// Adds and subtracts two INT32 tensors, wrapping: `OUTPUT0` is the sum, `OUTPUT1` the
/// difference.
#[derive(Clone, Copy, Debug, Default)]
pub struct AddSub;

impl AddSub {
    /// Returns its configuration: 16 elements, batches up to 8.
    pub fn config(name: &str) -> ModelConfig {
        let tensors = |names: [&'static str; 2]| {
            names.map(|name| TensorSpec::new(name, Datatype::Int32, [16]))
        };
        let inputs = tensors(["INPUT0", "INPUT1"]).to_vec();
        ModelConfig::new(name, 8, inputs, tensors(["OUTPUT0", "OUTPUT1"]).to_vec())
    }
}

#[async_trait]
impl Engine<InferRequest> for AddSub {
    async fn call(
        &self,
        request: InferRequest,
        _context: Context,
    ) -> Result<OutputStream<InferRequest>> {
        let shape = &input(&request, "INPUT0")?.shape;
        let left: Vec<i32> = numbers(&request, "INPUT0")?;
        let right: Vec<i32> = numbers(&request, "INPUT1")?;
        let pairs = || left.iter().zip(&right);
        let mut tensors = Vec::with_capacity(2);
        if request.wants("OUTPUT0") {
            let sums = pairs().map(|(a, b)| a.wrapping_add(*b));
            tensors.push(Tensor::from_values("OUTPUT0", shape.clone(), sums));
        }
        if request.wants("OUTPUT1") {
            let differences = pairs().map(|(a, b)| a.wrapping_sub(*b));
            tensors.push(Tensor::from_values("OUTPUT1", shape.clone(), differences));
        }
        Ok(once(InferOutput { tensors, is_last: true, ..InferOutput::default() }))
    }
}
