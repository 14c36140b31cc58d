//! `generate` and `generate_stream`: any JSON object in, the outputs by name out.
//!
//! A key that is the name of an input becomes that tensor, any other a request parameter; keys in
//! a nested object `parameters` count like those beside it. Triton's extension and the Open
//! Inference Protocol's generate share these routes: the latter's keys are a text model's inputs.

use std::fmt;
use std::time::Instant;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use engine::{Error, InferOutput, InferRequest, OutputStream, Result};
use futures_util::{StreamExt, stream};
use http::{HeaderMap, HeaderValue, header};
use proto::Envelope;
use proto::inference::model_infer_request::InferInputTensor;
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use tensor::wire::ResponseHead;
use tensor::{Tensor, TensorSpec, parameters, shape};

use super::answer::{Answer, Failure, bytes, foreseen};
use super::infer::{check_reserved, parameter};
use super::outputs::{BinaryOutputs, answer_bytes};
use super::{ModelPath, Rest};
use crate::models::registry::Model;
use crate::serving::inference::{self, Asked, Call, Observation, heavy};
use crate::serving::shared::shutting_down;
use crate::support::{preparing, status};
use crate::surfaces::http::receive;
use crate::surfaces::orca;

/// `POST /v2/models/MODEL[/versions/VERSION]/generate`
pub(super) async fn generate(
    State(rest): State<Rest>,
    path: ModelPath,
    request: Request,
) -> Answer {
    let received = receive::receive(request, &rest.intake).await?;
    let observation = Observation::begin(&rest.shared, "HttpGenerate", received.is_lone);
    let place = preparing::place(received.body.len()).await;
    let asked = rest.shared.models.get(&path.model, &path.version).and_then(|model| {
        let read = || {
            let Keys(body) = receive::json(&received)?;
            envelope(&model, &path, body, false)
        };
        let envelope = heavy(received.body.len(), read)?;
        // A decoupled tensor model may give exactly one response; it is asked and counted.
        Ok(rest.asked(envelope, &received, model.text.is_some()))
    });
    drop(place);
    let (headers, is_lone) = (received.headers, received.is_lone);
    let encode = |head: &ResponseHead<'_>, tensors: &[Tensor]| {
        let most = answer_bytes(&BinaryOutputs::default(), head, tensors);
        let encode = || Ok(bytes(&headers, "application/json", object(head, tensors, most)?));
        foreseen((&rest.shared.buffers, is_lone), most, encode)
    };
    let mut response = inference::unary(&rest.shared, observation, asked, encode).await?;
    orca::add(&headers, &rest.shared.models, response.headers_mut());
    Ok(response)
}

/// `POST /v2/models/MODEL[/versions/VERSION]/generate_stream`: an SSE event for each response.
///
/// The status is that of the first response; later errors are events with the key `error`.
pub(super) async fn generate_stream(
    State(rest): State<Rest>,
    path: ModelPath,
    request: Request,
) -> Answer {
    let received = receive::receive(request, &rest.intake).await?;
    let mut observation = Observation::begin(&rest.shared, "HttpGenerateStream", received.is_lone);
    let place = preparing::place(received.body.len()).await;
    let prepared = rest
        .shared
        .admit()
        .and_then(|()| rest.shared.models.get(&path.model, &path.version))
        .and_then(|model| {
            let read = || {
                let Keys(body) = receive::json(&received)?;
                envelope(&model, &path, body, true)
            };
            let envelope = heavy(received.body.len(), read)?;
            Ok(rest.asked(envelope, &received, false))
        })
        .map_err(|error| (None, error))
        .and_then(|asked| {
            Call::prepare(&rest.shared, asked).map_err(|refusal| (refusal.model, refusal.error))
        });
    let mut call = match prepared {
        Ok(call) => call,
        Err((model, error)) => {
            observation.refused(model, &error);
            return Err(Failure(error));
        }
    };
    drop(place);
    observation.accepted(&mut call);
    let mut events = Events::start(call, observation).await?;
    let Some(first) = events.next().await else {
        return Ok(event_stream(Body::empty(), &received.headers, &rest));
    };
    let first = first?;
    let answering = rest.shared.answering.clone();
    let rest_of_it = stream::unfold((events, answering), |(mut events, answering)| async move {
        let item = tokio::select! {
            biased;
            () = answering.cancelled(), if events.stream.is_some() => {
                events.end(Err(&shutting_down()));
                Some(Err(shutting_down()))
            }
            item = events.next() => item,
        }?;
        Some((item.unwrap_or_else(|error| event(&failure(&error))), (events, answering)))
    });
    let all = stream::once(std::future::ready(first)).chain(rest_of_it);
    let body = Body::from_stream(all.map(Ok::<Bytes, std::convert::Infallible>));
    Ok(event_stream(body, &received.headers, &rest))
}

