//! Requests with one response: start, wait, deliver, count. Doors differ only in the encoding.

use std::sync::Arc;
use std::time::Instant;

use engine::{Error, InferOutput, Result};
use futures_util::StreamExt;
use tensor::Tensor;
use tensor::wire::ResponseHead;

use super::{Asked, Call, Observation};
use crate::models::registry::Model;
use crate::serving::shared::Shared;

/// Runs a request to its one response and encodes it.
///
/// Errors: whatever check, engine, delivery or encoding says; all are counted.
pub(crate) async fn unary<T>(
    shared: &Shared,
    mut observation: Observation,
    asked: Result<Asked>,
    encode: impl FnOnce(&ResponseHead<'_>, &[Tensor]) -> Result<T>,
) -> Result<T> {
    let prepared = match asked.and_then(|asked| shared.admit().map(|()| asked)) {
        Ok(asked) => Call::prepare(shared, asked).map_err(|refusal| (refusal.model, refusal.error)),
        Err(error) => Err((None, error)),
    };
    match prepared {
        Ok(mut call) => {
            observation.accepted(&mut call);
            let result = run(call, &mut observation, encode).await;
            observation.end(result.as_ref().map(|_| ()));
            result
        }
        Err((model, error)) => {
            observation.refused(model, &error);
            Err(error)
        }
    }
}

async fn run<T>(
    mut call: Call,
    observation: &mut Observation,
    encode: impl FnOnce(&ResponseHead<'_>, &[Tensor]) -> Result<T>,
) -> Result<T> {
    let (id, outputs) = (call.id.clone(), std::mem::take(&mut call.outputs));
    let (model, request, context) = call.into_parts();
    let mut output = only(model.clone(), request, context).await?;
    let started = Instant::now();
    observation.queued(output.queue_time);
    observation.show(&output.tensors);
    outputs.deliver(&model, &mut output.tensors)?;
    let head = ResponseHead {
        model_name: &model.name,
        model_version: &model.version,
        id: &id,
        parameters: &output.parameters,
    };
    let encoded = encode(&head, &output.tensors);
    observation.encoded(started, output.tensors.is_empty());
    encoded
}

/// Returns the one response of a request. A decoupled model may give another number of them.
async fn only(
    model: Arc<Model>,
    request: engine::InferRequest,
    context: engine::Context,
) -> Result<InferOutput> {
    let (name, is_foldable) = (model.name.clone(), model.is_foldable());
    let mut stream = Call::start(model, request, context).await?;
    let wrong = || {
        Error::invalid(format!(
            "generate expects model to produce exactly 1 response, use generate stream for model \
             that generates various number of responses: model '{name}'"
        ))
    };
    let first = match stream.next().await {
        Some(first) => first?,
        None if is_foldable => {
            return Err(Error::internal(format!("model '{name}' ended without a response")));
        }
        None => return Err(wrong()),
    };
    if is_foldable || first.is_last {
        return Ok(first);
    }
    match stream.next().await {
        None => Ok(first),
        Some(Ok(_)) => Err(wrong()),
        Some(Err(error)) => Err(error),
    }
}
