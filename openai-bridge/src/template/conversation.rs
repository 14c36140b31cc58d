//! Conversations in OpenAI's form, checked once for every template.

use engine::{Error, Result, check_waiting};
use serde_json::{Map, Value as Json};

use crate::controls::Controls;

/// Names that the request itself gives to every template.
const RESERVED: [&str; 4] = ["messages", "tools", "documents", "add_generation_prompt"];

/// The longest role.
const MAX_ROLE_BYTES: usize = 64;

/// A checked conversation as a template gets it.
#[derive(Clone, Debug)]
pub struct Conversation {
    messages: Vec<Json>,
    /// The tools' declarations, in OpenAI's form.
    pub tools: Vec<Json>,
    /// More variables for the template, such as `enable_thinking` and `reasoning_effort`.
    pub kwargs: Map<String, Json>,
    /// Documents that the answer may draw on, for templates that take some.
    pub documents: Vec<Json>,
    /// Whether the text ends where the assistant's turn begins; true at first.
    pub add_generation_prompt: bool,
    /// Whether the text ends inside the last message, for the model to go on with it.
    pub continue_final_message: bool,
}

impl Conversation {
    /// Checks messages.
    ///
    /// Arguments of tool calls that are texts of JSON objects become objects, fields that are
    /// null disappear but for `content`, and a refusal's part becomes a text.
    ///
    /// Errors: what is no message of a conversation, with its place, such as
    /// `messages[2].content`.
    pub fn new(messages: Vec<Json>) -> Result<Self> {
        Self::checked(messages, Parts::Texts)
    }

    /// Checks messages whose contents may have parts of any type: it is the engine's to refuse
    /// what it does not take.
    ///
    /// Errors: as [`new`](Self::new).
    pub(crate) fn of_any_parts(messages: Vec<Json>) -> Result<Self> {
        Self::checked(messages, Parts::Any)
    }

    fn checked(mut messages: Vec<Json>, parts: Parts) -> Result<Self> {
        if messages.is_empty() {
            return Err(wrong("messages", "expected at least 1 message, got 0"));
        }
        for (index, message) in messages.iter_mut().enumerate() {
            check_waiting()?;
            check_message(message, &format!("messages[{index}]"), parts)?;
        }
        Ok(Self {
            messages,
            tools: Vec::new(),
            kwargs: Map::new(),
            documents: Vec::new(),
            add_generation_prompt: true,
            continue_final_message: false,
        })
    }

    /// Reads and checks messages that are a JSON array.
    ///
    /// Errors: as [`new`](Self::new), and what is not a JSON array.
    pub fn parse(text: &str) -> Result<Self> {
        let parsed = serde_json::from_str(text).map_err(|error| Error::invalid(error.to_string()));
        match parsed? {
            Json::Array(messages) => Self::new(messages),
            other => {
                let got = brief(&other);
                Err(Error::invalid(format!("expected a JSON array of messages, got {got}")))
            }
        }
    }

    /// Breaks the control tokens in all texts that the client gave.
    pub(crate) fn break_controls(&mut self, controls: &Controls) {
        let lists = [&mut self.messages, &mut self.tools, &mut self.documents];
        lists.into_iter().flatten().for_each(|value| controls.break_in(value));
        controls.break_in_fields(&mut self.kwargs);
    }

    /// Returns the messages.
    pub fn messages(&self) -> &[Json] {
        &self.messages
    }

    /// Checks what was set after [`new`](Self::new).
    pub(super) fn check(&self) -> Result<()> {
        for name in RESERVED {
            if self.kwargs.contains_key(name) {
                let place = format!("chat_template_kwargs.{name}");
                return Err(wrong(&place, "the request itself gives this to the template"));
            }
        }
        if self.continue_final_message && self.add_generation_prompt {
            let why = "expected it without `add_generation_prompt`, got both";
            return Err(wrong("continue_final_message", why));
        }
        Ok(())
    }
}

/// What a content may be made of.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Parts {
    Texts,
    Any,
}

/// Makes the error of a place in the request.
pub(super) fn wrong(place: &str, why: &str) -> Error {
    Error::invalid(format!("`{place}`: {why}")).with_param(place)
}

fn check_message(message: &mut Json, place: &str, parts: Parts) -> Result<()> {
    let Json::Object(fields) = message else {
        return Err(wrong(place, &format!("expected an object, got {}", brief(message))));
    };
    let role = match fields.get("role") {
        Some(Json::String(role)) if is_word(role) => role.clone(),
        Some(other) => {
            let why = format!("expected a role's name, got {}", brief(other));
            return Err(wrong(&format!("{place}.role"), &why));
        }
        None => return Err(wrong(place, "expected a `role`, got none")),
    };
    fields.retain(|name, value| name == "content" || !value.is_null());
    let content_place = format!("{place}.content");
    match fields.get_mut("content") {
        Some(Json::String(_)) => {}
        Some(Json::Array(list)) => check_parts(list, &content_place, parts)?,
        None | Some(Json::Null) if is_content_needed(&role) => {
            return Err(wrong(&content_place, "expected a text or a list of parts, got null"));
        }
        // Templates read the field, whether it is there or not.
        None => drop(fields.insert("content".into(), Json::Null)),
        Some(Json::Null) => {}
        Some(other) => {
            let why = format!("expected a text or a list of parts, got {}", brief(other));
            return Err(wrong(&content_place, &why));
        }
    }
    check_tool_calls(fields, place)?;
    if let Some(call) = fields.get_mut("function_call") {
        check_function(call, &format!("{place}.function_call"))?;
    }
    Ok(())
}

