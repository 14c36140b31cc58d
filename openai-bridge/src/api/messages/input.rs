//! The body of a message in the words of a chat.

use engine::{Error, Result};
use serde_json::{Map, Value as Json, json};

use super::super::Body;
use super::super::body::{self, get, wrong};
use super::super::extras;
use super::super::turns::Turns;

/// Fields of the API that cannot be honoured.
const REFUSED: [(&str, &str); 2] =
    [("container", "the server runs no code"), ("mcp_servers", "the server calls no tools")];

/// The code on which Anthropic's clients send the whole conversation themselves.
const THREAD_UNSUPPORTED: &str = "thread_unsupported_request";

/// Fields that have another name in a chat, or no meaning there; a message has one answer.
const TAKEN: [&str; 15] = [
    "best_of",
    "logprobs",
    "max_completion_tokens",
    "messages",
    "metadata",
    "n",
    "output_config",
    "response_format",
    "stop_sequences",
    "system",
    "thinking",
    "tool_choice",
    "tools",
    "top_logprobs",
    "truncate_prompt_tokens",
];

/// Makes the body of the chat that a message is.
///
/// Errors: a field that is wrong or cannot be honoured, by name.
pub(super) fn chat(mut body: Body) -> Result<Body> {
    body::refuse(&body, &REFUSED)?;
    if get(&body, "thread").is_some() {
        let why = "is not supported: the server keeps no threads; send all messages without it";
        return Err(wrong("thread", why).with_code(THREAD_UNSUPPORTED));
    }
    body::number(&body, "max_tokens", 1..=i32::MAX as u64)?;
    body::number(&body, "top_k", 0..=i32::MAX as u64)?;
    if let Some(value) = get(&body, "temperature")
        && !value.as_f64().is_some_and(|value| (0.0..=1.0).contains(&value))
    {
        let got = if value.is_number() { value.to_string() } else { body::kind(value).to_owned() };
        let why = format!("expected a number from 0 to 1, got {got}");
        return Err(wrong("temperature", &why));
    }
    let mut chat = Body::new();
    let continues = messages(&body, &mut chat)?;
    if continues {
        chat.insert("continue_final_message".into(), true.into());
    }
    tools(&body, &mut chat)?;
    thinking(&body, &mut chat)?;
    output_config(&body, &mut chat)?;
    if let Some(stops) = get(&body, "stop_sequences") {
        let is_list = matches!(stops, Json::Array(all) if all.iter().all(Json::is_string));
        if !is_list {
            return Err(wrong("stop_sequences", "expected a list of texts"));
        }
        chat.insert("stop".into(), stops.clone());
    }
    body.retain(|key, _| !TAKEN.contains(&key.as_str()));
    extras::retain(&mut body);
    body.append(&mut chat);
    Ok(body)
}

/// Brings an error about a chat to the names that this API has.
pub(super) fn in_own_words(error: Error) -> Error {
    let names = [("stop", "stop_sequences"), ("response_format", "output_config.format")];
    body::renamed(error, &names)
}

/// Reads the conversation; returns whether the answer goes on with its last message.
fn messages(body: &Body, chat: &mut Body) -> Result<bool> {
    let list = match get(body, "messages") {
        Some(Json::Array(list)) if !list.is_empty() => list,
        Some(Json::Array(_)) => {
            return Err(wrong("messages", "expected at least 1 message, got 0"));
        }
        None => return Err(wrong("messages", "is missing")),
        Some(other) => {
            let why = format!("expected a list of messages, got {}", body::kind(other));
            return Err(wrong("messages", &why));
        }
    };
    let mut turns = Turns::default();
    if let Some(system) = get(body, "system") {
        turns.say("system", texts(system, "system")?);
    }
    let mut has_said = false;
    for (index, message) in list.iter().enumerate() {
        let place = format!("messages.{index}");
        let role = match message["role"].as_str() {
            Some(role @ ("user" | "assistant" | "system")) => role,
            _ => return Err(wrong(&format!("{place}.role"), "expected user or assistant")),
        };
        has_said = match &message["content"] {
            Json::String(text) => {
                turns.go_on(role, text);
                role == "assistant"
            }
            Json::Array(blocks) => {
                let mut is_text = false;
                for (number, block) in blocks.iter().enumerate() {
                    is_text = add(&mut turns, role, block, &format!("{place}.content.{number}"))?;
                }
                role == "assistant" && is_text
            }
            other => {
                let why = format!("expected a text or a list of blocks, got {}", body::kind(other));
                return Err(wrong(&format!("{place}.content"), &why));
            }
        };
    }
    chat.insert("messages".into(), turns.finish().into());
    Ok(has_said)
}

/// Adds a block of a message; returns whether it is text.
fn add(turns: &mut Turns, role: &str, block: &Json, place: &str) -> Result<bool> {
    let text = |field: &str| {
        block[field].as_str().ok_or_else(|| wrong(&format!("{place}.{field}"), "expected a text"))
    };
    let kind = text("type")?;
    match (role, kind) {
        (_, "text") => turns.go_on(role, text("text")?),
        ("assistant", "thinking") => turns.think(text("thinking")?),
        // What only its maker can read.
        ("assistant", "redacted_thinking") => {}
        ("assistant", "tool_use") => {
            let input = &block["input"];
            if !input.is_object() {
                return Err(wrong(&format!("{place}.input"), "expected an object"));
            }
            turns.call(text("id")?, text("name")?, &input.to_string());
        }
        ("user", "tool_result") => {
            let content = match &block["content"] {
                Json::Null => String::new(),
                content => texts(content, &format!("{place}.content"))?,
            };
            let has_failed = block["is_error"] == true;
            let content = if has_failed { format!("Error: {content}") } else { content };
            turns.result(text("tool_use_id")?, content);
        }
        (_, kind) => {
            let why = format!("a block of type `{kind}` is not for this model from the {role}");
            return Err(wrong(&format!("{place}.type"), &why));
        }
    }
    Ok(kind == "text")
}

