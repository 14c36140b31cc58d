//! The tools of a chat and which of them has to be called; the constraint that makes it so.

use std::collections::HashMap;
use std::sync::Arc;

use engine::{Constraint, Error, Result};
use serde_json::{Map, Value as Json, json};

use crate::settings::Settings;

/// Most tools of one request, as in the OpenAI API.
const MAX_TOOLS: usize = 128;

/// Longest name of a tool, as in the OpenAI API.
const MAX_NAME: usize = 64;

/// Most calls of one answer that has to call, when nothing is said.
pub(crate) const DEFAULT_MAX_CALLS: u32 = 16;

/// What a chat offers to call.
#[derive(Clone, Debug)]
pub(crate) struct Tools {
    /// In the form of the Chat Completions API, which templates know.
    pub all: Vec<Json>,
    /// The JSON Schema of each tool's arguments.
    pub schemas: Arc<HashMap<String, Json>>,
    pub choice: Choice,
    /// More than one call at once is welcome.
    pub is_parallel: bool,
    /// Most calls of an answer whose calls are held to a form, at least 1.
    pub max_calls: u32,
}

/// What has to be called.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum Choice {
    /// Nothing.
    #[default]
    None,
    /// What the model likes.
    Auto,
    /// At least one tool.
    Required,
    /// This one.
    Named(String),
}

impl Tools {
    /// Reads `tools`, `tool_choice` and `parallel_tool_calls`.
    ///
    /// Errors: what is no tool or no choice among them, by place.
    pub(crate) fn read(settings: &Settings) -> Result<Self> {
        let given = match settings.structure("tools") {
            None => &[][..],
            Some(Json::Array(tools)) => tools,
            Some(_) => return Err(settings.wrong("tools", "expected a list of tools")),
        };
        if given.len() > MAX_TOOLS {
            let why = format!("expected at most {MAX_TOOLS} tools, got {}", given.len());
            return Err(settings.wrong("tools", &why));
        }
        let mut all = given.iter().enumerate().map(tool).collect::<Result<Vec<_>>>()?;
        let choice = match settings.structure("tool_choice") {
            None if all.is_empty() => Choice::None,
            None => Choice::Auto,
            Some(Json::String(word)) if all.is_empty() && word == "none" => Choice::None,
            Some(_) if all.is_empty() => {
                let why = "is only allowed when `tools` are specified";
                return Err(settings.wrong("tool_choice", why));
            }
            Some(choice) => {
                choose(choice, &mut all).map_err(|why| settings.wrong("tool_choice", &why))?
            }
        };
        let choice = if all.is_empty() { Choice::None } else { choice };
        let schema = |tool: &Json| {
            let function = &tool["function"];
            (name(tool).to_owned(), function.get("parameters").cloned().unwrap_or(json!({})))
        };
        let schemas = Arc::new(all.iter().map(schema).collect());
        let is_parallel = settings.flag("parallel_tool_calls").unwrap_or(true);
        Ok(Self { all, schemas, choice, is_parallel, max_calls: DEFAULT_MAX_CALLS })
    }

    /// Returns about how many bytes the tools have.
    pub(crate) fn size(&self) -> usize {
        self.all.iter().map(size).sum()
    }

    /// Returns what the text has to look like so that the right tool is called; none if the model
    /// is free. The text is the arguments of the named tool, or a list of calls.
    pub(crate) fn constraint(&self) -> Option<Constraint> {
        let schema = match &self.choice {
            Choice::None | Choice::Auto => return None,
            Choice::Named(name) => arguments(self.schemas.get(name)?),
            Choice::Required => self.calls("parameters"),
        };
        Some(Constraint::JsonSchema(schema.to_string()))
    }

    /// Returns how many calls there may be.
    pub(crate) fn most_calls(&self) -> u32 {
        if self.is_parallel { self.max_calls.max(1) } else { 1 }
    }

    /// Returns the schema of a list of calls, whose arguments are found under `key`.
    pub(crate) fn calls(&self, key: &str) -> Json {
        let mut call = self.call(key);
        let definitions = call.as_object_mut().and_then(|call| call.remove("$defs"));
        let mut schema = json!({"type": "array", "minItems": 1, "items": call});
        schema["maxItems"] = self.most_calls().into();
        if let Some(definitions) = definitions {
            schema["$defs"] = definitions;
        }
        schema
    }

    /// Returns the schema of one call, whose arguments are found under `key`.
    pub(crate) fn call(&self, key: &str) -> Json {
        let mut definitions = Map::new();
        let call = |(index, tool): (usize, &Json)| {
            let name = name(tool);
            let mut schema = self.schemas.get(name).map_or(json!({}), arguments);
            hoist(&mut schema, &format!("t{index}_"), &mut definitions);
            json!({
                "type": "object",
                "properties": {"name": {"const": name}, key: schema},
                "required": ["name", key],
                "additionalProperties": false,
            })
        };
        let calls: Vec<Json> = self.all.iter().enumerate().map(call).collect();
        let mut schema = json!({"anyOf": calls});
        if !definitions.is_empty() {
            schema["$defs"] = Json::Object(definitions);
        }
        schema
    }
}

