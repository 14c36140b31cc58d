//! The OpenAPI document of the HTTP door, put together from one file for each group of routes.
//!
//! The files hold what is said once; what follows from a path is added here: the error answers of
//! its protocol, and the KServe routes that name a version.

use serde_json::{Map, Value, json};

use crate::surfaces::paths::{PATHS, Paths};

/// One file for each group of routes, and one of what all share.
const PARTS: [&str; 8] = [
    include_str!("base.json"),
    include_str!("chat.json"),
    include_str!("completions.json"),
    include_str!("responses.json"),
    include_str!("messages.json"),
    include_str!("media.json"),
    include_str!("kserve.json"),
    include_str!("control.json"),
];

const MODEL: &str = "/v2/models/{model}";

/// The routes of a model, behind [`MODEL`], that exist for a version of it too.
const OF_A_VERSION: [&str; 7] =
    ["", "/ready", "/config", "/stats", "/infer", "/generate", "/generate_stream"];

/// Returns the OpenAPI 3.1 document of all routes, each at its usual path.
pub fn document() -> Value {
    let mut whole = json!({ "info": { "version": env!("CARGO_PKG_VERSION") } });
    for part in PARTS {
        let part = serde_json::from_str(part).expect("a test reads every part");
        merge(&mut whole, part);
    }
    let paths = whole["paths"].as_object_mut().expect("the parts have paths");
    for suffix in OF_A_VERSION {
        let item = paths.get(&format!("{MODEL}{suffix}")).cloned().unwrap_or_default();
        paths.insert(format!("{MODEL}/versions/{{version}}{suffix}"), of_a_version(item));
    }
    for (path, item) in paths {
        for operation in operations(item) {
            operation["responses"]["default"] = json!({ "$ref": error_of(path) });
        }
    }
    whole
}

/// Returns the document with the routes where a server has them.
pub(super) fn document_of(paths: &Paths) -> Value {
    let mut whole = document();
    let usual = whole["paths"].take();
    let moved = usual.as_object().into_iter().flatten();
    whole["paths"] = moved.map(|(path, item)| (moved_to(paths, path), item.clone())).collect();
    whole
}

/// Returns where a path has gone: with the longest route that it is or lies below.
fn moved_to(paths: &Paths, path: &str) -> String {
    let below = |(name, usual): &(&str, &str)| {
        let rest = path.strip_prefix(usual)?;
        (rest.is_empty() || rest.starts_with('/') && *usual != "/")
            .then(|| (usual.len(), format!("{}{rest}", paths.get(name))))
    };
    let longest = PATHS.iter().filter_map(below).max_by_key(|(length, _)| *length);
    longest.map_or_else(|| path.to_owned(), |(_, moved)| moved)
}

/// Adds the entries of one object to another, objects within likewise.
fn merge(whole: &mut Value, part: Value) {
    match (whole, part) {
        (Value::Object(whole), Value::Object(part)) => {
            for (key, value) in part {
                merge(whole.entry(key).or_insert(Value::Null), value);
            }
        }
        (whole, part) => *whole = part,
    }
}

/// Returns the methods of a path.
fn operations(item: &mut Value) -> impl Iterator<Item = &mut Map<String, Value>> {
    let methods = ["get", "post", "delete"];
    let entries = item.as_object_mut().into_iter().flatten();
    entries.filter(move |(key, _)| methods.contains(&key.as_str())).filter_map(|(_, operation)| {
        let operation = operation.as_object_mut()?;
        operation.entry("responses").or_insert_with(|| json!({}));
        Some(operation)
    })
}

/// Makes the route that names a version of one that does not.
fn of_a_version(mut item: Value) -> Value {
    let version = json!({ "$ref": "#/components/parameters/version" });
    if let Some(parameters) = item["parameters"].as_array_mut() {
        parameters.push(version);
    }
    for operation in operations(&mut item) {
        for (key, more) in [("operationId", "OfVersion"), ("summary", ", of a version")] {
            if let Some(Value::String(text)) = operation.get_mut(key) {
                text.push_str(more);
            }
        }
    }
    item
}

/// Returns how the protocol of a path tells errors.
fn error_of(path: &str) -> &'static str {
    match path {
        path if path.starts_with("/v1/messages") => "#/components/responses/AnthropicError",
        path if path.starts_with("/v2") => "#/components/responses/KserveError",
        _ => "#/components/responses/OpenAiError",
    }
}

#[cfg(test)]
mod tests;
