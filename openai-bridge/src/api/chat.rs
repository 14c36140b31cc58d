//! Chat completions.

use engine::{MAX_LOGPROBS, Result};
use serde_json::{Value as Json, json};

use super::body::{self, StreamOptions, get, wrong};
use super::extras::extras;
use super::fold::{Told, word};
use super::frames::{Chunks, DONE, frame, json};
use super::{Asked, Body, Fold, Form, Stamp};
use crate::completion::Completion;
use crate::parser::Event;
use crate::settings::Settings;
use crate::{Delta, Score, Scored, TextBridge, TextOutput};

/// Fields of the API that cannot be honoured.
const REFUSED: [(&str, &str); 4] = [
    ("functions", "use `tools`"),
    ("function_call", "use `tool_choice`"),
    ("audio", "the model writes text"),
    ("web_search_options", "the server does not search"),
];

/// Reads the body of a chat completion.
///
/// Errors: a field that is wrong or cannot be honoured, by name.
pub fn read(bridge: &TextBridge, body: Body, stamp: Stamp) -> Result<Asked> {
    body::refuse(&body, &REFUSED)?;
    modalities(&body)?;
    let options = StreamOptions::read(&body)?;
    let (completion, is_forced) = completion(bridge, body)?;
    let choices = completion.choices.get() as usize;
    let form = Box::new(Chat::new(stamp, options, choices, is_forced));
    Ok(Asked { completion, form, is_streaming: options.is_streaming, warning: None })
}

/// Reads what is asked of a chat, whatever the form of its answer, and whether the client named
/// the tool to be called.
///
/// Errors: a field that is wrong, by name.
pub(super) fn completion(bridge: &TextBridge, mut body: Body) -> Result<(Completion, bool)> {
    let has_logprobs = body::flag(&body, "logprobs")?.unwrap_or(false);
    let top = body::number(&body, "top_logprobs", 0..=u64::from(MAX_LOGPROBS))?;
    if top.is_some_and(|top| top > 0) && !has_logprobs {
        return Err(wrong("top_logprobs", "is only allowed when `logprobs` is true"));
    }
    let extras = extras(bridge, &body, false)?;
    for taken in ["logprobs", "stream", "documents", "query", "input_ids", "dimensions", "echo"] {
        body.remove(taken);
    }
    let messages = match body.remove("messages") {
        Some(Json::Array(messages)) => messages,
        None | Some(Json::Null) => return Err(wrong("messages", "is missing")),
        Some(other) => {
            let why = format!("expected a list of messages, got {}", body::kind(&other));
            return Err(wrong("messages", &why));
        }
    };
    let settings = Settings::of_body(&body)?;
    settings.check(1)?;
    let prompts = bridge.chats(&settings, vec![messages])?;
    let mut completion = Completion::new(settings, prompts, bridge.most_tokens())?;
    completion.logprobs = has_logprobs.then(|| top.unwrap_or(0) as u32);
    completion.extras = extras;
    let is_forced = completion.names_a_call();
    Ok((completion, is_forced))
}

fn modalities(body: &Body) -> Result<()> {
    match get(body, "modalities") {
        None => Ok(()),
        Some(Json::Array(all)) if all.iter().all(|one| one == "text") => Ok(()),
        Some(_) => Err(wrong("modalities", "is not supported: the model writes text only")),
    }
}

/// The form of a chat completion.
struct Chat {
    stamp: Stamp,
    options: StreamOptions,
    chunks: Chunks,
    is_forced: bool,
    /// What the stream has told; texts are not kept.
    states: Vec<State>,
    fold: Fold,
}

#[derive(Clone, Debug, Default)]
struct State {
    has_begun: bool,
    has_calls: bool,
}

impl Chat {
    fn new(stamp: Stamp, options: StreamOptions, choices: usize, is_forced: bool) -> Self {
        let head = json!({
            "id": format!("chatcmpl-{}", stamp.id),
            "object": "chat.completion.chunk",
            "created": stamp.created,
            "model": stamp.model,
            "system_fingerprint": stamp.fingerprint(),
        });
        let chunks = Chunks::new(&head, options.has_usage);
        let states = vec![State::default(); choices];
        Self { stamp, options, chunks, is_forced, states, fold: Fold::default() }
    }

    /// Writes one chunk: what `delta` writes is the value of the key of that name.
    fn chunk(
        &self,
        out: &mut Vec<u8>,
        index: u32,
        tail: &Tail<'_>,
        delta: impl FnOnce(&mut Vec<u8>),
    ) {
        let choice = |out: &mut Vec<u8>| {
            out.extend_from_slice(b"{\"index\":");
            json(out, &index);
            out.extend_from_slice(b",\"delta\":");
            delta(out);
            tail.write(out);
        };
        match self.options.has_usage_always {
            false => self.chunks.chunk(out, choice),
            true => self.chunks.chunk_with(out, &self.fold.usage().json(), choice),
        }
    }

    fn event(&self, out: &mut Vec<u8>, index: u32, tail: &Tail<'_>, event: &Event) {
        let text = |out: &mut Vec<u8>, key: &[u8], text: &str| {
            out.extend_from_slice(key);
            json(out, text);
            out.push(b'}');
        };
        match event {
            Event::Content(content) => {
                self.chunk(out, index, tail, |out| text(out, b"{\"content\":", content));
            }
            Event::Reasoning(thought) => {
                self.chunk(out, index, tail, |out| text(out, b"{\"reasoning_content\":", thought));
            }
            Event::CallBegun { index: call, id, name } => {
                let id = call_id(&self.stamp, index, *call, id.as_deref());
                let begun = json!({"tool_calls": [{"index": call, "id": id, "type": "function",
                    "function": {"name": name, "arguments": ""}}]});
                self.chunk(out, index, tail, |out| json(out, &begun));
            }
            Event::Arguments { index: call, text } => {
                let grown = json!({"tool_calls": [{"index": call,
                    "function": {"arguments": text}}]});
                self.chunk(out, index, tail, |out| json(out, &grown));
            }
        }
    }