/// Returns the text of a text or of blocks that are texts.
fn texts(value: &Json, place: &str) -> Result<String> {
    let blocks = match value {
        Json::String(text) => return Ok(text.clone()),
        Json::Array(blocks) => blocks,
        other => {
            let why = format!("expected a text or a list of blocks, got {}", body::kind(other));
            return Err(wrong(place, &why));
        }
    };
    let text = |(index, block): (usize, &Json)| match (block["type"].as_str(), &block["text"]) {
        (Some("text"), Json::String(text)) => Ok(text.clone()),
        (Some(kind), _) if kind != "text" => {
            let why = format!("a block of type `{kind}` is not for this model; it takes text");
            Err(wrong(&format!("{place}.{index}.type"), &why))
        }
        _ => {
            let why = "expected a block {\"type\": \"text\", \"text\": …}";
            Err(wrong(&format!("{place}.{index}"), why))
        }
    };
    let all = blocks.iter().enumerate().map(text).collect::<Result<Vec<_>>>()?;
    Ok(all.join("\n"))
}

fn tools(body: &Body, chat: &mut Body) -> Result<()> {
    match get(body, "tools") {
        None => {}
        Some(Json::Array(all)) => {
            let tools = all.iter().enumerate().map(tool).collect::<Result<Vec<_>>>()?;
            chat.insert("tools".into(), tools.into());
        }
        Some(_) => return Err(wrong("tools", "expected a list of tools")),
    }
    let Some(choice) = get(body, "tool_choice") else {
        return Ok(());
    };
    let word = match choice["type"].as_str() {
        Some(word @ ("auto" | "none")) => json!(word),
        Some("any") => json!("required"),
        Some("tool") => match choice["name"].as_str() {
            Some(name) => json!({"type": "function", "function": {"name": name}}),
            None => return Err(wrong("tool_choice.name", "expected a text")),
        },
        _ => return Err(wrong("tool_choice.type", "expected auto, any, tool or none")),
    };
    chat.insert("tool_choice".into(), word);
    match &choice["disable_parallel_tool_use"] {
        Json::Null => {}
        Json::Bool(is_single) => {
            chat.insert("parallel_tool_calls".into(), (!is_single).into());
        }
        _ => return Err(wrong("tool_choice.disable_parallel_tool_use", "expected a bool")),
    }
    Ok(())
}

fn tool((index, tool): (usize, &Json)) -> Result<Json> {
    let place = format!("tools.{index}");
    match &tool["type"] {
        Json::Null => {}
        Json::String(kind) if kind == "custom" => {}
        kind => {
            let why = format!("{kind} is not served; tools of the client's own are");
            return Err(wrong(&format!("{place}.type"), &why));
        }
    }
    if !tool["input_schema"].is_object() {
        let why = "expected a JSON Schema, an object";
        return Err(wrong(&format!("{place}.input_schema"), why));
    }
    let mut function = Map::new();
    for (own, name) in
        [("name", "name"), ("description", "description"), ("input_schema", "parameters")]
    {
        if let Some(value) = tool.get(own).filter(|value| !value.is_null()) {
            function.insert(name.into(), value.clone());
        }
    }
    Ok(json!({"type": "function", "function": function}))
}

/// Reads whether the model is to think, which its template has to be told.
fn thinking(body: &Body, chat: &mut Body) -> Result<()> {
    let Some(thinking) = get(body, "thinking") else {
        return Ok(());
    };
    let thinks = match thinking["type"].as_str() {
        Some("enabled" | "adaptive" | "between_tools") => true,
        Some("disabled") => false,
        _ => return Err(wrong("thinking.type", "expected enabled, disabled or adaptive")),
    };
    let budget = &thinking["budget_tokens"];
    if !budget.is_null() && matches!(budget.as_u64(), None | Some(0)) {
        return Err(wrong("thinking.budget_tokens", "expected a whole number above 0"));
    }
    let mut arguments = match get(body, "chat_template_kwargs") {
        Some(Json::Object(arguments)) => arguments.clone(),
        _ => Map::new(),
    };
    arguments.entry("enable_thinking").or_insert(thinks.into());
    arguments.entry("thinking").or_insert(thinks.into());
    chat.insert("chat_template_kwargs".into(), arguments.into());
    Ok(())
}

fn output_config(body: &Body, chat: &mut Body) -> Result<()> {
    let Some(config) = get(body, "output_config") else {
        return Ok(());
    };
    if !config.is_object() {
        return Err(wrong("output_config", "expected an object"));
    }
    match &config["effort"] {
        Json::Null => {}
        // The words end one earlier elsewhere.
        Json::String(word) if word == "max" => {
            chat.insert("reasoning_effort".into(), "xhigh".into());
        }
        word => {
            chat.insert("reasoning_effort".into(), word.clone());
        }
    }
    if !config["format"].is_null() {
        chat.insert("response_format".into(), config["format"].clone());
    }
    Ok(())
}
