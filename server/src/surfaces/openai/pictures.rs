//! Images and videos: a prompt becomes the tensors of a model of that kind, and its pictures JSON.
//!
//! A model is of the kind if it has an input `prompt` of BYTES and an output `image`, or `video`,
//! of BYTES that holds whole files; `width`, `height`, `seed` and `frames` are told to those that
//! have such inputs. The answer may come in parts: each response of the model is one.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::Body as HttpBody;
use axum::extract::{Request, State};
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use engine::{Context, Error, InferOutput, InferRequest, OutputStream, Result};
use futures_util::{StreamExt, stream};
use http::{HeaderValue, header};
use openai_bridge::api::Body;
use serde_json::{Value as Json, json};
use tensor::{Datatype, Tensor};

use super::answer::{body as error_body, failure, fine};
use super::call::{body, id, named};
use super::{OpenAi, seconds};
use crate::models::registry::Model;
use crate::serving::inference::{Observation, heavy, parent};
use crate::support::preparing;
use crate::support::status::Dialect;
use crate::surfaces::http::receive::receive;

/// Fields of the APIs that cannot be honoured; a video is streamed by a route of its own.
const REFUSED: [&str; 7] = [
    "stream",
    "quality",
    "style",
    "background",
    "output_format",
    "output_compression",
    "partial_images",
];

/// How often a file is there while an answer is made of it: as it is, in base64, in the JSON value
/// and in its text.
const COPIES: usize = 5;

/// Most pictures of one call, as in the OpenAI API.
const MAX_PICTURES: u64 = 10;

/// A kind of picture.
#[derive(Clone, Copy)]
struct Kind {
    rpc: &'static str,
    output: &'static str,
}

const IMAGE: Kind = Kind { rpc: "OpenAiImages", output: "image" };
const VIDEO: Kind = Kind { rpc: "OpenAiVideos", output: "video" };

/// A call that is under way.
struct Running {
    streams: Vec<OutputStream<InferRequest>>,
    output: &'static str,
    observation: Observation,
}

/// `POST /v1/images/generations`
pub(super) async fn images(State(door): State<OpenAi>, request: Request) -> Response {
    whole(&door, IMAGE, request).await
}

/// `POST /v1/videos/generations`
pub(super) async fn videos(State(door): State<OpenAi>, request: Request) -> Response {
    whole(&door, VIDEO, request).await
}

/// `POST /v1/videos/generations/stream`: an event for each part of the video.
pub(super) async fn stream_videos(State(door): State<OpenAi>, request: Request) -> Response {
    match start(&door, VIDEO, request).await {
        Ok(running) => events(running),
        Err(error) => failure(&door, Dialect::OpenAi, &error),
    }
}

async fn whole(door: &OpenAi, kind: Kind, request: Request) -> Response {
    let work = async {
        let mut running = start(door, kind, request).await?;
        let answered = running.collect().await.map(|files| {
            let bytes: usize = files.iter().map(Vec::len).sum();
            heavy(COPIES * bytes, || answer(&files))
        });
        running.observation.end(answered.as_ref().map(|_| ()));
        answered
    };
    match work.await {
        Ok(response) => response,
        Err(error) => failure(door, Dialect::OpenAi, &error),
    }
}

fn answer(files: &[Vec<u8>]) -> Response {
    let data: Vec<Json> =
        files.iter().map(|file| json!({ "b64_json": STANDARD.encode(file) })).collect();
    fine(&json!({ "created": seconds(), "data": data }))
}

