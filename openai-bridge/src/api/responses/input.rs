//! The items of a response's input: what a client may send, and the messages of a chat they are.

use engine::{Error, Result};
use serde_json::{Map, Value as Json, json};

use super::super::body::{self, wrong};
use super::super::turns::Turns;
use super::super::{Body, Stamp};
use super::offered::Offered;

/// Puts the items of a kept response before those of the next one's input; `record` is what the
/// form of the former gave to be kept.
pub fn follow(body: &mut Body, record: &Json) {
    let list = |value: &Json| value.as_array().cloned().unwrap_or_default();
    let mut items = list(&record["input"]);
    items.extend(list(&record["response"]["output"]));
    match body.remove("input") {
        Some(Json::Array(own)) => items.extend(own),
        Some(Json::String(text)) => items.push(said(&text)),
        // What is wrong is told by the reader, which finds it last.
        Some(other) => items.push(other),
        None => {}
    }
    body.insert("input".into(), items.into());
}

fn said(text: &str) -> Json {
    json!({
        "type": "message",
        "role": "user",
        "content": [{"type": "input_text", "text": text}],
    })
}

/// Takes the items out of a body; each has an id and a type then.
///
/// Errors: `input` is no text and no list of objects, or is empty.
pub(super) fn items(body: &mut Body, stamp: &Stamp) -> Result<Vec<Json>> {
    let mut items = match body.remove("input") {
        Some(Json::String(text)) => vec![said(&text)],
        Some(Json::Array(items)) => items,
        None | Some(Json::Null) => return Err(wrong("input", "is missing")),
        Some(other) => {
            let why = format!("expected a text or a list of items, got {}", body::kind(&other));
            return Err(wrong("input", &why));
        }
    };
    if items.is_empty() {
        return Err(wrong("input", "expected at least 1 item, got an empty list"));
    }
    for (index, item) in items.iter_mut().enumerate() {
        let place = format!("input[{index}]");
        let Json::Object(item) = item else {
            let why = format!("expected an object, got {}", body::kind(item));
            return Err(wrong(&place, &why));
        };
        if !item.contains_key("type") && item.contains_key("role") {
            item.insert("type".into(), "message".into());
        }
        let prefix = match item.get("type").and_then(Json::as_str) {
            Some("message") => "msg",
            Some("function_call") => "fc",
            Some("function_call_output") => "fco",
            Some("reasoning") => "rs",
            Some(kind) => {
                let why = format!(
                    "items of type `{kind}` are not served; message, function_call, \
                     function_call_output and reasoning are"
                );
                return Err(wrong(&format!("{place}.type"), &why));
            }
            None => return Err(wrong(&format!("{place}.type"), "is missing")),
        };
        if !item.get("id").is_some_and(Json::is_string) {
            // Numbers from the far end: those from 0 are the output's.
            let id = stamp.derived(!(index as u64));
            item.insert("id".into(), format!("{prefix}_{id}").into());
        }
    }
    Ok(items)
}

/// Returns the messages of items.
///
/// Errors: an item that is none, by place.
pub(super) fn messages(
    instructions: Option<&str>,
    items: &[Json],
    offered: &Offered,
) -> Result<Vec<Json>> {
    let mut turns = Turns::default();
    if let Some(instructions) = instructions.filter(|text| !text.is_empty()) {
        turns.say("system", instructions.to_owned());
    }
    for (index, item) in items.iter().enumerate() {
        let place = Place(format!("input[{index}]"));
        let Some(item) = item.as_object() else { continue };
        match item.get("type").and_then(Json::as_str) {
            Some("function_call") => {
                let call = place.text(item, "call_id")?;
                let space = item.get("namespace").and_then(Json::as_str);
                let name = offered.shown(space, place.text(item, "name")?);
                turns.call(call, name, place.text(item, "arguments")?);
            }
            Some("function_call_output") => {
                let call = place.text(item, "call_id")?;
                turns.result(call, place.content(item.get("output"), "output")?);
            }
            Some("reasoning") => turns.think(&place.thought(item)?),
            _ => {
                let role = place.text(item, "role")?;
                if !["user", "assistant", "system", "developer"].contains(&role) {
                    let why =
                        format!("expected user, assistant, system or developer, got `{role}`");
                    return Err(place.wrong(".role", &why));
                }
                turns.say(role, place.content(item.get("content"), "content")?);
            }
        }
    }
    Ok(turns.finish())
}

/// Where something stands in the body, for messages.
struct Place(String);

impl Place {
    fn wrong(&self, inner: &str, why: &str) -> Error {
        wrong(&format!("{}{inner}", self.0), why)
    }

    /// Returns a field that has to be a text.
    fn text<'a>(&self, item: &'a Map<String, Json>, field: &str) -> Result<&'a str> {
        match item.get(field) {
            Some(Json::String(text)) => Ok(text),
            None => Err(self.wrong(&format!(".{field}"), "is missing")),
            Some(other) => {
                let why = format!("expected a text, got {}", body::kind(other));
                Err(self.wrong(&format!(".{field}"), &why))
            }
        }
    }

    /// Returns the text of a content: a text, or parts that are texts.
    fn content(&self, content: Option<&Json>, field: &str) -> Result<String> {
        let parts = match content {
            Some(Json::String(text)) => return Ok(text.clone()),
            Some(Json::Array(parts)) => parts,
            None | Some(Json::Null) => return Err(self.wrong(&format!(".{field}"), "is missing")),
            Some(other) => {
                let why = format!("expected a text or a list of parts, got {}", body::kind(other));
                return Err(self.wrong(&format!(".{field}"), &why));
            }
        };
        let part = |(index, part)| self.part(part, &format!(".{field}[{index}]"));
        parts.iter().enumerate().map(part).collect()
    }

    /// Returns the text of a part.
    fn part<'a>(&self, part: &'a Json, place: &str) -> Result<&'a str> {
        let key = match part["type"].as_str() {
            Some("input_text" | "output_text" | "text" | "summary_text") => "text",
            Some("refusal") => "refusal",
            Some(kind) => {
                let why = format!("a part of type `{kind}` is not for this model; it takes text");
                return Err(self.wrong(&format!("{place}.type"), &why));
            }
            None => return Err(self.wrong(&format!("{place}.type"), "is missing")),
        };
        let missing = || self.wrong(&format!("{place}.{key}"), "expected a text");
        part[key].as_str().ok_or_else(missing)
    }

    /// Returns what was thought: in full if it is there, else in short.
    fn thought(&self, item: &Map<String, Json>) -> Result<String> {
        let texts = |field: &str| match item.get(field) {
            None | Some(Json::Null) => Ok(String::new()),
            Some(Json::Array(parts)) => {
                Ok(parts.iter().filter_map(|part| part["text"].as_str()).collect())
            }
            Some(_) => Err(self.wrong(&format!(".{field}"), "expected a list of parts")),
        };
        let whole = texts("content")?;
        if whole.is_empty() { texts("summary") } else { Ok(whole) }
    }
}
