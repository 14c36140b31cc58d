//! The Responses API: items in, items out, told by events with names.
//!
//! A response is a chat in other words: items become messages, the chat's settings are found under
//! the names of this API, and the answer's blocks become items. Whether it is streamed or not, the
//! items are made by the same steps, so both forms agree.

mod input;
mod object;
mod offered;
mod write;

use engine::{Error, MAX_LOGPROBS, Result};
use serde_json::{Value as Json, json};

use super::blocks::Blocks;
use super::body::{self, get, wrong};
use super::chat;
use super::extras;
use super::{Asked, Body, Fold, Form, Stamp};
use crate::{Finish, TextBridge, TextOutput};
use offered::Offered;
use write::Writer;

pub use input::follow;

/// Fields of the API that cannot be honoured.
const REFUSED: [(&str, &str); 4] = [
    ("background", "a response is made while the client waits"),
    ("conversation", "use `previous_response_id`"),
    ("prompt", "the server keeps no prompts"),
    ("context_management", "the server shortens no conversations"),
];

/// Fields that have another name in a chat, or no meaning there; a response has one answer.
const TAKEN: [&str; 18] = [
    "include",
    "input",
    "instructions",
    "logprobs",
    "max_completion_tokens",
    "max_output_tokens",
    "max_tokens",
    "messages",
    "metadata",
    "n",
    "best_of",
    "previous_response_id",
    "reasoning",
    "response_format",
    "stream_options",
    "text",
    "top_logprobs",
    "truncation",
];

/// What `include` says for log-probabilities.
const LOGPROBS: &str = "message.output_text.logprobs";

/// Reads the body of a response, in whose `input` the items of the conversation so far already
/// stand: see [`follow`].
///
/// Errors: a field that is wrong or cannot be honoured, by name.
pub fn read(bridge: &TextBridge, mut body: Body, stamp: Stamp) -> Result<Asked> {
    body::refuse(&body, &REFUSED)?;
    truncation(&body)?;
    let is_streaming = body::flag(&body, "stream")?.unwrap_or(false);
    let is_kept = body::flag(&body, "store")?.unwrap_or(true);
    let head = object::new(&body, &stamp)?;
    let items = input::items(&mut body, &stamp)?;
    let offered = Offered::take(&mut body);
    let messages = input::messages(body::text(&body, "instructions")?, &items, &offered)?;
    let chat = chat_body(body, messages)?;
    let (mut completion, _) = chat::completion(bridge, chat).map_err(in_own_words)?;
    completion.name_format("text.format");
    let warning = offered.warning();
    let form = Responses {
        writer: Writer::new(stamp, is_streaming, offered),
        head,
        items: is_kept.then_some(items),
        blocks: Blocks::default(),
        fold: Fold::default(),
        has_begun: false,
        record: None,
    };
    Ok(Asked { completion, form: Box::new(form), is_streaming, warning })
}

fn truncation(body: &Body) -> Result<()> {
    match body::text(body, "truncation")? {
        None | Some("disabled") => Ok(()),
        Some("auto") => Err(wrong("truncation", "`auto` is not supported; `disabled` is")),
        Some(other) => Err(wrong("truncation", &format!("expected disabled, got `{other}`"))),
    }
}

/// Makes the body of the chat that a response is.
fn chat_body(mut body: Body, messages: Vec<Json>) -> Result<Body> {
    let max_tokens = body::number(&body, "max_output_tokens", 1..=i32::MAX as u64)?;
    let top = body::number(&body, "top_logprobs", 0..=u64::from(MAX_LOGPROBS))?;
    let has_logprobs = top.is_some_and(|top| top > 0) || includes_logprobs(&body)?;
    let effort = object::field(&body, "reasoning", "effort")?.cloned();
    let format = object::field(&body, "text", "format")?.cloned();
    body.retain(|key, _| !TAKEN.contains(&key.as_str()));
    extras::retain(&mut body);
    body.insert("messages".into(), messages.into());
    let mut set = |key: &str, value: Option<Json>| {
        if let Some(value) = value {
            body.insert(key.into(), value);
        }
    };
    set("max_completion_tokens", max_tokens.map(Json::from));
    set("logprobs", has_logprobs.then_some(Json::Bool(true)));
    set("top_logprobs", top.filter(|_| has_logprobs).map(Json::from));
    set("reasoning_effort", effort);
    set("response_format", format);
    Ok(body)
}

