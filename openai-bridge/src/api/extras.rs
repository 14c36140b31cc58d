//! Fields that only the engine behind a model knows.
//!
//! An engine that takes texts gets what its client set, all of it. A model that is computed here
//! refuses what would change its answer and is not understood.

use engine::Result;
use serde_json::Value as Json;

use super::Body;
use super::body::{get, refuse, wrong};
use crate::{TextBridge, profile};

/// Fields of vLLM and its kin, which other APIs than chat and completions have as well.
pub(super) const EXTENSIONS: [&str; 10] = [
    "add_special_tokens",
    "allowed_token_ids",
    "bad_words",
    "cache_salt",
    "chat_template",
    "documents",
    "mm_processor_kwargs",
    "priority",
    "use_beam_search",
    "vllm_xargs",
];

/// Fields that a door or the bridge has read itself, or writes itself.
const OWN: [&str; 7] =
    ["model", "messages", "prompt", "stream", "stream_options", "top_logprobs", "suffix"];

/// What would change the answer of a model that is computed here.
const REFUSED: [(&str, &str); 9] = [
    ("allowed_token_ids", "use `logit_bias` or `structured_outputs`"),
    ("bad_words", "use `logit_bias`"),
    ("chat_template", "the model has its own; `chat_template_kwargs` are for it"),
    ("documents", "put them into the messages"),
    ("logits_processors", "the server runs no code of clients"),
    ("mm_processor_kwargs", "the model reads text"),
    ("prompt_embeds", "send texts or tokens"),
    ("use_beam_search", "the model draws one token after the other"),
    ("vllm_xargs", "they are for engines of vLLM"),
];

/// Returns what an engine that takes texts is to be told beside the settings.
///
/// Errors: a field, by name, that another model would have to ignore. `has_special_tokens` says
/// whether its prompts begin with the model's own tokens.
pub(super) fn extras(bridge: &TextBridge, body: &Body, has_special_tokens: bool) -> Result<Body> {
    if !bridge.takes_texts() {
        refuse(body, &REFUSED)?;
        let adds = get(body, "add_special_tokens");
        return match adds.is_some_and(|adds| *adds != Json::Bool(has_special_tokens)) {
            true => Err(wrong("add_special_tokens", &format!("is always {has_special_tokens}"))),
            false => Ok(Body::new()),
        };
    }
    let is_extra = |(key, value): &(&String, &Json)| {
        let is_setting = profile::find(key).is_some() && *key != "documents";
        !value.is_null() && !is_setting && !OWN.contains(&key.as_str())
    };
    let extras = body.iter().filter(is_extra);
    Ok(extras.map(|(key, value)| (key.clone(), value.clone())).collect())
}

/// Keeps of the body of another API what a chat has too.
pub(super) fn retain(body: &mut Body) {
    body.retain(|key, _| profile::find(key).is_some() || EXTENSIONS.contains(&key.as_str()));
}