/// Returns the name of a checked tool.
pub(crate) fn name(tool: &Json) -> &str {
    tool["function"]["name"].as_str().unwrap_or_default()
}

/// A tool without parameters takes an empty object.
fn arguments(schema: &Json) -> Json {
    match schema.as_object() {
        Some(object) if !object.is_empty() => schema.clone(),
        _ => json!({"type": "object", "properties": {}, "additionalProperties": false}),
    }
}

/// Moves a schema's definitions to a common place under names of their own.
fn hoist(schema: &mut Json, prefix: &str, definitions: &mut Map<String, Json>) {
    rename(schema, prefix);
    for key in ["$defs", "definitions"] {
        let Some(Json::Object(own)) = schema.as_object_mut().and_then(|all| all.remove(key)) else {
            continue;
        };
        definitions.extend(own.into_iter().map(|(name, value)| (format!("{prefix}{name}"), value)));
    }
}

fn rename(value: &mut Json, prefix: &str) {
    match value {
        Json::Array(all) => all.iter_mut().for_each(|one| rename(one, prefix)),
        Json::Object(all) => {
            for (key, one) in all {
                match one {
                    Json::String(path) if key == "$ref" => {
                        let path_of = |root| path.strip_prefix(root);
                        let name = path_of("#/$defs/").or(path_of("#/definitions/"));
                        if let Some(name) = name {
                            *path = format!("#/$defs/{prefix}{name}");
                        }
                    }
                    one => rename(one, prefix),
                }
            }
        }
        _ => {}
    }
}

/// Checks a tool and brings it to the form of the Chat Completions API; the Responses API has
/// the function's fields beside the type.
fn tool((index, tool): (usize, &Json)) -> Result<Json> {
    let wrong = |field: &str, why: &str| {
        let place = format!("tools[{index}]{field}");
        Error::invalid(format!("`{place}`: {why}")).with_param(place)
    };
    let object = tool.as_object().ok_or_else(|| wrong("", "expected an object"))?;
    match object.get("type").and_then(Json::as_str) {
        Some("function") => {}
        Some(kind) => {
            return Err(wrong(".type", &format!("`{kind}` tools are not served; `function` is")));
        }
        None => return Err(wrong(".type", "expected `function`")),
    }
    let (function, place) = match object.get("function") {
        Some(Json::Object(function)) => (function.clone(), ".function"),
        Some(_) => return Err(wrong(".function", "expected an object")),
        None => {
            let mut function = object.clone();
            function.remove("type");
            (function, "")
        }
    };
    let is_letter = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    match function.get("name").and_then(Json::as_str) {
        Some(name) if (1..=MAX_NAME).contains(&name.len()) && name.chars().all(is_letter) => {}
        _ => {
            let why = "expected 1 to 64 letters, digits, `_`, `-` or `.`";
            return Err(wrong(&format!("{place}.name"), why));
        }
    }
    match function.get("parameters") {
        None | Some(Json::Null | Json::Object(_)) => {}
        Some(_) => {
            return Err(wrong(&format!("{place}.parameters"), "expected a JSON Schema, an object"));
        }
    }
    Ok(json!({"type": "function", "function": function}))
}

/// Reads a choice; `allowed_tools` takes the others away.
fn choose(choice: &Json, all: &mut Vec<Json>) -> std::result::Result<Choice, String> {
    let mode = |word: &str| match word {
        "none" => Ok(Choice::None),
        "auto" => Ok(Choice::Auto),
        // Anthropic's and Mistral's word for it.
        "required" | "any" => Ok(Choice::Required),
        other => Err(format!("expected none, auto, required or a function, got `{other}`")),
    };
    let named = |value: &Json| {
        let name = value.get("function").unwrap_or(value).get("name").and_then(Json::as_str);
        let name = name.ok_or("expected {\"type\": \"function\", \"function\": {\"name\": …}}")?;
        match all.iter().any(|tool| self::name(tool) == name) {
            true => Ok::<_, String>(name.to_owned()),
            false => Err(format!("`{name}` is not one of the tools")),
        }
    };
    let kind = match choice {
        Json::String(word) => return mode(word),
        choice => choice.get("type").and_then(Json::as_str).unwrap_or_default(),
    };
    match kind {
        "function" => named(choice).map(Choice::Named),
        "allowed_tools" => {
            let allowed = choice.get("allowed_tools").unwrap_or(choice);
            let listed = allowed.get("tools").and_then(Json::as_array);
            let listed = listed.ok_or("`allowed_tools` needs a list of `tools`")?;
            let names = listed.iter().map(named).collect::<std::result::Result<Vec<_>, _>>()?;
            let word = allowed.get("mode").and_then(Json::as_str).unwrap_or("auto");
            let choice = mode(word)?;
            all.retain(|tool| names.iter().any(|name| name == self::name(tool)));
            Ok(choice)
        }
        _ => Err("expected none, auto, required or a function".to_owned()),
    }
}

/// Returns about how much text a JSON value holds.
pub(crate) fn size(value: &Json) -> usize {
    match value {
        Json::String(text) => text.len(),
        Json::Array(all) => all.iter().map(size).sum(),
        Json::Object(all) => all.iter().map(|(key, value)| key.len() + size(value)).sum(),
        _ => 4,
    }
}

#[cfg(test)]
mod tests;
