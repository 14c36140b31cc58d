//! A chat as one request: its conversation, its tools, and what its template does not know.

use engine::{Error, Result};
use serde_json::{Map, Value as Json, json};

use crate::settings::Settings;
use crate::template::{Conversation, Template};
use crate::tools::{Choice, Tools, name, size};

/// A conversation and what may be called in its answer.
#[derive(Clone, Debug)]
pub(crate) struct Chat {
    pub conversation: Conversation,
    pub tools: Tools,
    /// Bytes of its messages, about.
    pub size: usize,
}

impl Chat {
    /// Makes a chat of messages; without a template it is for an engine that takes texts.
    ///
    /// Errors: messages, tools or template arguments that are none, by place.
    pub(crate) fn new(
        settings: &Settings,
        mut messages: Vec<Json>,
        tools: &Tools,
        template: Option<&Template>,
    ) -> Result<Self> {
        let knows_tools = template.is_none_or(Template::knows_tools);
        let offered = match tools.choice {
            Choice::None => &[][..],
            _ => &tools.all,
        };
        if !knows_tools {
            spell_out(&mut messages, offered);
        }
        let size =
            messages.iter().map(size).sum::<usize>() + offered.iter().map(size).sum::<usize>();
        let mut conversation = match template {
            Some(_) => Conversation::new(messages)?,
            None => Conversation::of_any_parts(messages)?,
        };
        if knows_tools {
            conversation.tools = offered.to_vec();
        }
        conversation.kwargs = kwargs(settings)?;
        let continues = settings.flag("continue_final_message").unwrap_or(false);
        conversation.continue_final_message = continues;
        conversation.add_generation_prompt =
            settings.flag("add_generation_prompt").unwrap_or(!continues);
        if continues && conversation.add_generation_prompt {
            let why = "cannot be true together with `add_generation_prompt`";
            return Err(settings.wrong("continue_final_message", why));
        }
        Ok(Self { conversation, tools: tools.clone(), size })
    }
}

/// Reads what the template gets besides the messages.
fn kwargs(settings: &Settings) -> Result<Map<String, Json>> {
    let mut kwargs = match settings.structure("chat_template_kwargs") {
        None => Map::new(),
        Some(Json::Object(kwargs)) => kwargs.clone(),
        Some(_) => return Err(settings.wrong("chat_template_kwargs", "expected an object")),
    };
    if let Some(effort) = settings.word("reasoning_effort") {
        let known = ["none", "minimal", "low", "medium", "high", "xhigh"];
        if !known.contains(&effort) {
            let why = format!("expected one of {}, got `{effort}`", known.join(", "));
            return Err(settings.wrong("reasoning_effort", &why));
        }
        // Templates that can leave thinking out ask for a switch, others for the word.
        if effort == "none" {
            kwargs.entry("enable_thinking").or_insert(Json::Bool(false));
            kwargs.entry("thinking").or_insert(Json::Bool(false));
        }
        kwargs.entry("reasoning_effort").or_insert_with(|| effort.into());
    }
    Ok(kwargs)
}

/// Writes tools, calls and their results into the texts of a conversation whose template does
/// not know of them, in the words of Hermes, which most models have seen.
fn spell_out(messages: &mut Vec<Json>, tools: &[Json]) {
    for message in messages.iter_mut() {
        let Json::Object(fields) = message else { continue };
        flatten(fields);
        if let Some(Json::Array(calls)) = fields.get("tool_calls").cloned() {
            fields.remove("tool_calls");
            let mut text = fields.get("content").and_then(Json::as_str).unwrap_or("").to_owned();
            for call in &calls {
                let function = &call["function"];
                let given = function["arguments"].as_str();
                let arguments = given.and_then(|text| serde_json::from_str::<Json>(text).ok());
                let arguments = arguments.unwrap_or_else(|| function["arguments"].clone());
                let call = json!({"name": function["name"], "arguments": arguments});
                text.push_str(&format!("\n<tool_call>\n{call}\n</tool_call>"));
            }
            fields.insert("content".into(), text.trim_start().into());
        }
        if fields.get("role").and_then(Json::as_str) == Some("tool")
            && let Some(text) = fields.get("content").and_then(Json::as_str)
        {
            let text = format!("<tool_response>\n{text}\n</tool_response>");
            fields.insert("content".into(), text.into());
            fields.insert("role".into(), "user".into());
        }
    }
    if tools.is_empty() {
        return;
    }
    let lines: String = tools.iter().map(|tool| format!("{tool}\n")).collect();
    let names: Vec<&str> = tools.iter().map(name).collect();
    let text = format!(
        "You can call these functions: {}. Their signatures:\n<tools>\n{lines}</tools>\n\
         To call one, answer with its name and arguments as JSON:\n\
         <tool_call>\n{{\"name\": <name>, \"arguments\": <object>}}\n</tool_call>",
        names.join(", ")
    );
    let system = messages.first_mut().filter(|message| {
        matches!(message["role"].as_str(), Some("system" | "developer"))
            && message["content"].is_string()
    });
    match system {
        Some(message) => {
            let own = message["content"].as_str().unwrap_or_default();
            message["content"] = format!("{own}\n\n{text}").into();
        }
        None => messages.insert(0, json!({"role": "system", "content": text})),
    }
}

/// Joins a content of text parts to one text; other parts stay, and are refused later.
fn flatten(fields: &mut Map<String, Json>) {
    let Some(Json::Array(parts)) = fields.get("content") else { return };
    let text = |part: &Json| match part["type"].as_str() {
        Some("text") => part["text"].as_str().map(str::to_owned),
        _ => None,
    };
    if let Some(text) = parts.iter().map(text).collect::<Option<String>>() {
        fields.insert("content".into(), text.into());
    }
}

/// Reads a conversation out of JSON text, as a tensor holds it.
///
/// Errors: text that is no JSON list.
pub(crate) fn messages(text: &str) -> Result<Vec<Json>> {
    let wrong = |why: String| Error::invalid(format!("input `messages`: {why}"));
    match serde_json::from_str(text) {
        Ok(Json::Array(messages)) => Ok(messages),
        Ok(_) => Err(wrong("expected a JSON array of messages".into())),
        Err(error) => Err(wrong(error.to_string())),
    }
}
