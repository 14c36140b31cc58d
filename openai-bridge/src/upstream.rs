//! Answers of other servers that speak the OpenAI API: the bytes of a stream in, deltas out.
//!
//! Servers differ in what they send, so what is not known is passed over; what would be wrong to
//! pass over is an error: an answer that breaks off, an event that is no JSON, an error in the
//! middle. However the bytes are cut, the deltas are the same.

use std::collections::VecDeque;

use bytes::Bytes;
use engine::{
    CallDelta, Error, ErrorKind, FinishReason, Result, TextDelta, TextForm, TextLogprob, TextUsage,
};
use serde_json::Value as Json;

/// The longest event in bytes.
const MAX_EVENT_BYTES: usize = 8 << 20;

/// Most choices of an answer that are kept account of.
const MAX_CHOICES: usize = 1024;

/// Reads one answer.
#[derive(Debug)]
pub struct UpstreamAnswer {
    form: TextForm,
    /// What came of a line.
    line: Vec<u8>,
    /// The lines of an event so far.
    event: Vec<u8>,
    /// What it cost, as it was told last.
    usage: Option<TextUsage>,
    /// Events that had something of the text.
    pieces: u32,
    /// Whether each choice has ended, by its number.
    ended: Vec<(u32, bool)>,
    is_over: bool,
    deltas: VecDeque<TextDelta>,
}

impl UpstreamAnswer {
    /// Makes the reader of the answer to a call.
    pub fn new(form: TextForm) -> Self {
        Self {
            form,
            line: Vec::new(),
            event: Vec::new(),
            usage: None,
            pieces: 0,
            ended: Vec::new(),
            is_over: false,
            deltas: VecDeque::new(),
        }
    }

