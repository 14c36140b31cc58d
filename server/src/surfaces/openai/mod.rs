//! The OpenAI door, with the APIs that live beside it: JSON and streams of events over the models
//! that KServe's doors serve too.
//!
//! A call is read by the bridge, becomes a completion, and goes to the same engine that a tensor
//! call reaches; only the reading and the form of the answer are different.

mod adapters;
mod answer;
mod busy;
mod call;
mod catalog;
mod config;
mod pictures;
mod responses;
mod sse;
mod store;
mod vectors;

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use axum::routing::{any, get, post};
use http::HeaderValue;
use openai_bridge::api::{self, Stamp};
use ring::rand::SecureRandom;

use crate::serving::shared::Shared;
use crate::support::status::Dialect;
use crate::surfaces::http::receive::Intake;
use crate::surfaces::paths::{AT_ROOT, PATHS};
use call::Kind;
use store::Store;

pub(crate) use answer::unknown_route;
pub(crate) use config::OpenAiConfig;

/// Anthropic's header for the same.
const REQUEST_ID_TOO: &str = "request-id";

/// The header that names a request.
pub(crate) const REQUEST_ID: &str = "x-request-id";

/// Longest name of a request that is taken over.
const MAX_REQUEST_ID: usize = 128;

/// The state of the routes.
#[derive(Clone)]
pub(crate) struct OpenAi {
    pub shared: Arc<Shared>,
    pub config: Arc<OpenAiConfig>,
    /// What is taken of a body.
    pub intake: Intake,
    /// Responses that can be asked for again and gone on from.
    pub stored: Arc<Store>,
    /// When the server started, in seconds since 1970.
    pub started: u64,
}

/// The name of a request, in its extensions.
#[derive(Clone)]
struct RequestId(String);

/// The kinds of texts that are called for by a path of their own.
const CHAT: Kind = Kind {
    rpc: "OpenAiChat",
    read: api::chat::read,
    dialect: Dialect::OpenAi,
    prompt: "messages",
    is_kept: false,
};
const COMPLETION: Kind =
    Kind { rpc: "OpenAiCompletion", read: api::completions::read, prompt: "prompt", ..CHAT };
const RESPONSE: Kind = Kind {
    rpc: "OpenAiResponse",
    read: api::responses::read,
    prompt: "input",
    is_kept: true,
    ..CHAT
};
const MESSAGE: Kind = Kind {
    rpc: "AnthropicMessage",
    read: api::messages::read,
    dialect: Dialect::Anthropic,
    ..CHAT
};

/// Makes the routes.
pub(crate) fn router(shared: Arc<Shared>, config: &OpenAiConfig, max_input: usize) -> Router {
    let stored = Arc::new(Store::new(config.stored_responses, config.stored_bytes));
    let config = Arc::new(config.clone());
    let intake = Intake::new(&shared, max_input);
    let door = OpenAi { shared, config: config.clone(), intake, stored, started: seconds() };
    let path = |name| config.paths.get(name);
    let text = |kind: Kind| {
        post(move |State(door): State<OpenAi>, request: Request| async move {
            call::answer(door, kind, request).await
        })
    };
    let (models, responses, messages) = (path("models"), path("responses"), path("messages"));
    let mut router = Router::new();
    for (name, route) in AT_ROOT.iter().zip([
        post(catalog::tokenize),
        post(catalog::detokenize),
        get(catalog::tokenizer_info),
    ]) {
        let root = format!("/{name}");
        if !PATHS.iter().any(|(name, _)| path(name) == root) {
            router = router.route(&root, route);
        }
    }
    router
        .route(path("chat"), text(CHAT))
        .route(path("completions"), text(COMPLETION))
        .route(responses, text(RESPONSE))
        .route(&format!("{responses}/{{id}}"), get(responses::retrieve).delete(responses::delete))
        .route(&format!("{responses}/{{id}}/cancel"), post(responses::cancel))
        .route(&format!("{responses}/{{id}}/input_items"), get(responses::input_items))
        .route(messages, text(MESSAGE))
        .route(&format!("{messages}/count_tokens"), post(catalog::count_tokens))
        .route(&format!("{messages}/{{*rest}}"), any(answer::unknown_of_messages))
        .route(path("embeddings"), post(vectors::embeddings))
        .route(path("rerank"), post(vectors::rerank))
        .route(path("tokenize"), post(catalog::tokenize))
        .route(path("detokenize"), post(catalog::detokenize))
        .route(path("tokenizer_info"), get(catalog::tokenizer_info))
        .route(models, get(catalog::models))
        .route(&format!("{models}/{{*id}}"), get(catalog::model))
        .route(path("images"), post(pictures::images))
        .route(path("videos"), post(pictures::videos))
        .route(path("videos_stream"), post(pictures::stream_videos))
        .route(path("load_lora_adapter"), post(adapters::load))
        .route(path("unload_lora_adapter"), post(adapters::unload))
        .route(path("busy_threshold"), get(busy::list).post(busy::set))
        .route(path("health"), get(catalog::health))
        .route(path("live"), get(catalog::live))
        .method_not_allowed_fallback(answer::wrong_method)
        .with_state(door)
}

/// Gives a request its name, the client's or one of ours, and tells it in the answer, be it a
/// refusal of whatever layer.
pub(crate) async fn name_request(mut request: Request, next: Next) -> Response {
    let is_name = |value: &&HeaderValue| {
        (1..=MAX_REQUEST_ID).contains(&value.len()) && value.to_str().is_ok()
    };
    let given = request.headers().get(REQUEST_ID).filter(is_name);
    let name = given.and_then(|value| value.to_str().ok()).map_or_else(random_id, str::to_owned);
    request.extensions_mut().insert(RequestId(name.clone()));
    let mut response = next.run(request).await;
    if let Ok(value) = HeaderValue::try_from(name) {
        response.headers_mut().insert(REQUEST_ID, value.clone());
        response.headers_mut().insert(REQUEST_ID_TOO, value);
    }
    response
}

/// Returns 32 random hexadecimal digits.
fn random_id() -> String {
    // It also guards what is kept, so nobody may guess it.
    let mut bytes = [0; 16];
    if ring::rand::SystemRandom::new().fill(&mut bytes).is_err() {
        bytes = fastrand::u128(..).to_le_bytes();
    }
    format!("{:032x}", u128::from_le_bytes(bytes))
}

/// Returns the seconds since 1970.
fn seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Makes the stamp of an answer.
fn stamp(model: &str) -> Stamp {
    Stamp { id: random_id(), created: seconds(), model: model.to_owned() }
}
