//! Tensor inference: named tensors in, named tensors out.

use std::time::Duration;

use tensor::{Parameters, Tensor};

use crate::{Request, Sequence};

/// A request over tensors, checked against the model's configuration before any engine sees it.
#[derive(Clone, Debug, Default)]
pub struct InferRequest {
    /// The inputs, in the client's order.
    pub inputs: Vec<Tensor>,
    /// The outputs wanted; empty means all.
    pub outputs: Vec<RequestedOutput>,
    /// The request's parameters, without those that the protocol reserves.
    pub parameters: Parameters,
    /// The request's place in a sequence, if the client gave one.
    pub sequence: Option<Sequence>,
    /// The caller takes exactly one response, so a request that asks for a stream is refused.
    pub is_unary: bool,
}

impl InferRequest {
    /// Returns the input of this name.
    pub fn input(&self, name: &str) -> Option<&Tensor> {
        self.inputs.iter().find(|input| input.name == name)
    }

    /// Returns whether the client wants the output of this name.
    pub fn wants(&self, output: &str) -> bool {
        self.outputs.is_empty() || self.outputs.iter().any(|wanted| wanted.name == output)
    }
}

/// An output that the client asked for by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RequestedOutput {
    /// The output's name in the model's configuration.
    pub name: String,
    /// What the client said about it.
    pub parameters: Parameters,
}

impl Request for InferRequest {
    type Output = InferOutput;
}

/// One response: a model that is not decoupled gives exactly one, a decoupled one any number.
#[derive(Clone, Debug, Default)]
pub struct InferOutput {
    /// The outputs, in the model's order.
    pub tensors: Vec<Tensor>,
    /// Parameters for the response.
    pub parameters: Parameters,
    /// The engine knows that nothing follows. A decoupled engine may leave it unset and just
    /// end the stream.
    pub is_last: bool,
    /// How long the request waited for a place in the engine's batch; told in the last output.
    pub queue_time: Duration,
}
