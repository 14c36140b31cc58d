//! What is there: models, health, tokens.

use axum::Extension;
use axum::extract::{Path, Request, State};
use axum::response::Response;
use engine::Error;
use http::{HeaderMap, StatusCode, Uri};
use openai_bridge::api::{Body, messages, tokens};
use serde_json::{Value as Json, json};

use super::OpenAi;
use super::answer::{failure, fine, json};
use super::call::{body, text_model};
use crate::models::registry::{Model, TextModel};
use crate::models::text::now;
use crate::security::{Grant, Stranger};
use crate::serving::catalog;
use crate::support::preparing;
use crate::support::status::Dialect;
use crate::surfaces::http::receive::receive;

/// What a byte of a prompt takes while an answer tells of its tokens, as if each were one: a JSON
/// value in a list that has grown to twice of what it holds, and its text.
const TOKEN_BYTES: usize = 72;

/// What it takes with the texts of the tokens.
const WORD_BYTES: usize = 160;

/// What a byte of a body of tokens takes while an answer is made of their text. Tokens with long
/// texts have long numbers.
const TEXT_BYTES: usize = 16;

/// The header by which Anthropic's clients are known.
const ANTHROPIC: &str = "anthropic-version";

/// `GET /v1/models`: what can be called with texts.
pub(super) async fn models(
    State(door): State<OpenAi>,
    grant: Grant,
    headers: HeaderMap,
) -> Response {
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
    if !headers.contains_key(ANTHROPIC) {
        return fine(&json!({"object": "list", "data": data}));
    }
    data.iter_mut().for_each(add_anthropics);
    let id = |model: Option<&Json>| model.map_or(Json::Null, |model| model["id"].clone());
    let (first, last) = (id(data.first()), id(data.last()));
    fine(&json!({"object": "list", "data": data, "has_more": false,
        "first_id": first, "last_id": last}))
}

/// Adds what Anthropic's API tells of a model.
fn add_anthropics(model: &mut Json) {
    let created = model["created"].as_u64().unwrap_or_default();
    model["type"] = "model".into();
    model["display_name"] = model["id"].clone();
    model["created_at"] = moment(created).into();
}

/// `GET /v1/models/ID`; an id may have slashes.
pub(super) async fn model(
    State(door): State<OpenAi>,
    grant: Grant,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Response {
    let is_anthropic = headers.contains_key(ANTHROPIC);
    match grant.allows_model(&id).and_then(|()| door.model(&id)) {
        Ok(model) => {
            let mut described = described(&door, &model);
            if is_anthropic {
                add_anthropics(&mut described);
            }
            fine(&described)
        }
        Err(error) if is_anthropic => failure(&door, Dialect::Anthropic, &error),
        Err(error) => failure(&door, Dialect::OpenAi, &error),
    }
}

/// Returns seconds since 1970 as RFC 3339 writes them.
fn moment(seconds: u64) -> String {
    let (days, time) = (seconds / 86_400, seconds % 86_400);
    // A year begins in March here, so that a leap day is the last of it.
    let shifted = days + 719_468;
    let (era, day) = (shifted / 146_097, shifted % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (year, month) = match month {
        0..=9 => (era * 400 + year, month + 3),
        _ => (era * 400 + year + 1, month - 9),
    };
    let (hour, minute, second) = (time / 3600, time / 60 % 60, time % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
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
        let (size, its_door) = (received.body.len(), door.clone());
        let work = move || {
            let body = body(&received)?;
            let bridge = &tokenizing(&its_door, &received.grant, &body)?.texts.bridge;
            let has_texts = body.get("return_token_strs") == Some(&Json::Bool(true));
            received.holds(if has_texts { WORD_BYTES * size } else { TOKEN_BYTES * size })?;
            Ok(fine(&tokens::tokenize(bridge, &body, now())?))
        };
        preparing::run(size, work).await
    };
    work.await.unwrap_or_else(|error| failure(&door, Dialect::OpenAi, &error))
}

/// `POST /v1/detokenize`
pub(super) async fn detokenize(State(door): State<OpenAi>, request: Request) -> Response {
    let work = async {
        let received = receive(request, &door.intake).await?;
        let (size, its_door) = (received.body.len(), door.clone());
        let work = move || {
            let body = body(&received)?;
            let bridge = &tokenizing(&its_door, &received.grant, &body)?.texts.bridge;
            received.holds(TEXT_BYTES * size)?;
            Ok(fine(&tokens::detokenize(bridge, &body)?))
        };
        preparing::run(size, work).await
    };
    work.await.unwrap_or_else(|error| failure(&door, Dialect::OpenAi, &error))
}

/// `GET /v1/tokenizer_info`, as vLLM has it; `?model=` names one of several.
pub(super) async fn tokenizer_info(State(door): State<OpenAi>, grant: Grant, uri: Uri) -> Response {
    let name = super::responses::value(&uri, "model");
    let body = name.map(|name| ("model".to_owned(), name.into())).into_iter().collect();
    let text = tokenizing(&door, &grant, &body);
    answer(&door, text.and_then(|text| tokens::info(&text.texts.bridge)))
}

/// Returns the text model whose tokens a call is about: the one that it names, or the only one.
///
/// Errors: none is named, and there is another number of them than one.
fn tokenizing(door: &OpenAi, grant: &Grant, body: &Body) -> engine::Result<TextModel> {
    if body.get("model").is_some_and(|name| !name.is_null()) {
        return Ok(text_model(door, grant, body)?.1);
    }
    let ready = door.shared.models.ready();
    let is_own = |model: &&std::sync::Arc<Model>| {
        model.parent.is_none() && grant.allows_model(&model.name).is_ok()
    };
    let mut all = ready.iter().filter(is_own).filter_map(|model| model.text.clone());
    match (all.next(), all.next()) {
        (Some(only), None) => Ok(only),
        _ => Err(Error::invalid("`model`: is missing").with_param("model")),
    }
}

/// `POST /v1/messages/count_tokens`, Anthropic's.
pub(super) async fn count_tokens(State(door): State<OpenAi>, request: Request) -> Response {
    let work = async {
        let received = receive(request, &door.intake).await?;
        let (size, its_door) = (received.body.len(), door.clone());
        let work = move || {
            let body = body(&received)?;
            let (_, text) = text_model(&its_door, &received.grant, &body)?;
            messages::count_tokens(&text.texts.bridge, body, now())
        };
        preparing::run(size, work).await
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_of_the_gregorian_calendar() {
        let table = [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_798_761_600, "2027-01-01T00:00:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ];
        for (seconds, text) in table {
            assert_eq!(moment(seconds), text);
        }
    }
}
