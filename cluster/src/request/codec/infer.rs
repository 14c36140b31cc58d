//! Tensor inference as messages: data is neither copied out of requests nor into them.
//!
//! A sequence's state travels with its requests: what the frontend keeps comes along, and what
//! the model leaves comes back behind its answer.

use std::time::Duration;

use engine::{
    Adapter, Context, Error, InferOutput, InferRequest, RequestedOutput, Result, Sequence,
    SequenceId, SequenceState,
};
use prost::{DecodeError, Message};
use proto::{Nest, Payload, worker as wire};
use tensor::Tensor;
use wire::sequence::Id;

use super::tensors::{parameters_of, parameters_to, tensor_to, tensors_of};
use super::{
    Arrival, CONTENTS, Lane, MAX_FIELDS, Outbox, Wire, context_of, context_to, count,
    equal_lengths, nanoseconds,
};

/// Parameters: entries of a map, each with its value.
const PARAMETERS: Nest = Nest(&[(2, Nest::LEAF)]);
const TENSOR: Nest = Nest(&[(4, PARAMETERS)]);
const REQUESTED: Nest = Nest(&[(2, PARAMETERS)]);
const REQUEST: Nest =
    Nest(&[(3, TENSOR), (4, REQUESTED), (5, PARAMETERS), (6, Nest(&[(5, TENSOR)]))]);
const OUTPUT: Nest = Nest(&[(3, TENSOR), (4, Nest(&[(1, TENSOR)])), (5, PARAMETERS)]);

impl Wire for InferRequest {
    const PATH: &'static str = "/stator.worker.v1.Worker/Infer";
    const LANE: Lane = Lane::Bulk;
    type Kept = Option<SequenceState>;

    fn kept(&self) -> Option<SequenceState> {
        self.sequence.as_ref().map(|sequence| sequence.state.clone())
    }

    fn encode(self, model: &str, context: &Context, outbox: &mut Outbox) -> Result<()> {
        let output = |output: &RequestedOutput| wire::RequestedOutput {
            name: output.name.clone(),
            parameters: parameters_to(&output.parameters),
        };
        let state = self.kept().map(|state| state.lock().clone()).unwrap_or_default();
        let head = wire::InferRequest {
            context: context_to(context),
            model: model.to_owned(),
            inputs: self.inputs.iter().map(tensor_to).collect(),
            outputs: self.outputs.iter().map(output).collect(),
            parameters: parameters_to(&self.parameters),
            sequence: self.sequence.as_ref().map(|sequence| sequence_to(sequence, &state)),
            contents: Vec::new(),
            is_unary: self.is_unary,
        };
        outbox.message_with(&head, self.inputs.iter().chain(&state).map(|tensor| &tensor.data))
    }

    fn decode(payload: Payload) -> Result<Arrival<Self>> {
        let take = |message: &mut wire::InferRequest| std::mem::take(&mut message.contents);
        let (wire, contents) = apart(payload, REQUEST, take)?;
        let kept = wire.sequence.as_ref().map_or(0, |sequence| sequence.state.len());
        equal_lengths("contents", wire.inputs.len() + kept, contents.len())?;
        let mut contents = contents.into_iter();
        let output = |wire: wire::RequestedOutput| {
            let parameters = parameters_of(wire.parameters)?;
            Ok(RequestedOutput { name: wire.name, parameters })
        };
        let request = Self {
            inputs: tensors_of(wire.inputs, &mut contents)?,
            outputs: wire.outputs.into_iter().map(output).collect::<Result<_>>()?,
            parameters: parameters_of(wire.parameters)?,
            sequence: wire.sequence.map(|wire| sequence_of(wire, &mut contents)).transpose()?,
            is_unary: wire.is_unary,
        };
        let context = context_of(wire.context);
        Ok(Arrival { model: wire.model, context, adapter: None, request })
    }

    fn adapt(&mut self, _adapter: Adapter) {}

    fn encode_output(output: InferOutput, outbox: &mut Outbox) -> Result<()> {
        let head = wire::InferOutput {
            tensors: output.tensors.iter().map(tensor_to).collect(),
            state: None,
            parameters: parameters_to(&output.parameters),
            contents: Vec::new(),
            is_last: output.is_last,
            queue_time_ns: nanoseconds(output.queue_time),
        };
        outbox.message_with(&head, output.tensors.iter().map(|tensor| &tensor.data))
    }

    fn decode_output(
        payload: Payload,
        kept: &Option<SequenceState>,
    ) -> Result<Option<InferOutput>> {
        let take = |message: &mut wire::InferOutput| std::mem::take(&mut message.contents);
        let (wire, contents) = apart(payload, OUTPUT, take)?;
        let state = wire.state.as_ref().map_or(0, |state| state.tensors.len());
        equal_lengths("contents", wire.tensors.len() + state, contents.len())?;
        let mut contents = contents.into_iter();
        let tensors = tensors_of(wire.tensors, &mut contents)?;
        if let Some(state) = wire.state {
            let state = tensors_of(state.tensors, &mut contents)?;
            if let Some(kept) = kept {
                *kept.lock() = state;
            }
            return Ok(None);
        }
        Ok(Some(InferOutput {
            tensors,
            parameters: parameters_of(wire.parameters)?,
            is_last: wire.is_last,
            queue_time: Duration::from_nanos(wire.queue_time_ns),
        }))
    }

    fn encode_end(kept: &Option<SequenceState>, outbox: &mut Outbox) -> Result<()> {
        let Some(kept) = kept else {
            return Ok(());
        };
        let tensors = kept.lock().clone();
        let state = wire::SequenceState { tensors: tensors.iter().map(tensor_to).collect() };
        let head = wire::InferOutput { state: Some(state), ..wire::InferOutput::default() };
        outbox.message_with(&head, tensors.iter().map(|tensor| &tensor.data))
    }
}

fn apart<M: Message + Default>(
    payload: Payload,
    nest: Nest,
    take: impl FnOnce(&mut M) -> Vec<bytes::Bytes>,
) -> Result<(M, Vec<Payload>)> {
    count(&payload, nest, MAX_FIELDS)?;
    proto::decode_apart(payload, u64::from(CONTENTS), take, |_| Ok::<(), DecodeError>(()))
        .map_err(|error| super::undecodable(&error))
}

fn sequence_to(sequence: &Sequence, state: &[Tensor]) -> wire::Sequence {
    let id = match &sequence.id {
        SequenceId::Number(number) => Id::Number(*number),
        SequenceId::Text(text) => Id::Text(text.clone()),
    };
    wire::Sequence {
        id: Some(id),
        start: sequence.start,
        end: sequence.end,
        state: state.iter().map(tensor_to).collect(),
    }
}

fn sequence_of(
    wire: wire::Sequence,
    contents: &mut impl Iterator<Item = Payload>,
) -> Result<Sequence> {
    let id = match wire.id {
        Some(Id::Number(number)) if number > 0 => SequenceId::Number(number),
        Some(Id::Text(text)) if !text.is_empty() => SequenceId::Text(text),
        _ => return Err(Error::invalid("`sequence`: expected an id that is not 0 and not empty")),
    };
    let state = SequenceState::default();
    *state.lock() = tensors_of(wire.state, contents)?;
    Ok(Sequence { id, start: wire.start, end: wire.end, state })
}
