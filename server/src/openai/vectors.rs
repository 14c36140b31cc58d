//! Embeddings and rerank.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use engine::{Context, Error, Result};
use openai_bridge::api::{Body, embeddings, rerank};
use serde_json::Value as Json;

use super::answer::{failure, fine};
use super::call::{about, body, id, text_model};
use super::{OpenAi, stamp};
use crate::inference::heavy;
use crate::inference::parent;
use crate::models::{Model, TextModel};
use crate::rest::receive::receive;
use crate::status::Dialect;

/// What a number of a vector takes while an answer is made of it: as it is, as a JSON value, and in
/// the text.
const NUMBER_BYTES: usize = 48;

/// `POST /v1/embeddings`
pub(super) async fn embeddings(State(door): State<OpenAi>, request: Request) -> Response {
    let mut held = door.shared.buffers.hold();
    let work = |text: TextModel, body: Body, context: Context| async move {
        let asked = embeddings::read(&body)?;
        let (vectors, tokens) =
            text.texts.embed(asked.inputs, context).await.map_err(|error| about("input", error))?;
        held.grow(NUMBER_BYTES * vectors.iter().map(Vec::len).sum::<usize>())?;
        let encode = asked.is_base64.then_some(base64 as fn(&[u8]) -> String);
        Ok(embeddings::answer(&stamp(model_name(&body)), &vectors, tokens, encode))
    };
    answer(door, "OpenAiEmbeddings", request, work).await
}

/// `POST /v1/rerank`
pub(super) async fn rerank(State(door): State<OpenAi>, request: Request) -> Response {
    let work = |text: TextModel, body: Body, context: Context| async move {
        let asked = rerank::read(&body)?;
        let (query, documents) = (asked.query.clone(), asked.documents.clone());
        let scored = text.texts.rerank(query, documents, asked.truncation, context).await;
        let (scores, tokens) = scored.map_err(|error| about("documents", error))?;
        Ok(rerank::answer(&stamp(model_name(&body)), &asked, &scores, tokens))
    };
    answer(door, "OpenAiRerank", request, work).await
}

fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

fn model_name(body: &Body) -> &str {
    body.get("model").and_then(Json::as_str).unwrap_or_default()
}

/// Answers a call whose answer comes at once.
async fn answer<F>(
    door: OpenAi,
    rpc: &'static str,
    request: Request,
    work: impl FnOnce(TextModel, Body, Context) -> F,
) -> Response
where
    F: Future<Output = Result<Json>>,
{
    let result = run(&door, rpc, request, work).await;
    result.unwrap_or_else(|error| failure(&door, Dialect::OpenAi, &error))
}

async fn run<F>(
    door: &OpenAi,
    rpc: &'static str,
    request: Request,
    work: impl FnOnce(TextModel, Body, Context) -> F,
) -> Result<Response>
where
    F: Future<Output = Result<Json>>,
{
    let id = id(&request);
    let received = receive(request, &door.intake).await?;
    let mut observation = door.shared.observe(rpc);
    let read = || -> Result<(Arc<Model>, TextModel, Body)> {
        let body = body(&received)?;
        let (model, text) = text_model(door, &received.grant, &body)?;
        Ok((model, text, body))
    };
    let (model, text, body) = match heavy(received.body.len(), read) {
        Ok(read) => read,
        Err(error) => {
            observation.refused(None, &error);
            return Err(error);
        }
    };
    let parent = parent(&received.headers);
    let meter = received.grant.meter();
    let context = Context::new(id).with_trace_parent(parent).with_meter(meter);
    observation.begin_work(model, 1, &context);
    let result: std::result::Result<Json, Error> = work(text, body, context).await;
    observation.end(result.as_ref().map(|_| ()));
    result.map(|value| fine(&value))
}
