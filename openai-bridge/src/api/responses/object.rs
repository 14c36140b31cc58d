//! The response object, which tells the request again.

use engine::Result;
use serde_json::{Map, Value as Json, json};

use super::super::body::{self, get, wrong};
use super::super::{Body, Stamp};

/// Most entries of `metadata`, as in the OpenAI API.
const MAX_METADATA: usize = 16;

/// Makes the response object as it stands at the beginning.
///
/// Errors: a field that is wrong, by name.
pub(super) fn new(body: &Body, stamp: &Stamp) -> Result<Json> {
    let given = |field: &str| get(body, field).cloned().unwrap_or(Json::Null);
    let text = |field: &str| body::text(body, field).map(|text| json!(text));
    let format = field(body, "text", "format")?.cloned().unwrap_or(json!({"type": "text"}));
    let verbosity = field(body, "text", "verbosity")?.cloned().unwrap_or(json!("medium"));
    Ok(json!({
        "id": format!("resp_{}", stamp.id),
        "object": "response",
        "created_at": stamp.created,
        "status": "in_progress",
        "background": false,
        "completed_at": null,
        "error": null,
        "incomplete_details": null,
        "instructions": text("instructions")?,
        "max_output_tokens": given("max_output_tokens"),
        "max_tool_calls": given("max_tool_calls"),
        "metadata": metadata(body)?,
        "model": stamp.model,
        "output": [],
        "parallel_tool_calls": body::flag(body, "parallel_tool_calls")?.unwrap_or(true),
        "previous_response_id": text("previous_response_id")?,
        "prompt_cache_key": given("prompt_cache_key"),
        "reasoning": {
            "effort": field(body, "reasoning", "effort")?,
            "summary": field(body, "reasoning", "summary")?,
        },
        "safety_identifier": given("safety_identifier"),
        "service_tier": "default",
        "store": body::flag(body, "store")?.unwrap_or(true),
        "temperature": get(body, "temperature").cloned().unwrap_or(json!(1.0)),
        "text": {"format": format, "verbosity": verbosity},
        "tool_choice": get(body, "tool_choice").cloned().unwrap_or(json!("auto")),
        "tools": tools(body),
        "top_logprobs": get(body, "top_logprobs").cloned().unwrap_or(json!(0)),
        "top_p": get(body, "top_p").cloned().unwrap_or(json!(1.0)),
        "truncation": "disabled",
        "usage": null,
        "user": text("user")?,
    }))
}

/// Returns a field of a field that is an object.
pub(super) fn field<'a>(body: &'a Body, outer: &str, inner: &str) -> Result<Option<&'a Json>> {
    match get(body, outer) {
        None => Ok(None),
        Some(Json::Object(object)) => Ok(object.get(inner).filter(|value| !value.is_null())),
        Some(other) => Err(wrong(outer, &format!("expected an object, got {}", body::kind(other)))),
    }
}

fn metadata(body: &Body) -> Result<Json> {
    match get(body, "metadata") {
        None => Ok(json!({})),
        Some(Json::Object(all)) if all.len() > MAX_METADATA => {
            let why = format!("expected at most {MAX_METADATA} entries, got {}", all.len());
            Err(wrong("metadata", &why))
        }
        Some(Json::Object(all)) if all.values().all(Json::is_string) => {
            Ok(Json::Object(all.clone()))
        }
        Some(_) => Err(wrong("metadata", "expected an object of texts")),
    }
}

/// Returns the tools with the fields that clients look for.
fn tools(body: &Body) -> Json {
    let whole = |tool: &Json| {
        let mut whole: Map<String, Json> = tool.as_object().cloned().unwrap_or_default();
        for field in ["description", "parameters", "strict"] {
            whole.entry(field).or_insert(Json::Null);
        }
        Json::Object(whole)
    };
    match get(body, "tools") {
        Some(Json::Array(tools)) => tools.iter().map(whole).collect(),
        _ => json!([]),
    }
}