/// Returns whether a role is a word: templates put it between control tokens as it is.
fn is_word(role: &str) -> bool {
    let is_part = |letter: char| letter.is_alphanumeric() || "_-. ".contains(letter);
    (1..=MAX_ROLE_BYTES).contains(&role.len()) && role.chars().all(is_part)
}

fn is_content_needed(role: &str) -> bool {
    matches!(role, "system" | "developer" | "user" | "tool")
}

fn check_parts(list: &mut [Json], place: &str, parts: Parts) -> Result<()> {
    for (index, part) in list.iter_mut().enumerate() {
        let place = format!("{place}[{index}]");
        let Json::Object(fields) = part else {
            return Err(wrong(&place, &format!("expected a part, got {}", brief(part))));
        };
        let kind = fields.get("type").and_then(Json::as_str).unwrap_or_default().to_owned();
        let text = match kind.as_str() {
            "text" | "refusal" => fields.get(&kind).and_then(Json::as_str),
            "" => return Err(wrong(&place, "expected a part with a `type`, got none")),
            _ if parts == Parts::Any => continue,
            kind => {
                let why = format!("a part of type `{kind}` is not for this model; it takes text");
                return Err(wrong(&place, &why).with_code("unsupported_content_part"));
            }
        };
        let Some(text) = text.map(str::to_owned) else {
            let why = format!("expected a part {{\"type\": \"{kind}\", \"{kind}\": a text}}");
            return Err(wrong(&format!("{place}.{kind}"), &why));
        };
        if kind == "refusal" {
            *part = text_part(text);
        }
    }
    Ok(())
}

/// Makes a part of a content.
pub(super) fn text_part(text: String) -> Json {
    serde_json::json!({"type": "text", "text": text})
}

fn check_tool_calls(fields: &mut Map<String, Json>, place: &str) -> Result<()> {
    let place = format!("{place}.tool_calls");
    let calls = match fields.get_mut("tool_calls") {
        None => return Ok(()),
        Some(Json::Array(calls)) => calls,
        Some(other) => {
            return Err(wrong(&place, &format!("expected a list of calls, got {}", brief(other))));
        }
    };
    for (index, call) in calls.iter_mut().enumerate() {
        let place = format!("{place}[{index}]");
        let Json::Object(call) = call else {
            return Err(wrong(&place, &format!("expected a call, got {}", brief(call))));
        };
        if let Some(kind) = call.get("type").filter(|kind| *kind != "function") {
            let why = format!("expected `function`, got {}", brief(kind));
            return Err(wrong(&format!("{place}.type"), &why));
        }
        let function = call.get_mut("function");
        let function = function.ok_or_else(|| wrong(&place, "expected a `function`, got none"))?;
        check_function(function, &format!("{place}.function"))?;
    }
    if calls.is_empty() {
        fields.shift_remove("tool_calls");
    }
    Ok(())
}

/// Checks a call's name and arguments; templates want the arguments as an object.
fn check_function(function: &mut Json, place: &str) -> Result<()> {
    let Json::Object(function) = function else {
        return Err(wrong(place, &format!("expected an object, got {}", brief(function))));
    };
    if !function.get("name").is_some_and(Json::is_string) {
        return Err(wrong(&format!("{place}.name"), "expected a function's name"));
    }
    match function.get_mut("arguments") {
        None | Some(Json::Null) => drop(function.insert("arguments".into(), Map::new().into())),
        Some(Json::Object(_)) => {}
        Some(arguments) => {
            let Json::String(text) = &*arguments else {
                let why = format!("expected a text of JSON, got {}", brief(arguments));
                return Err(wrong(&format!("{place}.arguments"), &why));
            };
            if text.trim().is_empty() {
                *arguments = Map::new().into();
            } else if let Ok(object @ Json::Object(_)) = serde_json::from_str(text) {
                *arguments = object;
            }
        }
    }
    Ok(())
}

/// Names a value of a request shortly.
fn brief(value: &Json) -> String {
    match value {
        Json::Array(_) => "a list".into(),
        Json::Object(_) => "an object".into(),
        Json::String(text) if text.is_empty() => "an empty text".into(),
        Json::String(text) => format!("`{}`", text.chars().take(40).collect::<String>()),
        scalar => scalar.to_string(),
    }
}
