//! Calls for text: read a body, start the completion, answer as it grows or at its end.

use std::sync::Arc;

use axum::extract::Request;
use axum::response::Response;
use engine::{Context, Error, OutputStream, Result};
use futures_util::StreamExt;
use http::HeaderValue;
use openai_bridge::api::{Asked, Body, Fold, Form, Stamp};
use openai_bridge::{Completion, TextBridge};
use serde_json::Value as Json;

use super::answer::{failure, fine};
use super::store::Keep;
use super::{OpenAi, RequestId, responses, sse, stamp};
use crate::models::registry::{Model, TextModel};
use crate::security::Grant;
use crate::serving::inference::{Observation, heavy, parent};
use crate::support::preparing;
use crate::support::status::Dialect;
use crate::surfaces::http::receive::{Received, receive};
use crate::surfaces::http::survey::Survey;

/// The header that tells what of a request has no effect.
const WARNING: &str = "x-stator-warning";

/// Reads the body of a call.
type Read = fn(&TextBridge, Body, Stamp) -> Result<Asked>;

/// One API for texts.
#[derive(Clone, Copy)]
pub(super) struct Kind {
    /// Its name in metrics.
    pub rpc: &'static str,
    pub read: Read,
    /// Whose errors its clients read.
    pub dialect: Dialect,
    /// The field that holds the prompt.
    pub prompt: &'static str,
    /// Its answers can be kept, and gone on from.
    pub is_kept: bool,
}

/// A call whose body was read.
struct Prepared {
    model: Arc<Model>,
    text: TextModel,
    asked: Asked,
    context: Context,
}

/// Answers a call for text.
pub(super) async fn answer(door: OpenAi, kind: Kind, request: Request) -> Response {
    match run(&door, kind, request).await {
        Ok(response) => response,
        Err(error) => failure(&door, kind.dialect, &error),
    }
}

async fn run(door: &OpenAi, kind: Kind, request: Request) -> Result<Response> {
    let id = id(&request);
    let received = receive(request, &door.intake).await?;
    let mut observation = Observation::begin(&door.shared, kind.rpc, received.is_lone);
    let owner = received.grant.owner().to_owned();
    let (body_bytes, its_door) = (received.body.len(), door.clone());
    let work = move || {
        let prepared = prepare(&its_door, kind, &received, id);
        Ok((prepared, received.take_tree()))
    };
    let (prepared, held) = match preparing::run(body_bytes, work).await {
        Ok((prepared, held)) => (prepared, held),
        Err(error) => (Err((None, error)), None),
    };
    observation.holds(held);
    let prepared = match prepared {
        Ok(prepared) => prepared,
        Err((model, error)) => {
            observation.refused(model, &error);
            return Err(error);
        }
    };
    let Prepared { model, text, asked, context } = prepared;
    let batch = asked.completion.prompts() as u64;
    observation.begin_work(model, batch, &context);
    let Asked { completion, form, is_streaming, warning } = asked;
    let stream = match text.engine.call(completion, context).await {
        Ok(stream) => stream,
        Err(error) => {
            observation.end(Err(&error));
            return Err(about(kind.prompt, error));
        }
    };
    let keep = kind.is_kept.then(|| door.stored.keep(owner));
    let mut response = match is_streaming {
        true => sse::answer(door, kind.dialect, stream, form, observation, keep).await?,
        false => whole(stream, form, observation, keep).await?,
    };
    if let Some(warning) = warning.and_then(|text| HeaderValue::try_from(text).ok()) {
        response.headers_mut().insert(WARNING, warning);
    }
    Ok(response)
}

/// Names the field that an error is about: what names none is about the prompt.
pub(super) fn about(field: &'static str, error: Error) -> Error {
    match (error.kind(), error.param()) {
        (engine::ErrorKind::InvalidRequest, None) => error.with_param(field),
        _ => error,
    }
}

/// Returns the name of a request.
pub(super) fn id(request: &Request) -> String {
    request.extensions().get::<RequestId>().map_or_else(String::new, |id| id.0.clone())
}

/// Reads a call; an error comes with the model, if that is known.
fn prepare(
    door: &OpenAi,
    kind: Kind,
    received: &Received,
    id: String,
) -> std::result::Result<Prepared, (Option<Arc<Model>>, Error)> {
    let mut body = body(received).map_err(|error| (None, error))?;
    let grant = &received.grant;
    let (model, text) = text_model(door, grant, &body).map_err(|error| (None, error))?;
    text.texts.bridge.check_generates().map_err(|error| (Some(model.clone()), error))?;
    let priority = priority(&body).map_err(|error| (Some(model.clone()), error))?;
    if kind.is_kept {
        responses::resolve(door, grant, &mut body).map_err(|error| (Some(model.clone()), error))?;
    }
    let stamp = stamp(body.get("model").and_then(Json::as_str).unwrap_or_default());
    let asked = (kind.read)(&text.texts.bridge, body, stamp);
    let asked = asked.map_err(|error| (Some(model.clone()), error))?;
    let context = Context::new(id)
        .with_priority(priority)
        .with_trace_parent(parent(&received.headers))
        .with_meter(grant.meter());
    Ok(Prepared { model, text, asked, context })
}

