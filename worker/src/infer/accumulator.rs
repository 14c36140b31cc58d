//! `sequence`: adds up the numbers of a sequence, as Triton's "simple_sequence" does.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use engine::{
    Context, Engine, InferOutput, InferRequest, OutputStream, Result, Sequence, SequenceId,
};
use futures_util::stream;
use tensor::{Datatype, ModelConfig, Tensor, TensorSpec};

use super::{declared, input, numbers};
use crate::Error;

/// Answers `OUTPUT`, the sum of the sequence's `INPUT` so far, this one included. Declared outputs
/// `START`, `END` (INT32) and `CORRID` (BYTES, or an integer for numbers) tell what the
/// sequence's flags and id were.
#[derive(Clone, Debug)]
pub struct Accumulator {
    outputs: Arc<[TensorSpec]>,
    delay: Duration,
}

impl Accumulator {
    /// Makes it for a configuration; each request takes `delay`.
    ///
    /// Errors: tensors other than those above.
    pub fn new(config: &ModelConfig, delay: Duration) -> std::result::Result<Self, Error> {
        let summed = [
            declared(config, &config.inputs, "INPUT")?,
            declared(config, &config.outputs, "OUTPUT")?,
        ];
        if summed.iter().any(|spec| spec.datatype != Datatype::Int32 || spec.dims != [1]) {
            return Err(Error::Model(format!(
                "sequence `{}`: expected `INPUT` and `OUTPUT` of INT32 [1]",
                config.name
            )));
        }
        for spec in &config.outputs {
            let is_known = match &*spec.name {
                "OUTPUT" => true,
                "START" | "END" => spec.datatype == Datatype::Int32,
                "CORRID" => matches!(
                    spec.datatype,
                    Datatype::Bytes
                        | Datatype::Uint64
                        | Datatype::Int64
                        | Datatype::Uint32
                        | Datatype::Int32
                ),
                _ => false,
            };
            if !is_known {
                return Err(Error::Model(format!(
                    "sequence `{}`: has no output `{}` of {}",
                    config.name, spec.name, spec.datatype
                )));
            }
        }
        Ok(Self { outputs: config.outputs.as_slice().into(), delay })
    }

    /// Returns its default configuration; a sequence needs batches of one.
    pub fn config(name: &str) -> ModelConfig {
        let tensor = |name: &'static str| vec![TensorSpec::new(name, Datatype::Int32, [1])];
        ModelConfig::new(name, 1, tensor("INPUT"), tensor("OUTPUT"))
    }

    fn output(&self, spec: &TensorSpec, shape: &[i64], sum: i32, sequence: &Sequence) -> Tensor {
        let (name, shape) = (spec.name.clone(), shape.to_vec());
        match (&*spec.name, spec.datatype, &sequence.id) {
            ("START", ..) => Tensor::from_values(name, shape, [i32::from(sequence.start)]),
            ("END", ..) => Tensor::from_values(name, shape, [i32::from(sequence.end)]),
            ("CORRID", Datatype::Uint64, id) => Tensor::from_values(name, shape, [number(id)]),
            ("CORRID", Datatype::Int64, id) => {
                Tensor::from_values(name, shape, [number(id) as i64])
            }
            ("CORRID", Datatype::Uint32, id) => {
                Tensor::from_values(name, shape, [number(id) as u32])
            }
            ("CORRID", Datatype::Int32, id) => {
                Tensor::from_values(name, shape, [number(id) as i32])
            }
            ("CORRID", ..) => Tensor::from_elements(name, shape, [sequence.id.to_string()]),
            _ => Tensor::from_values(name, shape, [sum]),
        }
    }
}

/// Returns an id as a number; a text has none.
fn number(id: &SequenceId) -> u64 {
    match id {
        SequenceId::Number(number) => *number,
        SequenceId::Text(_) => 0,
    }
}

#[async_trait]
impl Engine<InferRequest> for Accumulator {
    async fn call(
        &self,
        request: InferRequest,
        _context: Context,
    ) -> Result<OutputStream<InferRequest>> {
        let Some(sequence) = request.sequence.clone() else {
            return Err(engine::Error::internal("a request without a sequence came through"));
        };
        let value: i32 = numbers(&request, "INPUT")?.first().copied().unwrap_or(0);
        let shape = input(&request, "INPUT")?.shape.clone();
        // The request is begun from here on.
        let this = self.clone();
        Ok(Box::pin(stream::once(async move {
            if !this.delay.is_zero() {
                tokio::time::sleep(this.delay).await;
            }
            let sum = {
                let mut state = sequence.state.lock();
                let before = state.first().and_then(|sum| sum.values::<i32>()?.next()).unwrap_or(0);
                let sum = value.wrapping_add(if sequence.start { 0 } else { before });
                *state = vec![Tensor::from_values("OUTPUT", vec![1], [sum])];
                sum
            };
            let wanted = this.outputs.iter().filter(|spec| request.wants(&spec.name));
            let tensors = wanted.map(|spec| this.output(spec, &shape, sum, &sequence)).collect();
            Ok(InferOutput { tensors, is_last: true, ..InferOutput::default() })
        })))
    }
}