async fn start(door: &OpenAi, kind: Kind, request: Request) -> Result<Running> {
    let id = id(&request);
    let received = receive(request, &door.intake).await?;
    let mut observation = Observation::begin(&door.shared, kind.rpc, received.is_lone);
    let (parent, meter) = (parent(&received.headers), received.grant.meter());
    let (size, its_door) = (received.body.len(), door.clone());
    let work = move || {
        let body = body(&received)?;
        let model = named(&its_door, &received.grant, &body)?;
        let orders = orders(&model, kind, &body)?;
        Ok((model, orders, received.take_tree()))
    };
    let (model, orders, held) = match preparing::run(size, work).await {
        Ok(prepared) => prepared,
        Err(error) => {
            observation.refused(None, &error);
            return Err(error);
        }
    };
    observation.holds(held);
    let context = Context::new(id).with_trace_parent(parent).with_meter(meter);
    observation.begin_work(model.clone(), orders.len() as u64, &context);
    let mut streams = Vec::with_capacity(orders.len());
    for order in orders {
        match model.engine.call(order, context.clone()).await {
            Ok(stream) => streams.push(stream),
            Err(error) => {
                observation.end(Err(&error));
                return Err(error);
            }
        }
    }
    Ok(Running { streams, output: kind.output, observation })
}

impl Running {
    /// Returns the files of all responses, in order.
    async fn collect(&mut self) -> Result<Vec<Vec<u8>>> {
        let mut all = Vec::new();
        for stream in &mut self.streams {
            while let Some(output) = stream.next().await {
                let files = files(&output?, self.output)?;
                let bytes: usize = files.iter().map(Vec::len).sum();
                self.observation.collects(COPIES * bytes)?;
                all.extend(files);
            }
        }
        Ok(all)
    }
}

fn files(output: &InferOutput, name: &str) -> Result<Vec<Vec<u8>>> {
    let missing = || Error::internal(format!("the model gave no output `{name}`"));
    let tensor = output.tensors.iter().find(|tensor| tensor.name == name).ok_or_else(missing)?;
    let elements = tensor.elements().ok_or_else(missing)?;
    elements.map(|file| file.map(Into::into).map_err(|_| missing())).collect()
}

/// Makes one request for each picture.
///
/// Errors: a model of another kind, a field that is wrong or cannot be honoured, by name.
fn orders(model: &Arc<Model>, kind: Kind, body: &Body) -> Result<Vec<InferRequest>> {
    let config = &model.config;
    let is_text = |spec: &&tensor::TensorSpec| spec.datatype == Datatype::Bytes;
    let has = |specs: &[tensor::TensorSpec], name: &str| {
        specs.iter().filter(is_text).any(|spec| spec.name == name)
    };
    if !has(&config.inputs, "prompt") || !has(&config.outputs, kind.output) {
        let text = format!(
            "`model`: `{}` makes no {}: it needs an input `prompt` and an output `{}`, of BYTES",
            model.name, kind.output, kind.output
        );
        return Err(Error::invalid(text).with_param("model"));
    }
    let wrong =
        |field: &str, why: &str| Error::invalid(format!("`{field}`: {why}")).with_param(field);
    let is_set =
        |field: &&&str| !matches!(body.get(**field), None | Some(Json::Null | Json::Bool(false)));
    if let Some(field) = REFUSED.iter().find(is_set) {
        return Err(wrong(field, "is not supported"));
    }
    let prompt = match body.get("prompt") {
        Some(Json::String(prompt)) => prompt,
        _ => return Err(wrong("prompt", "expected a text")),
    };
    match body.get("response_format") {
        None | Some(Json::Null) => {}
        Some(Json::String(format)) if format == "b64_json" => {}
        Some(_) => return Err(wrong("response_format", "only `b64_json` is served")),
    }
    let number = |field: &str, least: u64, most: u64| match body.get(field) {
        None | Some(Json::Null) => Ok(None),
        Some(value) => {
            let number = value.as_u64().filter(|number| (least..=most).contains(number));
            let why = format!("expected a whole number from {least} to {most}");
            number.map(Some).ok_or_else(|| wrong(field, &why))
        }
    };
    let size = size(body).ok_or_else(|| wrong("size", "expected WIDTHxHEIGHT, such as 512x512"))?;
    let mut told = vec![("width", size.map(|(width, _)| width)), ("height", size.map(|s| s.1))];
    told.push(("frames", number("frames", 1, i32::MAX as u64)?.map(|count| count as i32)));
    let mut inputs = vec![Tensor::from_elements("prompt", vec![1], [prompt])];
    for (name, value) in told {
        let Some(value) = value else { continue };
        if !config.inputs.iter().any(|spec| spec.name == name && spec.datatype == Datatype::Int32) {
            let field = if name == "frames" { name } else { "size" };
            return Err(wrong(field, "the model cannot be told"));
        }
        inputs.push(Tensor::from_values(name, vec![1], [value]));
    }
    let seed = number("seed", 0, u64::MAX)?;
    let count = number("n", 1, MAX_PICTURES)?.unwrap_or(1);
    let is_seed =
        |spec: &tensor::TensorSpec| spec.name == "seed" && spec.datatype == Datatype::Uint64;
    let has_seed = config.inputs.iter().any(is_seed);
    if seed.is_some() && !has_seed {
        return Err(wrong("seed", "the model cannot be told"));
    }
    let order = |index: u64| {
        let mut inputs = inputs.clone();
        if has_seed && (seed.is_some() || count > 1) {
            let seed = seed.unwrap_or_else(|| fastrand::u64(..)).wrapping_add(index);
            inputs.push(Tensor::from_values("seed", vec![1], [seed]));
        }
        InferRequest { inputs, ..InferRequest::default() }
    };
    let orders: Vec<InferRequest> = (0..count).map(order).collect();
    orders.iter().try_for_each(|order| config.validate(&order.inputs, []))?;
    Ok(orders)
}

