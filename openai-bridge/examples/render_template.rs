//! Renders chat templates: JSON lines in, JSON lines out, for `tests/clients/test_templates.py`.
//!
//! In: `template`, `bos`, `eos`, `messages`, `tools`, `documents`, `kwargs`,
//! `add_generation_prompt`, `continue_final_message`, `now` (seconds since 1970). Out: `text` or
//! `error`, and `messages`, which are the messages as the template got them.

use std::collections::HashMap;
use std::io::{BufRead, Write};

use engine::{Error, Result};
use openai_bridge::{Conversation, Now, Template};
use serde_json::{Value as Json, json};

fn main() -> std::io::Result<()> {
    let mut templates = HashMap::new();
    let mut out = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let answer = render(&mut templates, &line?)
            .unwrap_or_else(|error| json!({"error": error.message(), "param": error.param()}));
        writeln!(out, "{answer}")?;
        out.flush()?;
    }
    Ok(())
}

fn render(templates: &mut HashMap<String, Template>, line: &str) -> Result<Json> {
    let mut case: Json =
        serde_json::from_str(line).map_err(|error| Error::invalid(error.to_string()))?;
    let text = |name: &str| case[name].as_str().unwrap_or_default().to_owned();
    let source = text("template");
    if !templates.contains_key(&source) {
        let template = Template::new(source.clone(), text("bos"), text("eos"))?;
        templates.insert(source.clone(), template);
    }
    let flag = |name: &str| case[name].as_bool().unwrap_or_default();
    let (add_generation_prompt, continue_final_message) =
        (flag("add_generation_prompt"), flag("continue_final_message"));
    let now = Now::from_unix(case["now"].as_u64().unwrap_or_default());
    let mut list = |name: &str| match case[name].take() {
        Json::Array(items) => items,
        _ => Vec::new(),
    };
    let mut conversation = Conversation::new(list("messages"))?;
    conversation.tools = list("tools");
    conversation.documents = list("documents");
    conversation.add_generation_prompt = add_generation_prompt;
    conversation.continue_final_message = continue_final_message;
    if let Json::Object(kwargs) = case["kwargs"].take() {
        conversation.kwargs = kwargs;
    }
    let template = &templates[&source];
    let messages = template.adapt(&conversation);
    Ok(match template.render(&conversation, now) {
        Ok(text) => json!({"text": text, "messages": messages}),
        Err(error) => json!({"error": error.message(), "messages": messages}),
    })
}
