//! Embeddings and rerank.

use axum::extract::{Request, State};
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use engine::{Context, Result};
use openai_bridge::api::{Body, Stamp, embeddings, rerank};
use serde_json::Value as Json;

use super::answer::{failure, fine};
use super::call::{about, body, id, text_model};
use super::{OpenAi, stamp};
use crate::models::registry::TextModel;
use crate::serving::inference::{Observation, heavy, parent};
use crate::support::preparing;
use crate::support::status::Dialect;
use crate::surfaces::http::receive::receive;

/// What a number of a vector takes while an answer is made of it: as it is, as a JSON value, and in
/// the text.
const NUMBER_BYTES: usize = 48;

/// What a byte of a document takes while an answer is made of it: as a JSON value, and in the text
/// that escapes it.
const DOCUMENT_BYTES: usize = 7;

/// What a result of a rerank takes besides.
const RESULT_BYTES: usize = 1024;

/// What an answer takes while it is made, and what makes its JSON.
type Making = (usize, Box<dyn FnOnce() -> Json + Send>);

/// An API of vectors: its name in metrics, and what reads its bodies.
type Api<A> = (&'static str, fn(&Body) -> Result<A>);

/// `POST /v1/embeddings`
pub(super) async fn embeddings(State(door): State<OpenAi>, request: Request) -> Response {
    let work = |text: TextModel, asked: embeddings::Asked, (stamp, context): (Stamp, Context)| async move {
        let (vectors, tokens) =
            text.texts.embed(asked.inputs, context).await.map_err(|error| about("input", error))?;
        let numbers = vectors.iter().map(Vec::len).sum::<usize>();
        let encode = asked.is_base64.then_some(base64 as fn(&[u8]) -> String);
        let json = move || embeddings::answer(&stamp, &vectors, tokens, encode);
        Ok((NUMBER_BYTES * numbers, Box::new(json) as _))
    };
    answer(door, ("OpenAiEmbeddings", embeddings::read), request, work).await
}

/// `POST /v1/rerank`
pub(super) async fn rerank(State(door): State<OpenAi>, request: Request) -> Response {
    let work = |text: TextModel, asked: rerank::Asked, (stamp, context): (Stamp, Context)| async move {
        let (query, documents) = (asked.query.clone(), asked.documents.clone());
        let count = documents.len();
        let scored = text.texts.rerank(query, documents, asked.truncation, context).await;
        let (scores, tokens) = scored.map_err(|error| about("documents", error))?;
        let documents = asked.documents.iter().filter(|_| asked.has_documents);
        let bytes = documents.map(|document| DOCUMENT_BYTES * document.len()).sum::<usize>();
        let json = move || rerank::answer(&stamp, &asked, &scores, tokens);
        Ok((RESULT_BYTES * count + bytes, Box::new(json) as _))
    };
    answer(door, ("OpenAiRerank", rerank::read), request, work).await
}

fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// Answers a call whose answer comes at once.
async fn answer<A, F>(
    door: OpenAi,
    api: Api<A>,
    request: Request,
    work: impl FnOnce(TextModel, A, (Stamp, Context)) -> F,
) -> Response
where
    A: Send + 'static,
    F: Future<Output = Result<Making>>,
{
    let result = run(&door, api, request, work).await;
    result.unwrap_or_else(|error| failure(&door, Dialect::OpenAi, &error))
}

async fn run<A, F>(
    door: &OpenAi,
    (rpc, read): Api<A>,
    request: Request,
    work: impl FnOnce(TextModel, A, (Stamp, Context)) -> F,
) -> Result<Response>
where
    A: Send + 'static,
    F: Future<Output = Result<Making>>,
{
    let id = id(&request);
    let received = receive(request, &door.intake).await?;
    let mut observation = Observation::begin(&door.shared, rpc, received.is_lone);
    let (parent, meter) = (parent(&received.headers), received.grant.meter());
    let (size, its_door) = (received.body.len(), door.clone());
    let prepare = move || {
        let body = body(&received)?;
        let (model, text) = text_model(&its_door, &received.grant, &body)?;
        let stamp = stamp(body.get("model").and_then(Json::as_str).unwrap_or_default());
        Ok((model, text, read(&body), stamp, received.take_tree()))
    };
    let (model, text, asked, stamp, held) = match preparing::run(size, prepare).await {
        Ok(prepared) => prepared,
        Err(error) => {
            observation.refused(None, &error);
            return Err(error);
        }
    };
    observation.holds(held);
    let context = Context::new(id).with_trace_parent(parent).with_meter(meter);
    observation.begin_work(model, 1, &context);
    let made = match asked {
        Ok(asked) => work(text, asked, (stamp, context)).await,
        Err(error) => Err(error),
    };
    let answered = made.and_then(|(bytes, json)| {
        observation.collects(bytes)?;
        Ok(heavy(bytes, || fine(&json())))
    });
    observation.end(answered.as_ref().map(|_| ()));
    answered
}