fn event_stream(body: Body, asked: &HeaderMap, rest: &Rest) -> Response {
    let kind = (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    let cache = (header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    let mut response = ([kind, cache], body).into_response();
    orca::add(asked, &rest.shared.models, response.headers_mut());
    response
}

fn event(json: &[u8]) -> Bytes {
    [b"data: ", json, b"\n\n"].concat().into()
}

fn failure(error: &Error) -> Vec<u8> {
    json!({ "error": status::cut(error.message()) }).to_string().into_bytes()
}

/// The responses of a request as events; dropping it cancels the request.
struct Events {
    model: std::sync::Arc<Model>,
    id: String,
    stream: Option<OutputStream<InferRequest>>,
    observation: Observation,
}

impl Events {
    async fn start(call: Call, mut observation: Observation) -> Result<Self> {
        let id = call.id.clone();
        let (model, request, context) = call.into_parts();
        match Call::start(model.clone(), request, context).await {
            Ok(stream) => Ok(Self { model, id, stream: Some(stream), observation }),
            Err(error) => {
                observation.end(Err(&error));
                Err(error)
            }
        }
    }

    /// Returns the next response that has outputs.
    async fn next(&mut self) -> Option<Result<Bytes>> {
        loop {
            let item = self.stream.as_mut()?.next().await;
            let result = match item {
                None => Ok(None),
                Some(Err(error)) => Err(error),
                Some(Ok(output)) => self.encode(&output).map(|event| Some((event, output))),
            };
            match result {
                Err(error) => {
                    self.end(Err(&error));
                    return Some(Err(error));
                }
                Ok(None) => {
                    self.end(Ok(()));
                    return None;
                }
                Ok(Some((event, output))) => {
                    if output.is_last || !self.model.config.decoupled {
                        self.end(Ok(()));
                    }
                    if !output.tensors.is_empty() {
                        return Some(Ok(event));
                    }
                }
            }
        }
    }

    fn encode(&mut self, output: &InferOutput) -> Result<Bytes> {
        let started = Instant::now();
        self.observation.queued(output.queue_time);
        self.observation.show(&output.tensors);
        let head = ResponseHead {
            model_name: &self.model.name,
            model_version: &self.model.version,
            id: &self.id,
            parameters: &output.parameters,
        };
        let most = answer_bytes(&BinaryOutputs::default(), &head, &output.tensors);
        // The JSON and the event are there at once.
        let mut held = self.observation.holds_beside(2 * most)?;
        let write = || object(&head, &output.tensors, most).map(|json| event(&json));
        let event = heavy(most, write);
        self.observation.encoded(started, output.tensors.is_empty());
        let event = event?;
        held.fit(event.len())?;
        Ok(held.follow(event.into()).to_bytes())
    }

    fn end(&mut self, result: std::result::Result<(), &Error>) {
        self.stream = None;
        self.observation.end(result);
    }
}

/// Writes a response, of at most `most` bytes: a single element stands alone, more of them in an
/// array.
fn object(head: &ResponseHead<'_>, tensors: &[Tensor], most: usize) -> Result<Vec<u8>> {
    let mut json = Vec::with_capacity(most);
    let key = |json: &mut Vec<u8>, key: &str| {
        json.push(if json.is_empty() { b'{' } else { b',' });
        json.extend_from_slice(Value::from(key).to_string().as_bytes());
        json.push(b':');
    };
    let texts =
        [("model_name", head.model_name), ("model_version", head.model_version), ("id", head.id)];
    for (name, text) in texts.into_iter().filter(|(_, text)| !text.is_empty()) {
        key(&mut json, name);
        json.extend_from_slice(Value::from(text).to_string().as_bytes());
    }
    for tensor in tensors {
        key(&mut json, &tensor.name);
        let is_one = shape::element_count(&tensor.shape) == Ok(1);
        if !is_one {
            json.push(b'[');
        }
        tensor::json::encode(tensor, &mut json)?;
        if !is_one {
            json.push(b']');
        }
    }
    json.push(b'}');
    Ok(json)
}

/// The members of a JSON object, none of which is there twice: which one counts would be a guess.
struct Keys(Map<String, Value>);

impl<'de> Deserialize<'de> for Keys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_map(KeysVisitor)
    }
}