    /// Takes bytes of a stream of server-sent events.
    ///
    /// Errors: an event that is too long or no JSON; the error that the server tells.
    pub fn push(&mut self, bytes: &[u8]) -> Result<()> {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            if self.is_over {
                return Ok(());
            }
            if self.line.len() + self.event.len() + part.len() > MAX_EVENT_BYTES {
                let text = format!("an event has more than {MAX_EVENT_BYTES} bytes");
                return Err(strange(&text));
            }
            self.line.extend_from_slice(part);
            if part.ends_with(b"\n") {
                let line = std::mem::take(&mut self.line);
                self.line(line.trim_ascii_end())?;
            }
        }
        Ok(())
    }

    /// Takes an answer that is one JSON value, as servers give it that do not stream.
    ///
    /// Errors: as [`push`](Self::push).
    pub fn whole(&mut self, body: &[u8]) -> Result<()> {
        self.read(body)?;
        self.finish()
    }

    /// Takes the end of the stream.
    ///
    /// Errors: UNAVAILABLE if the answer is not at its end.
    pub fn end(&mut self) -> Result<()> {
        let line = std::mem::take(&mut self.line);
        self.line(line.trim_ascii_end())?;
        self.line(b"")?;
        // Not every server says that it is done.
        if self.is_over { Ok(()) } else { self.finish() }
    }

    /// Returns what comes next of what was pushed.
    pub fn delta(&mut self) -> Option<TextDelta> {
        self.deltas.pop_front()
    }

    /// Returns whether the answer was told to its end; what comes behind it counts for nothing.
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    fn line(&mut self, line: &[u8]) -> Result<()> {
        if line.is_empty() {
            let event = std::mem::take(&mut self.event);
            return match event.trim_ascii() {
                b"" => Ok(()),
                b"[DONE]" => self.finish(),
                event => self.read(event),
            };
        }
        if let Some(data) = line.strip_prefix(b"data:") {
            if !self.event.is_empty() {
                self.event.push(b'\n');
            }
            self.event.extend_from_slice(data);
        }
        Ok(())
    }

    /// Ends the answer and says what it cost.
    fn finish(&mut self) -> Result<()> {
        if self.ended.is_empty() || self.ended.iter().any(|(_, is_over)| !is_over) {
            let text = "the model's server ended its answer before the text was at its end";
            return Err(unavailable(text));
        }
        self.is_over = true;
        // Some servers count nothing in streams; most of them have an event for each token.
        let counted = TextUsage { completion_tokens: self.pieces, ..TextUsage::default() };
        let usage = Some(self.usage.take().unwrap_or(counted));
        self.deltas.push_back(TextDelta { usage, ..TextDelta::default() });
        Ok(())
    }

    fn read(&mut self, json: &[u8]) -> Result<()> {
        let chunk: Json = serde_json::from_slice(json)
            .map_err(|error| strange(&format!("an event is not JSON: {error}")))?;
        if let Some(error) = chunk.get("error").filter(|error| !error.is_null()) {
            return Err(upstream_error(error, None));
        }
        if let Some(usage) = chunk.get("usage").filter(|usage| usage.is_object()) {
            self.usage = Some(read_usage(usage));
        }
        for choice in list(&chunk["choices"]) {
            self.choice(choice)?;
        }
        Ok(())
    }

    fn choice(&mut self, choice: &Json) -> Result<()> {
        let index = number(&choice["index"]);
        let finish = match choice["finish_reason"].as_str() {
            None | Some("") => None,
            Some("length" | "max_tokens") => Some(FinishReason::Length),
            Some("abort" | "error") => {
                let text = "the model's server gave the text up";
                return Err(unavailable(text));
            }
            Some(_) => Some(FinishReason::Stop),
        };
        match self.ended.iter().position(|(known, _)| *known == index) {
            Some(place) => self.ended[place].1 |= finish.is_some(),
            None if self.ended.len() == MAX_CHOICES => {
                return Err(strange(&format!("it has more than {MAX_CHOICES} choices")));
            }
            None => self.ended.push((index, finish.is_some())),
        }
        let mut delta = TextDelta {
            index,
            finish,
            stop: choice["stop_reason"].as_str().filter(|_| finish.is_some()).map(str::to_owned),
            ..TextDelta::default()
        };
        match self.form {
            TextForm::Completion => {
                delta.content = text(&choice["text"]);
                delta.logprobs = flat_logprobs(&choice["logprobs"]);
            }
            TextForm::Chat => {
                // An answer in one piece has a message where a stream has what is new of it.
                let message = choice.get("delta").or_else(|| choice.get("message"));
                message.into_iter().for_each(|message| read_message(message, &mut delta));
                delta.logprobs = list(&choice["logprobs"]["content"]).iter().map(scored).collect();
            }
        }
        let TextDelta { content, reasoning, calls, logprobs, .. } = &delta;
        let has_text = !content.is_empty() || !reasoning.is_empty() || !calls.is_empty();
        self.pieces = self.pieces.saturating_add(has_text.into());
        if finish.is_some() || has_text || !logprobs.is_empty() {
            self.deltas.push_back(delta);
        }
        Ok(())
    }
}

/// Reads the error that a server tells, with the HTTP status that came with it, if one did.
///
/// What is the client's to mend stays the client's; keys and names are the worker's affair.
pub fn upstream_error(told: &Json, status: Option<u16>) -> Error {
    let field = |name: &str| told.get(name).and_then(Json::as_str).filter(|text| !text.is_empty());
    let message = told.as_str().or(field("message")).unwrap_or("it says nothing more");
    let coded = told.get("code").and_then(|code| {
        let number = code.as_u64().or_else(|| code.as_str()?.parse().ok())?;
        u16::try_from(number).ok()
    });
    let kind = field("type").unwrap_or_default();
    let status = status.or(coded).unwrap_or(match kind {
        "invalid_request_error" | "BadRequestError" => 400,
        "not_found_error" | "NotFoundError" => 404,
        "rate_limit_error" | "requests" | "tokens" => 429,
        "overloaded_error" | "unavailable_error" => 503,
        _ => 500,
    });
    let kind = match status {
        401 | 403 => ErrorKind::Internal,
        404 => ErrorKind::NotFound,
        408 | 504 => ErrorKind::DeadlineExceeded,
        429 | 529 => ErrorKind::Overloaded,
        501 => ErrorKind::Unimplemented,
        502 | 503 => ErrorKind::Unavailable,
        400..=499 => ErrorKind::InvalidRequest,
        _ => ErrorKind::Internal,
    };
    let mut error = match status {
        401 | 403 => Error::new(kind, "the model's server does not let this worker in"),
        _ => Error::new(kind, message),
    };
    if let Some(param) = field("param") {
        error = error.with_param(param);
    }
    match field("code").filter(|_| coded.is_none()) {
        Some(code) => error.with_code(code.to_owned()),
        None if kind == ErrorKind::Unavailable => error.with_code(UNAVAILABLE),
        None => error,
    }
}