    fn delta(&mut self, delta: &Delta, out: &mut Vec<u8>) {
        let index = delta.index;
        let Some(state) = self.states.get_mut(index as usize) else {
            return;
        };
        let is_call = |event: &Event| matches!(event, Event::CallBegun { .. });
        state.has_calls |= delta.events.iter().any(is_call);
        let (is_first, has_calls) =
            (!std::mem::replace(&mut state.has_begun, true), state.has_calls);
        let none = Tail::default();
        if is_first {
            let role: &[u8] = b"{\"role\":\"assistant\",\"content\":\"\",\"refusal\":null}";
            self.chunk(out, index, &none, |out| out.extend_from_slice(role));
        }
        let mut tail =
            Tail { logprobs: &delta.logprobs, token_ids: &delta.token_ids, finish: None };
        for event in &delta.events {
            self.event(out, index, &tail, event);
            tail = Tail::default();
        }
        if let Some(finish) = &delta.finish {
            tail.finish = Some(word(Some(finish), has_calls && !self.is_forced));
            self.chunk(out, index, &tail, |out| out.extend_from_slice(b"{}"));
        }
    }
}

/// What stands behind the delta of a choice.
#[derive(Default)]
struct Tail<'a> {
    logprobs: &'a [Score],
    token_ids: &'a [u32],
    finish: Option<&'static str>,
}

impl Tail<'_> {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b",\"logprobs\":");
        match self.logprobs {
            [] => out.extend_from_slice(b"null"),
            scores => json(out, &logprobs(scores)),
        }
        if !self.token_ids.is_empty() {
            out.extend_from_slice(b",\"token_ids\":");
            json(out, self.token_ids);
        }
        out.extend_from_slice(b",\"finish_reason\":");
        json(out, &self.finish);
        out.push(b'}');
    }
}

impl Form for Chat {
    fn write(&mut self, output: TextOutput, out: &mut Vec<u8>) {
        self.fold.count(&output);
        for delta in &output.deltas {
            self.delta(delta, out);
        }
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        if self.options.has_usage {
            frame(
                out,
                &json!({
                    "id": format!("chatcmpl-{}", self.stamp.id),
                    "object": "chat.completion.chunk",
                    "created": self.stamp.created,
                    "model": self.stamp.model,
                    "system_fingerprint": self.stamp.fingerprint(),
                    "choices": [],
                    "usage": self.fold.usage().json(),
                }),
            );
        }
        out.extend_from_slice(DONE);
    }

    fn fail(&mut self, error: &Json, out: &mut Vec<u8>) {
        frame(out, &json!({ "error": error }));
        out.extend_from_slice(DONE);
    }

    fn whole(&mut self, fold: Fold) -> Json {
        let choice = |(index, told): (usize, &Told)| {
            let mut choice = json!({
                "index": index,
                "message": message(&self.stamp, index as u32, told),
                "logprobs": match told.logprobs.is_empty() {
                    true => Json::Null,
                    false => logprobs(&told.logprobs),
                },
                "finish_reason": told.finish_reason(self.is_forced),
            });
            if !told.token_ids.is_empty() {
                choice["token_ids"] = json!(told.token_ids);
            }
            if !told.prompt_logprobs.is_empty() {
                let known = |one: &Score| if one.rank == 0 { Json::Null } else { score(one) };
                choice["prompt_logprobs"] = told.prompt_logprobs.iter().map(known).collect();
            }
            choice
        };
        json!({
            "id": format!("chatcmpl-{}", self.stamp.id),
            "object": "chat.completion",
            "created": self.stamp.created,
            "model": self.stamp.model,
            "system_fingerprint": self.stamp.fingerprint(),
            "choices": fold.told.iter().enumerate().map(choice).collect::<Vec<_>>(),
            "usage": fold.usage().json(),
        })
    }
}

/// Returns a call's id: the model's own, or one that follows from the answer's.
pub(super) fn call_id(stamp: &Stamp, index: u32, call: u32, id: Option<&str>) -> String {
    let number = u64::from(index) << 32 | u64::from(call);
    id.map_or_else(|| format!("call_{}", stamp.derived(number)), str::to_owned)
}

/// Returns the whole message of the assistant.
fn message(stamp: &Stamp, index: u32, told: &Told) -> Json {
    let has_text = !told.content.is_empty() || told.calls.is_empty();
    let mut message = json!({
        "role": "assistant",
        "content": if has_text { Json::from(told.content.as_str()) } else { Json::Null },
        "refusal": null,
    });
    if !told.reasoning.is_empty() {
        message["reasoning_content"] = told.reasoning.as_str().into();
    }
    if !told.calls.is_empty() {
        let calls = told.calls.iter().zip(0..);
        let calls = calls.map(|(call, number)| {
            json!({
                "id": call_id(stamp, index, number, call.id.as_deref()),
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            })
        });
        message["tool_calls"] = calls.collect();
    }
    message
}

fn logprobs(scores: &[Score]) -> Json {
    json!({"content": scores.iter().map(score).collect::<Vec<_>>(), "refusal": null})
}

fn score(score: &Score) -> Json {
    let mut told = scored(&score.token);
    told["top_logprobs"] = score.top.iter().map(scored).collect();
    told
}

fn scored(token: &Scored) -> Json {
    json!({"token": token.text(), "logprob": token.finite(), "bytes": token.bytes})
}

#[cfg(test)]
mod tests;
