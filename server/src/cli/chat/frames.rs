//! What a chat stream says: server-sent events out of bytes, deltas out of events. No IO.

use serde::Deserialize;
use serde_json::Value;

use super::ChatError;

/// The longest event, in bytes; a chat's are some hundred.
const MAX_EVENT_BYTES: usize = 16 << 20;

/// Cuts bytes into the data of events, wherever the bytes are cut themselves.
#[derive(Debug, Default)]
pub(super) struct Events {
    rest: Vec<u8>,
    data: Option<String>,
}

impl Events {
    /// Takes bytes and returns the data of each event that they complete.
    ///
    /// Errors: an event over the bound, or one that is not UTF-8.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<Vec<String>, ChatError> {
        let mut found = Vec::new();
        self.rest.extend_from_slice(bytes);
        let mut from = 0;
        while let Some(length) = self.rest[from..].iter().position(|byte| *byte == b'\n') {
            let line = &self.rest[from..from + length];
            from += length + 1;
            let line = std::str::from_utf8(line.strip_suffix(b"\r").unwrap_or(line))
                .map_err(|_| ChatError::Strange("an event that is not UTF-8".into()))?;
            if line.is_empty() {
                found.extend(self.data.take());
            } else if let Some(data) = line.strip_prefix("data:") {
                let data = data.strip_prefix(' ').unwrap_or(data);
                match &mut self.data {
                    Some(whole) => *whole = format!("{whole}\n{data}"),
                    None => self.data = Some(data.to_owned()),
                }
            }
        }
        self.rest.drain(..from);
        if self.rest.len() + self.data.as_ref().map_or(0, String::len) > MAX_EVENT_BYTES {
            return Err(ChatError::Strange(format!("an event of over {MAX_EVENT_BYTES} bytes")));
        }
        Ok(found)
    }
}

/// One event of a chat.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Delta {
    pub(super) content: String,
    pub(super) reasoning: String,
    pub(super) finish: Option<String>,
    pub(super) usage: Option<Usage>,
}

/// The tokens of a request.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
pub(super) struct Usage {
    pub(super) prompt_tokens: u64,
    pub(super) completion_tokens: u64,
}

/// Reads the data of an event.
///
/// Errors: data that is no JSON, and the error that it tells.
pub(super) fn delta(data: &str) -> Result<Delta, ChatError> {
    let frame: Value = serde_json::from_str(data)
        .map_err(|error| ChatError::Strange(format!("an event that is no JSON: {error}")))?;
    if let Some(told) = error_text(&frame) {
        return Err(ChatError::Failed(told));
    }
    let choice = &frame["choices"][0];
    let text = |names: &[&str]| {
        let texts = names.iter().filter_map(|name| choice["delta"][name].as_str());
        texts.map(str::to_owned).next().unwrap_or_default()
    };
    Ok(Delta {
        content: text(&["content", "refusal"]),
        reasoning: text(&["reasoning_content", "reasoning"]),
        finish: choice["finish_reason"].as_str().map(str::to_owned),
        usage: Usage::deserialize(&frame["usage"]).ok(),
    })
}

/// Returns the error that a JSON object tells, in OpenAI's form or as a text.
pub(super) fn error_text(object: &Value) -> Option<String> {
    match &object["error"] {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        error => Some(match (error["message"].as_str(), error["code"].as_str()) {
            (Some(message), Some(code)) => format!("{message} ({code})"),
            (Some(message), None) => message.to_owned(),
            (None, _) => error.to_string(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = ": a comment\r\ndata: {\"a\": \"é\"}\r\n\r\nevent: x\ndata:one\n\
        data: two\n\nid: 1\n\ndata: [DONE]\n\ndata: never ended\n";

    #[test]
    fn events_are_the_same_however_the_bytes_are_cut() {
        let expected = ["{\"a\": \"é\"}", "one\ntwo", "[DONE]"];
        for size in 1..STREAM.len() {
            let mut events = Events::default();
            let cut = STREAM.as_bytes().chunks(size).flat_map(|part| events.push(part).unwrap());
            assert_eq!(cut.collect::<Vec<_>>(), expected, "cut to {size} bytes");
        }
    }

    #[test]
    fn an_event_without_an_end_is_refused_before_it_fills_the_memory() {
        let mut events = Events::default();
        let part = vec![b'x'; 1 << 20];
        let taken = (0..64).take_while(|_| events.push(&part).is_ok()).count();
        assert_eq!(taken, MAX_EVENT_BYTES >> 20);
        assert!(Events::default().push(b"data: \xff\n").is_err());
    }

    #[test]
    fn a_frame_is_a_piece_of_text_an_end_or_an_error() {
        let good = |data| delta(data).unwrap();
        let first = good(r#"{"choices": [{"delta": {"role": "assistant", "content": "Hi"}}]}"#);
        assert_eq!(first, Delta { content: "Hi".into(), ..Delta::default() });
        let thought = good(r#"{"choices": [{"delta": {"reasoning_content": "hm"}}]}"#);
        assert_eq!(thought, Delta { reasoning: "hm".into(), ..Delta::default() });
        let end = good(r#"{"choices": [{"delta": {}, "finish_reason": "stop"}], "usage": null}"#);
        assert_eq!(end, Delta { finish: Some("stop".into()), ..Delta::default() });
        let usage =
            good(r#"{"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 5}}"#);
        assert_eq!(usage.usage, Some(Usage { prompt_tokens: 3, completion_tokens: 5 }));
        let failed = |data| delta(data).unwrap_err().to_string();
        let told = failed(r#"{"error": {"message": "out of memory", "code": "oom"}}"#);
        assert_eq!(told, "the answer failed: out of memory (oom)");
        assert_eq!(failed(r#"{"error": "no"}"#), "the answer failed: no");
        assert!(failed("{").contains("no JSON"));
    }
}
