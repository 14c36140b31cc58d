//! `add_sub`: Triton's example model "simple", for numbers of any datatype and for texts.

use async_trait::async_trait;
use engine::{Context, Engine, InferOutput, InferRequest, OutputStream, Result};
use half::{bf16, f16};
use tensor::{Datatype, Element, ModelConfig, Tensor, TensorSpec};

use super::{declared, input, numbers, once};
use crate::Error;

/// Adds and subtracts two tensors: `OUTPUT0` is the sum, `OUTPUT1` the difference. Integers wrap;
/// BYTES elements are decimal integers and so are their sums.
#[derive(Clone, Copy, Debug)]
pub struct AddSub {
    datatype: Datatype,
}

impl AddSub {
    /// Makes it for a configuration.
    ///
    /// Errors: missing tensors, different datatypes or dimensions, BOOL.
    pub fn new(config: &ModelConfig) -> std::result::Result<Self, Error> {
        let first = declared(config, &config.inputs, "INPUT0")?;
        let others = [
            declared(config, &config.inputs, "INPUT1")?,
            declared(config, &config.outputs, "OUTPUT0")?,
            declared(config, &config.outputs, "OUTPUT1")?,
        ];
        for other in others {
            if (other.datatype, &other.dims) != (first.datatype, &first.dims) {
                return Err(Error::Model(format!(
                    "add_sub `{}`: `{}` differs from `INPUT0` in datatype or dims",
                    config.name, other.name
                )));
            }
        }
        match first.datatype {
            Datatype::Bool => {
                Err(Error::Model(format!("add_sub `{}` cannot add BOOL", config.name)))
            }
            datatype => Ok(Self { datatype }),
        }
    }

    /// Returns its default configuration: 16 INT32, batches up to 8.
    pub fn config(name: &str) -> ModelConfig {
        let tensors = |names: [&'static str; 2]| {
            names.map(|name| TensorSpec::new(name, Datatype::Int32, [16]))
        };
        let inputs = tensors(["INPUT0", "INPUT1"]).to_vec();
        ModelConfig::new(name, 8, inputs, tensors(["OUTPUT0", "OUTPUT1"]).to_vec())
    }

    fn compute(self, request: &InferRequest) -> Result<[Tensor; 2]> {
        match self.datatype {
            Datatype::Uint8 => arithmetic::<u8>(request),
            Datatype::Uint16 => arithmetic::<u16>(request),
            Datatype::Uint32 => arithmetic::<u32>(request),
            Datatype::Uint64 => arithmetic::<u64>(request),
            Datatype::Int8 => arithmetic::<i8>(request),
            Datatype::Int16 => arithmetic::<i16>(request),
            Datatype::Int32 => arithmetic::<i32>(request),
            Datatype::Int64 => arithmetic::<i64>(request),
            Datatype::Fp16 => arithmetic::<f16>(request),
            Datatype::Bf16 => arithmetic::<bf16>(request),
            Datatype::Fp32 => arithmetic::<f32>(request),
            Datatype::Fp64 => arithmetic::<f64>(request),
            Datatype::Bytes | Datatype::Bool => texts(request),
        }
    }
}

fn arithmetic<T: Number>(request: &InferRequest) -> Result<[Tensor; 2]> {
    let (left, right) = same_size::<T>(numbers(request, "INPUT0")?, numbers(request, "INPUT1")?)?;
    let shape = &input(request, "INPUT0")?.shape;
    let pairs = || left.iter().zip(&right);
    Ok([
        Tensor::from_values("OUTPUT0", shape.clone(), pairs().map(|(a, b)| a.add(*b))),
        Tensor::from_values("OUTPUT1", shape.clone(), pairs().map(|(a, b)| a.sub(*b))),
    ])
}

fn texts(request: &InferRequest) -> Result<[Tensor; 2]> {
    let (left, right) = same_size(integers(request, "INPUT0")?, integers(request, "INPUT1")?)?;
    let shape = &input(request, "INPUT0")?.shape;
    let pairs = || left.iter().zip(&right);
    let sums = pairs().map(|(a, b)| a.wrapping_add(*b).to_string());
    let differences = pairs().map(|(a, b)| a.wrapping_sub(*b).to_string());
    Ok([
        Tensor::from_elements("OUTPUT0", shape.clone(), sums),
        Tensor::from_elements("OUTPUT1", shape.clone(), differences),
    ])
}

/// Variable dimensions may differ between the inputs, and then there are no pairs.
fn same_size<T>(left: Vec<T>, right: Vec<T>) -> Result<(Vec<T>, Vec<T>)> {
    match left.len() == right.len() {
        true => Ok((left, right)),
        false => Err(engine::Error::invalid(format!(
            "inputs 'INPUT0' and 'INPUT1': expected the same number of elements, got {} and {}",
            left.len(),
            right.len()
        ))),
    }
}

fn integers(request: &InferRequest, name: &str) -> Result<Vec<i64>> {
    let elements = input(request, name)?.elements().into_iter().flatten().flatten();
    let parse = |element: bytes::Bytes| {
        let text = String::from_utf8_lossy(&element);
        text.trim().parse().map_err(|_| {
            let shown: String = text.chars().take(40).collect();
            engine::Error::invalid(format!("input '{name}': `{shown}` is not an integer"))
        })
    };
    elements.map(parse).collect()
}

#[async_trait]
impl Engine<InferRequest> for AddSub {
    async fn call(
        &self,
        request: InferRequest,
        _context: Context,
    ) -> Result<OutputStream<InferRequest>> {
        let both = self.compute(&request)?;
        let tensors = both.into_iter().filter(|tensor| request.wants(&tensor.name)).collect();
        Ok(once(InferOutput { tensors, is_last: true, ..InferOutput::default() }))
    }
}

/// What can be added and subtracted; integers wrap.
trait Number: Element {
    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
}

macro_rules! integer {
    ($($type:ty),*) => {$(
        impl Number for $type {
            fn add(self, other: Self) -> Self {
                self.wrapping_add(other)
            }

            fn sub(self, other: Self) -> Self {
                self.wrapping_sub(other)
            }
        }
    )*};
}

macro_rules! float {
    ($($type:ty),*) => {$(
        impl Number for $type {
            fn add(self, other: Self) -> Self {
                self + other
            }

            fn sub(self, other: Self) -> Self {
                self - other
            }
        }
    )*};
}

integer!(u8, u16, u32, u64, i8, i16, i32, i64);
float!(f16, bf16, f32, f64);