struct KeysVisitor;

impl<'de> Visitor<'de> for KeysVisitor {
    type Value = Keys;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> std::result::Result<Keys, A::Error> {
        let mut keys = Map::new();
        while let Some(key) = members.next_key::<String>()? {
            if keys.contains_key(&key) {
                return Err(A::Error::custom(format!("duplicate field `{key}`")));
            }
            let value: &RawValue = members.next_value()?;
            let value = match key == "parameters" && value.get().starts_with('{') {
                true => serde_json::from_str(value.get()).map(|Keys(nested)| nested.into()),
                false => serde_json::from_str(value.get()),
            };
            keys.insert(key, value.map_err(A::Error::custom)?);
        }
        Ok(Keys(keys))
    }
}

/// Makes a request of a JSON object.
///
/// Errors: values that no input or parameter can have.
fn envelope(
    model: &Model,
    path: &ModelPath,
    mut body: Map<String, Value>,
    is_streamed: bool,
) -> Result<Envelope> {
    match body.remove("parameters") {
        None => {}
        Some(Value::Object(nested)) => nested.into_iter().for_each(|(key, value)| {
            body.entry(key).or_insert(value);
        }),
        Some(_) => return Err(Error::invalid("Expected JSON object for keyword: 'parameters'")),
    }
    if model.text.is_some() {
        // The Open Inference Protocol's wish for details is a text model's for the finish reason.
        if let Some(details) = body.remove("details")
            && details.as_bool() == Some(true)
        {
            body.entry("return_finish_reason").or_insert(Value::Bool(true));
        }
        if is_streamed && !body.contains_key("streaming") {
            body.entry("stream").or_insert(Value::Bool(true));
        }
    }
    check_reserved(&body)?;
    let mut envelope = Envelope::default();
    let message = &mut envelope.message;
    (message.model_name, message.model_version) = (path.model.clone(), path.version.clone());
    match body.remove("id") {
        None => {}
        Some(Value::String(id)) => message.id = id,
        Some(Value::Number(id)) => message.id = id.to_string(),
        Some(_) => return Err(Error::invalid("Unable to parse 'id': expected a string")),
    }
    for (key, value) in body {
        match model.config.inputs.iter().find(|spec| spec.name == key.as_str()) {
            None => {
                let value = parameter(&key, value)?;
                message.parameters.insert(key, parameters::encode(&value));
            }
            Some(spec) => {
                let (input, payload) = input(model, spec, &value)?;
                message.inputs.push(input);
                envelope.payloads.push(payload);
            }
        }
    }
    Ok(envelope)
}

fn input(
    model: &Model,
    spec: &TensorSpec,
    value: &Value,
) -> Result<(InferInputTensor, tensor::Payload)> {
    // Messages, tools and other structures may be written as they are: the input is their JSON
    // text.
    let holds_structure =
        value.is_object() || value.as_array().is_some_and(|all| all.iter().any(Value::is_object));
    let value = match holds_structure && model.text.is_some() {
        true => Value::String(value.to_string()),
        false => value.clone(),
    };
    let name = &spec.name;
    let (payload, count) = tensor::json::decode(spec.datatype, &value.to_string())
        .map_err(|why| Error::invalid(format!("Unable to parse '{name}': {why}")))?;
    let declared = model.config.full_dims(spec);
    let shape = shape::fit(&declared, count).ok_or_else(|| {
        Error::invalid(format!(
            "The schema can not convert input '{name}' to tensor with proper shape: {count} elements \
             do not fit the shape {} of model '{}'",
            shape::spell(&declared),
            model.name
        ))
    })?;
    let input = InferInputTensor {
        name: name.to_string(),
        datatype: spec.datatype.name().to_owned(),
        shape,
        ..Default::default()
    };
    Ok((input, payload))
}

impl Rest {
    /// Makes the request that a call asks for; an HTTP call has no deadline of its own.
    pub(super) fn asked(
        &self,
        envelope: Envelope,
        received: &receive::Received,
        is_unary: bool,
    ) -> Asked {
        let headers = &received.headers;
        Asked {
            envelope,
            held: received.take_tree(),
            grant: received.grant.clone(),
            deadline: None,
            forwarded: self.forwarding.parameters(headers),
            parent: inference::parent(headers),
            is_unary,
        }
    }
}
