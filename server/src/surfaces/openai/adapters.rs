//! LoRA adapters, loaded and unloaded while the server runs, by vLLM's routes.

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use engine::{Error, Result};
use openai_bridge::api::Body;
use serde_json::Value as Json;

use super::OpenAi;
use super::answer::failure;
use super::call::read;
use crate::models::source::AdapterSource;
use crate::support::status::Dialect;
use crate::surfaces::http::receive::receive;

/// `POST /v1/load_lora_adapter`
pub(super) async fn load(State(door): State<OpenAi>, request: Request) -> Response {
    let work = async {
        let received = receive(request, &door.intake).await?;
        door.shared.admit_change()?;
        let (received, body) = read(received).await?;
        let name = text(&body, "lora_name")?;
        received.grant.allows_model(&name).map_err(|error| error.with_param("lora_name"))?;
        let base = match body.get("base_model_name") {
            None | Some(Json::Null) => None,
            Some(_) => Some(text(&body, "base_model_name")?),
        };
        let replaces = match body.get("load_inplace") {
            None | Some(Json::Null) => false,
            Some(Json::Bool(flag)) => *flag,
            Some(other) => return Err(wrong("load_inplace", "a bool", other)),
        };
        let folder = text(&body, "lora_path")?.into();
        let adapter = AdapterSource { name, folder, base };
        door.shared.repository.load_adapter(&adapter, replaces).await?;
        Ok(format!("Success: LoRA adapter '{}' added successfully.", adapter.name))
    };
    answer(&door, work.await)
}

/// `POST /v1/unload_lora_adapter`
pub(super) async fn unload(State(door): State<OpenAi>, request: Request) -> Response {
    let work = async {
        let received = receive(request, &door.intake).await?;
        let (received, body) = read(received).await?;
        let name = text(&body, "lora_name")?;
        received.grant.allows_model(&name).map_err(|error| error.with_param("lora_name"))?;
        door.shared.repository.unload_adapter(&name).await?;
        Ok(format!("Success: LoRA adapter '{name}' removed successfully."))
    };
    answer(&door, work.await)
}

fn answer(door: &OpenAi, result: Result<String>) -> Response {
    match result {
        Ok(text) => text.into_response(),
        Err(error) => failure(door, Dialect::OpenAi, &error),
    }
}

/// Reads a text that has to be there and say something.
fn text(body: &Body, field: &str) -> Result<String> {
    match body.get(field) {
        Some(Json::String(text)) if !text.is_empty() => Ok(text.clone()),
        None | Some(Json::Null) => {
            Err(Error::invalid(format!("`{field}`: is missing")).with_param(field))
        }
        Some(other) => Err(wrong(field, "a text that is not empty", other)),
    }
}

fn wrong(field: &str, expected: &str, got: &Json) -> Error {
    let got = match got {
        Json::Null => "nothing",
        Json::Bool(_) => "a bool",
        Json::Number(_) => "a number",
        Json::String(_) => "a text",
        Json::Array(_) => "a list",
        Json::Object(_) => "an object",
    };
    Error::invalid(format!("`{field}`: expected {expected}, got {got}")).with_param(field)
}
