//! What is there: models, health, tokens.

use axum::Extension;
use axum::extract::{Path, Request, State};
use axum::response::Response;
use http::StatusCode;
use openai_bridge::api::{messages, tokens};
use serde_json::{Value as Json, json};

use super::OpenAi;
use super::answer::{failure, fine, json};
use super::call::{body, text_model};
use crate::catalog;
use crate::models::Model;
use crate::rest::receive::receive;
use crate::security::Grant;
use crate::security::Stranger;
use crate::status::Dialect;
use crate::text::now;

/// `GET /v1/models`: what can be called with texts.
pub(super) async fn models(State(door): State<OpenAi>, grant: Grant) -> Response {
    let ready = door.shared.models.ready();
    let mut data: Vec<Json> = Vec::new();
    let is_shown = |model: &&std::sync::Arc<Model>| {
        model.text.is_some() && grant.allows_model(&model.name).is_ok()
    };
    for model in ready.iter().filter(is_shown) {
        // The latest version of a name is the one that is called.
        let is_latest = door.model(&model.name).is_ok_and(|latest| latest.version == model.version);
        if is_latest {
            data.push(described(&door, model));
        }
    }
    fine(&json!({"object": "list", "data": data}))
}

/// `GET /v1/models/ID`; an id may have slashes.
pub(super) async fn model(
    State(door): State<OpenAi>,
    grant: Grant,
    Path(id): Path<String>,
) -> Response {
    match grant.allows_model(&id).and_then(|()| door.model(&id)) {
        Ok(model) => fine(&described(&door, &model)),
        Err(error) => failure(&door, Dialect::OpenAi, &error),
    }
}

fn described(door: &OpenAi, model: &Model) -> Json {
    let mut described = json!({
        "id": &*model.name,
        "object": "model",
        "created": door.started,
        "owned_by": "stator",
        "version": &*model.version,
    });
    if let Some(parent) = &model.parent {
        described["parent"] = (**parent).into();
    }
    // Some engines do not tell it, which is 0.
    let length = model.text.as_ref().map_or(0, |text| text.texts.bridge.context_length());
    if length > 0 {
        described["max_model_len"] = length.into();
    }
    described
}

/// `GET /health`: whether a request would be taken now.
pub(super) async fn health(
    State(door): State<OpenAi>,
    stranger: Option<Extension<Stranger>>,
) -> Response {
    let is_ready = catalog::server_ready(&door.shared);
    let models = door.shared.models.ready();
    let names: Vec<&str> =
        models.iter().filter(|model| model.is_ready()).map(|model| &*model.name).collect();
    let (status, word) = match is_ready && !names.is_empty() {
        true => (StatusCode::OK, "healthy"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "unhealthy"),
    };
    let names = if stranger.is_some() { Vec::new() } else { names };
    json(status, &json!({"status": word, "models": names}))
}

/// `GET /live`: whether the process works.
pub(super) async fn live() -> Response {
    fine(&json!({"status": "live"}))
}

/// `POST /v1/tokenize`
pub(super) async fn tokenize(State(door): State<OpenAi>, request: Request) -> Response {
    let work = async {
        let received = receive(request, &door.intake).await?;
        let body = body(&received)?;
        let (_, text) = text_model(&door, &received.grant, &body)?;
        let size = received.body.len();
        text.texts.heavy(size, move |bridge| tokens::tokenize(bridge, &body, now())).await
    };
    answer(&door, work.await)
}

/// `POST /v1/detokenize`
pub(super) async fn detokenize(State(door): State<OpenAi>, request: Request) -> Response {
    let work = async {
        let received = receive(request, &door.intake).await?;
        let body = body(&received)?;
        let (_, text) = text_model(&door, &received.grant, &body)?;
        let size = received.body.len();
        text.texts.heavy(size, move |bridge| tokens::detokenize(bridge, &body)).await
    };
    answer(&door, work.await)
}

/// `POST /v1/messages/count_tokens`, Anthropic's.
pub(super) async fn count_tokens(State(door): State<OpenAi>, request: Request) -> Response {
    let work = async {
        let received = receive(request, &door.intake).await?;
        let body = body(&received)?;
        let (_, text) = text_model(&door, &received.grant, &body)?;
        let size = received.body.len();
        text.texts.heavy(size, move |bridge| messages::count_tokens(bridge, body, now())).await
    };
    match work.await {
        Ok(value) => fine(&value),
        Err(error) => failure(&door, Dialect::Anthropic, &error),
    }
}

fn answer(door: &OpenAi, result: engine::Result<Json>) -> Response {
    match result {
        Ok(value) => fine(&value),
        Err(error) => failure(door, Dialect::OpenAi, &error),
    }
}