fn includes_logprobs(body: &Body) -> Result<bool> {
    match get(body, "include") {
        None => Ok(false),
        Some(Json::Array(all)) if all.iter().all(Json::is_string) => {
            Ok(all.iter().any(|one| one == LOGPROBS))
        }
        Some(_) => Err(wrong("include", "expected a list of texts")),
    }
}

/// Brings an error about a chat to the names that this API has.
fn in_own_words(error: Error) -> Error {
    let names = [
        ("messages", "input"),
        ("max_completion_tokens", "max_output_tokens"),
        ("response_format", "text.format"),
        ("reasoning_effort", "reasoning.effort"),
    ];
    body::renamed(error, &names)
}

/// The form of a response.
struct Responses {
    writer: Writer,
    /// The response object as it begins.
    head: Json,
    /// The items of the input, if they are to be kept.
    items: Option<Vec<Json>>,
    blocks: Blocks,
    /// What counts; texts are in the writer's items.
    fold: Fold,
    has_begun: bool,
    record: Option<Json>,
}

impl Responses {
    /// Returns the response object at its end.
    fn finished(&mut self, status: &str) -> Json {
        let mut response = self.head.clone();
        response["status"] = status.into();
        response["output"] = self.writer.take_output().into();
        let usage = self.fold.usage();
        response["usage"] = json!({
            "input_tokens": usage.prompt,
            "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": 0},
            "output_tokens": usage.completion,
            "output_tokens_details": {"reasoning_tokens": usage.reasoning},
            "total_tokens": usage.prompt + usage.completion,
        });
        response
    }

    /// Ends the items and returns the response and whether it is whole.
    fn close(&mut self, out: &mut Vec<u8>) -> (Json, bool) {
        let finish = self.fold.told.first().and_then(|told| told.finish.as_ref());
        let is_cut_off = !finish.is_some_and(is_end);
        let writer = &mut self.writer;
        self.blocks.at_least_one(|block, step| writer.step(block, step, out));
        self.blocks.end(is_cut_off, |block, step| writer.step(block, step, out));
        let mut response = self.finished(if is_cut_off { "incomplete" } else { "completed" });
        if is_cut_off {
            response["incomplete_details"] = json!({"reason": "max_output_tokens"});
        }
        self.keep(&response);
        (response, !is_cut_off)
    }

    fn keep(&mut self, response: &Json) {
        let items = self.items.take();
        self.record = items.map(|items| json!({"response": response, "input": items}));
    }

    fn begin(&mut self, out: &mut Vec<u8>) {
        if !std::mem::replace(&mut self.has_begun, true) {
            self.writer.response(out, "response.created", &self.head);
            self.writer.response(out, "response.in_progress", &self.head);
        }
    }
}

fn is_end(finish: &Finish) -> bool {
    finish.reason == engine::FinishReason::Stop
}

impl Form for Responses {
    fn write(&mut self, output: TextOutput, out: &mut Vec<u8>) {
        self.begin(out);
        let writer = &mut self.writer;
        for delta in output.deltas.iter().filter(|delta| delta.index == 0) {
            self.blocks.take(delta, |block, step| writer.step(block, step, out));
        }
        self.fold.count(&output);
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        self.begin(out);
        let (response, is_whole) = self.close(out);
        let event = if is_whole { "response.completed" } else { "response.incomplete" };
        self.writer.response(out, event, &response);
    }

    fn fail(&mut self, error: &Json, out: &mut Vec<u8>) {
        self.begin(out);
        let writer = &mut self.writer;
        self.blocks.end(true, |block, step| writer.step(block, step, out));
        let mut response = self.finished("failed");
        let code = error["code"].as_str().unwrap_or("server_error");
        response["error"] = json!({"code": code, "message": error["message"]});
        self.keep(&response);
        self.writer.response(out, "response.failed", &response);
    }

    fn collect(&mut self, output: TextOutput, _: &mut Fold) {
        self.write(output, &mut Vec::new());
    }

    fn whole(&mut self, _: Fold) -> Json {
        self.close(&mut Vec::new()).0
    }

    fn record(&mut self) -> Option<Json> {
        self.record.take()
    }
}

#[cfg(test)]
mod tests;