/// Reads the size; none inside if the model may choose.
fn size(body: &Body) -> Option<Option<(i32, i32)>> {
    match body.get("size") {
        None | Some(Json::Null) => Some(None),
        Some(Json::String(text)) if text == "auto" => Some(None),
        Some(Json::String(text)) => {
            let (width, height) = text.split_once('x')?;
            let side = |text: &str| text.parse::<i32>().ok().filter(|side| *side > 0);
            Some(Some((side(width)?, side(height)?)))
        }
        Some(_) => None,
    }
}

/// Writes an event for each file; `index` is that of the first one.
fn events_of(files: &[Vec<u8>], index: usize) -> String {
    let event = |(file, index): (&Vec<u8>, usize)| {
        let value = json!({"index": index, "b64_json": STANDARD.encode(file)});
        format!("data: {value}\n\n")
    };
    files.iter().zip(index..).map(event).collect()
}

/// Answers with an event for each part, and one for the end.
fn events(running: Running) -> Response {
    let frames = stream::unfold(Some((running, 0usize)), |state| async move {
        let (mut running, index) = state?;
        let event = |value: &Json| Bytes::from(format!("data: {value}\n\n"));
        let failed = |mut running: Running, error: &Error| {
            running.observation.end(Err(error));
            (event(&error_body(Dialect::OpenAi, error)), None)
        };
        loop {
            let Some(stream) = running.streams.first_mut() else {
                running.observation.end(Ok(()));
                return Some((Bytes::from_static(b"data: [DONE]\n\n"), None));
            };
            let output = match stream.next().await {
                None => {
                    drop(running.streams.remove(0));
                    continue;
                }
                Some(Ok(output)) => output,
                Some(Err(error)) => return Some(failed(running, &error)),
            };
            let parts = match files(&output, running.output) {
                Ok(files) => files,
                Err(error) => return Some(failed(running, &error)),
            };
            let bytes: usize = parts.iter().map(Vec::len).sum();
            let held = running.observation.holds_beside(COPIES * bytes);
            let held = match held {
                Ok(held) => held,
                Err(error) => return Some(failed(running, &error)),
            };
            let text = heavy(COPIES * bytes, || events_of(&parts, index));
            let index = index + parts.len();
            return Some((
                held.follow(Bytes::from(text).into()).to_bytes(),
                Some((running, index)),
            ));
        }
    });
    let mut response = Response::new(HttpBody::from_stream(frames.map(Ok::<Bytes, Infallible>)));
    let kind = HeaderValue::from_static("text/event-stream; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}