/// The code of a server that takes no requests. An error with a code says that the worker before
/// it is alive.
const UNAVAILABLE: &str = "upstream_unavailable";

fn unavailable(text: &str) -> Error {
    Error::new(ErrorKind::Unavailable, text).with_code(UNAVAILABLE)
}

fn strange(why: &str) -> Error {
    Error::internal(format!("the model's server gave an answer that cannot be read: {why}"))
}

fn list(value: &Json) -> &[Json] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Json) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn number(value: &Json) -> u32 {
    value.as_u64().and_then(|number| u32::try_from(number).ok()).unwrap_or(0)
}

fn read_usage(usage: &Json) -> TextUsage {
    TextUsage {
        prompt_tokens: number(&usage["prompt_tokens"]),
        completion_tokens: number(&usage["completion_tokens"]),
        cached_tokens: number(&usage["prompt_tokens_details"]["cached_tokens"]),
        reasoning_tokens: number(&usage["completion_tokens_details"]["reasoning_tokens"]),
    }
}

fn read_message(message: &Json, delta: &mut TextDelta) {
    delta.content = text(&message["content"]);
    // A refusal is what the model says.
    delta.content.push_str(message["refusal"].as_str().unwrap_or_default());
    delta.reasoning = text(match message.get("reasoning_content") {
        Some(Json::String(_)) => &message["reasoning_content"],
        _ => &message["reasoning"],
    });
    let call = |(place, call): (usize, &Json)| CallDelta {
        // Answers in one piece do not number their calls.
        index: call.get("index").map_or(place as u32, number),
        id: text(&call["id"]),
        name: text(&call["function"]["name"]),
        arguments: text(&call["function"]["arguments"]),
    };
    delta.calls = list(&message["tool_calls"]).iter().enumerate().map(call).collect();
}

/// Reads a token as chats have it.
fn scored(entry: &Json) -> TextLogprob {
    let bytes = |entry: &Json| match entry["bytes"].as_array() {
        Some(bytes) => bytes.iter().map(|byte| byte.as_u64().unwrap_or(0) as u8).collect(),
        None => spelled(entry["token"].as_str().unwrap_or_default()),
    };
    let logprob = |entry: &Json| entry["logprob"].as_f64().unwrap_or(0.0) as f32;
    let top = list(&entry["top_logprobs"]).iter();
    TextLogprob {
        token: bytes(entry),
        logprob: logprob(entry),
        top: top.map(|one| (bytes(one), logprob(one))).collect(),
    }
}

/// Reads the four lists of completions.
fn flat_logprobs(lists: &Json) -> Vec<TextLogprob> {
    let tokens = list(&lists["tokens"]).iter().enumerate();
    let read = |(place, token): (usize, &Json)| {
        let top = lists["top_logprobs"].get(place).and_then(Json::as_object);
        let mut top: Vec<(Bytes, f32)> = top
            .into_iter()
            .flatten()
            .map(|(token, logprob)| (spelled(token), logprob.as_f64().unwrap_or(0.0) as f32))
            .collect();
        top.sort_by(|a, b| b.1.total_cmp(&a.1));
        TextLogprob {
            token: spelled(token.as_str().unwrap_or_default()),
            logprob: lists["token_logprobs"][place].as_f64().unwrap_or(0.0) as f32,
            top,
        }
    };
    tokens.map(read).collect()
}

/// Returns the bytes of a token; parts of characters are spelled `bytes:\xe2\x82`.
fn spelled(token: &str) -> Bytes {
    let parts = token.strip_prefix("bytes:\\x").map(|rest| rest.split("\\x"));
    let bytes = parts.and_then(|mut parts| {
        parts.try_fold(Vec::new(), |mut bytes, part| {
            bytes.push(u8::from_str_radix(part, 16).ok().filter(|_| part.len() == 2)?);
            Some(bytes)
        })
    });
    bytes.map_or_else(|| Bytes::copy_from_slice(token.as_bytes()), Bytes::from)
}

#[cfg(test)]
mod tests;
