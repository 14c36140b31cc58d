//! What a template can read: contents as text or as parts, null, the role `developer`.
//!
//! It is found out once for each template by rendering short conversations, because a look at the
//! source would have to understand macros and set variables.

use serde_json::{Value as Json, json};

use super::conversation::text_part;

/// Stands in a content to be found again.
const NEEDLE: &str = "Needle 7";

/// How a template wants the contents of one role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// It reads texts and lists of parts.
    Either,
    /// It reads texts.
    Text,
    /// It reads lists of parts.
    Parts,
}

/// What a template can read.
#[derive(Clone, Debug)]
pub(super) struct Forms {
    system: Form,
    user: Form,
    assistant: Form,
    tool: Form,
    reads_null: bool,
    knows_developer: bool,
}

impl Forms {
    /// Finds out what a template can read; `render` renders messages or fails.
    pub(super) fn of(source: &str, render: impl Fn(&[Json]) -> Option<String>) -> Self {
        let user = json!({"role": "user", "content": "hello"});
        let mut call = json!({"role": "assistant", "content": "", "tool_calls": [{
            "id": "abcdefghi",
            "type": "function",
            "function": {"name": "find", "arguments": {"x": "y"}},
        }]});
        let form = |role: &str, before: &[&Json], after: &[&Json]| {
            let rendered = |content: Json| {
                let mut messages: Vec<Json> = before.iter().copied().cloned().collect();
                let mut message = json!({"role": role, "content": content});
                if role == "tool" {
                    message["tool_call_id"] = "abcdefghi".into();
                    message["name"] = "find".into();
                }
                messages.push(message);
                messages.extend(after.iter().copied().cloned());
                render(&messages).filter(|text| text.contains(NEEDLE))
            };
            let as_parts = rendered(Json::Array(vec![text_part(NEEDLE.into())]));
            match (rendered(NEEDLE.into()), as_parts) {
                (Some(text), Some(parts)) if text == parts => Form::Either,
                (None, Some(parts)) if !has_syntax(&parts) => Form::Parts,
                _ => Form::Text,
            }
        };
        let (system, asked) = (form("system", &[], &[&user]), form("user", &[], &[]));
        let assistant = form("assistant", &[&user], &[&user]);
        let tool = form("tool", &[&user, &call], &[]);
        call["content"] = Json::Null;
        let answer = json!({"role": "tool", "tool_call_id": "abcdefghi", "content": "z"});
        let with_null = render(&[user.clone(), call, answer]);
        Self {
            system,
            user: asked,
            assistant,
            tool,
            reads_null: with_null.is_some_and(|text| !text.contains("None")),
            knows_developer: source.contains("developer"),
        }
    }

    /// Returns the messages as the template can read them.
    pub(super) fn adapt(&self, messages: &[Json]) -> Vec<Json> {
        messages.iter().map(|message| self.adapted(message)).collect()
    }

    fn adapted(&self, message: &Json) -> Json {
        let mut message = message.clone();
        let Json::Object(fields) = &mut message else { return message };
        let mut form = Form::Text;
        if let Some(Json::String(role)) = fields.get_mut("role") {
            if role == "developer" && !self.knows_developer {
                "system".clone_into(role);
            }
            form = self.form(role);
        }
        let has_calls = fields.contains_key("tool_calls") || fields.contains_key("function_call");
        if let Some(content) = fields.get_mut("content") {
            let given = std::mem::take(content);
            *content = match (given, form) {
                (Json::Null, _) if has_calls && self.reads_null => Json::Null,
                (Json::Null, _) => String::new().into(),
                (Json::Array(parts), Form::Text) => joined(&parts).into(),
                (Json::String(text), Form::Parts) => Json::Array(vec![text_part(text)]),
                (given, _) => given,
            };
        }
        // One thing, three names: as `transformers` fills them in.
        let names = ["reasoning_content", "thinking", "reasoning"];
        if let Some(reasoning) = names.iter().find_map(|name| fields.get(*name)).cloned() {
            if !fields.contains_key("thinking") {
                fields.shift_insert(0, "thinking".into(), reasoning.clone());
            }
            fields.insert("reasoning_content".into(), reasoning);
        }
        message
    }

    fn form(&self, role: &str) -> Form {
        match role {
            "system" | "developer" => self.system,
            "user" => self.user,
            "assistant" => self.assistant,
            "tool" => self.tool,
            _ => Form::Text,
        }
    }
}

/// Returns whether a text shows a list of parts as Python or JSON writes it.
fn has_syntax(text: &str) -> bool {
    text.contains("'text': '") || text.contains("\"text\": \"") || text.contains("\"text\":\"")
}

fn joined(parts: &[Json]) -> String {
    parts.iter().filter_map(|part| part.get("text").and_then(Json::as_str)).collect()
}
