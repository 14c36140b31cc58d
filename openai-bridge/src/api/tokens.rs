//! Tokenize and detokenize, as vLLM has them.

use engine::Result;
use serde_json::{Value as Json, json};

use super::Body;
use super::body::{self, get, wrong};
use crate::completion::Prompts;
use crate::settings::Settings;
use crate::{Now, TextBridge};

/// Answers a call for the tokens of a `prompt`, or of `messages` as the template renders them.
///
/// Errors: a field that is wrong, by name; a text that cannot fit into the context.
pub fn tokenize(bridge: &TextBridge, body: &Body, now: Now) -> Result<Json> {
    let has_bos = body::flag(body, "add_special_tokens")?;
    let tokens = match (body::text(body, "prompt")?, get(body, "messages")) {
        (Some(text), None) => bridge.tokenize(text, has_bos.unwrap_or(true))?,
        (None, Some(Json::Array(messages))) => {
            let settings = Settings::of_body(&template_fields(body))?;
            settings.check(1)?;
            let chats = bridge.chats(&settings, vec![messages.clone()])?;
            let text = bridge.rendered(&chats, now)?;
            bridge.tokenize_rendered(&text, has_bos.unwrap_or(false))?
        }
        (None, Some(other)) => {
            let why = format!("expected a list of messages, got {}", body::kind(other));
            return Err(wrong("messages", &why));
        }
        (Some(_), Some(_)) => return Err(wrong("prompt", "expected it or `messages`, got both")),
        (None, None) => return Err(wrong("prompt", "expected it or `messages`, got neither")),
    };
    let mut answer = json!({
        "count": tokens.len(),
        "max_model_len": bridge.context_length(),
        "tokens": tokens,
    });
    if body::flag(body, "return_token_strs")?.unwrap_or(false) {
        answer["token_strs"] = tokens.iter().map(|&token| bridge.token_text(token)).collect();
    }
    Ok(answer)
}

/// Answers a call for the text of tokens.
///
/// Errors: `tokens` is no list of token ids.
pub fn detokenize(bridge: &TextBridge, body: &Body) -> Result<Json> {
    match get(body, "tokens") {
        Some(Json::Array(list)) => {
            let tokens = body::tokens(list, "tokens")?;
            if let Some(token) = tokens.iter().find(|&&token| !bridge.knows(token)) {
                return Err(wrong("tokens", &format!("{token} is not in the vocabulary")));
            }
            Ok(json!({"prompt": bridge.whole_text(&tokens)}))
        }
        Some(other) => {
            let why = format!("expected a list of token ids, got {}", body::kind(other));
            Err(wrong("tokens", &why))
        }
        None => Err(wrong("tokens", "is missing")),
    }
}

/// Answers what is known of a model's tokenizer, under the names of Hugging Face's configuration.
///
/// Errors: the tokenizer is not here.
pub fn info(bridge: &TextBridge) -> Result<Json> {
    if bridge.takes_texts() {
        let text = "the tokenizer is not known here: the model's workers take texts";
        return Err(wrong("model", text));
    }
    let (template, specials) = bridge.tokenizer_facts();
    let mut info = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": bridge.context_length(),
        "chat_template": template,
    });
    for (name, token) in ["bos_token", "eos_token"].iter().zip(specials) {
        info[*name] = token.map_or(Json::Null, |token| bridge.token_text(token).into());
        info[format!("{name}_id")] = token.into();
    }
    // Whoever pads a batch of texts needs some token; what it is has no effect.
    info["pad_token"] = info["eos_token"].clone();
    info["pad_token_id"] = info["eos_token_id"].clone();
    Ok(info)
}

/// Returns what of a body a template can see.
fn template_fields(body: &Body) -> Body {
    let fields = [
        "tools",
        "tool_choice",
        "chat_template_kwargs",
        "reasoning_effort",
        "add_generation_prompt",
        "continue_final_message",
    ];
    let kept = body.iter().filter(|(key, _)| fields.contains(&key.as_str()));
    kept.map(|(key, value)| (key.clone(), value.clone())).collect()
}

impl TextBridge {
    /// Returns the text of a chat, as its template renders it.
    pub(crate) fn rendered(&self, prompts: &Prompts, now: Now) -> Result<String> {
        match prompts {
            Prompts::Chats(chats) => match chats.first() {
                Some(chat) => self.render(chat, now),
                None => Ok(String::new()),
            },
            _ => Ok(String::new()),
        }
    }
}