/// Reads a body, which has to be a JSON object.
///
/// Errors: text that is not UTF-8, not JSON or no object.
pub(super) fn body(received: &Received) -> Result<Body> {
    let text = std::str::from_utf8(&received.body)
        .map_err(|error| Error::invalid(format!("the body is not UTF-8: {error}")))?;
    received.holds_tree(&Survey::of(&received.body))?;
    match serde_json::from_str(text) {
        Ok(Json::Object(body)) => Ok(body),
        Ok(_) => Err(Error::invalid("the body is JSON, but no object")),
        Err(error) => Err(Error::invalid(format!("the body is not JSON: {error}"))),
    }
}

/// Reads the body of what is received, which has to be a JSON object.
///
/// Errors: as [`body`].
pub(super) async fn read(received: Received) -> Result<(Received, Body)> {
    let size = received.body.len();
    let work = move || body(&received).map(|body| (received, body));
    preparing::run(size, work).await
}

/// Returns the text model that a body names.
///
/// Errors: no name, a model that is not there or not allowed, one that is not for texts.
pub(super) fn text_model(
    door: &OpenAi,
    grant: &Grant,
    body: &Body,
) -> Result<(Arc<Model>, TextModel)> {
    let model = named(door, grant, body)?;
    match &model.text {
        Some(text) => Ok((model.clone(), text.clone())),
        None => {
            let text = format!("`model`: `{}` is a tensor model and takes no text", model.name);
            Err(Error::invalid(text).with_param("model"))
        }
    }
}

/// Returns the model that a body names.
///
/// Errors: no name, a model that is not there or not allowed.
pub(super) fn named(door: &OpenAi, grant: &Grant, body: &Body) -> Result<Arc<Model>> {
    door.shared.admit()?;
    match body.get("model") {
        Some(Json::String(name)) => {
            grant.allows_model(name).map_err(|error| error.with_param("model"))?;
            door.model(name)
        }
        None | Some(Json::Null) => Err(Error::invalid("`model`: is missing").with_param("model")),
        Some(_) => Err(Error::invalid("`model`: expected a text").with_param("model")),
    }
}

impl OpenAi {
    /// Returns a model by name.
    ///
    /// Errors: it is not there, or not ready yet.
    pub(super) fn model(&self, name: &str) -> Result<Arc<Model>> {
        self.shared.models.get(name, "").map_err(|error| match error.kind() {
            engine::ErrorKind::NotFound if self.shared.models.is_expected(name) => {
                let text = format!("the last worker of model `{name}` has just left");
                Error::new(engine::ErrorKind::Unavailable, text).with_param("model")
            }
            engine::ErrorKind::NotFound => {
                let list = self.config.paths.get("models");
                let text =
                    format!("the model `{name}` does not exist; GET {list} lists those that do");
                Error::not_found(text).with_param("model").with_code("model_not_found")
            }
            _ => error,
        })
    }
}

/// Reads the priority: as in Triton, 0 is the model's default and lower is more urgent.
fn priority(body: &Body) -> Result<u64> {
    match body.get("priority") {
        None | Some(Json::Null) => Ok(0),
        Some(value) => value.as_u64().ok_or_else(|| {
            let text = format!("`priority`: expected a whole number from 0, got {value}");
            Error::invalid(text).with_param("priority")
        }),
    }
}

/// Answers at the end.
async fn whole(
    mut stream: OutputStream<Completion>,
    mut form: Box<dyn Form>,
    mut observation: Observation,
    keep: Option<Keep>,
) -> Result<Response> {
    let (mut fold, mut size) = (Fold::default(), 0);
    while let Some(output) = stream.next().await {
        match output {
            Ok(output) => {
                observation.told(&output);
                let more = output.answer_bytes();
                size += more;
                if let Err(error) = observation.collects(more) {
                    observation.end(Err(&error));
                    return Err(error);
                }
                form.collect(output, &mut fold);
            }
            Err(error) => {
                observation.end(Err(&error));
                return Err(error);
            }
        }
    }
    let response = heavy(size, || fine(&form.whole(fold)));
    if let Some((keep, record)) = keep.zip(form.record()) {
        keep(record);
    }
    observation.end(Ok(()));
    Ok(response)
}
