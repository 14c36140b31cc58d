//! Anthropic's Messages API: content blocks in, content blocks out, told by events with names.
//!
//! A message is a chat in other words: blocks become messages, and the answer's blocks are told as
//! they begin, grow and end. Whether it is streamed or not, the blocks are made by the same steps,
//! so both forms agree.

mod input;

use engine::{FinishReason, Result};
use serde_json::{Map, Value as Json, json};

use super::blocks::{Block, Blocks, Kind, Step};
use super::body;
use super::chat;
use super::frames::named;
use super::{Asked, Body, Fold, Form, Stamp};
use crate::settings::Settings;
use crate::{Now, TextBridge, TextOutput};

/// Reads the body of a message.
///
/// Errors: a field that is wrong or cannot be honoured, by name.
pub fn read(bridge: &TextBridge, body: Body, stamp: Stamp) -> Result<Asked> {
    let is_streaming = body::flag(&body, "stream")?.unwrap_or(false);
    if !body.contains_key("max_tokens") {
        return Err(body::wrong("max_tokens", "is missing"));
    }
    let chat = input::chat(body)?;
    let (mut completion, _) = chat::completion(bridge, chat).map_err(input::in_own_words)?;
    completion.name_format("output_config.format");
    let form = Messages {
        writer: Writer { stamp, is_streaming, has_calls: false, content: Vec::new() },
        blocks: Blocks::default(),
        fold: Fold::default(),
        has_begun: false,
    };
    Ok(Asked { completion, form: Box::new(form), is_streaming, warning: None })
}

/// Answers a call for the tokens of a message's prompt; the body is that of a message.
///
/// Errors: as [`read`].
pub fn count_tokens(bridge: &TextBridge, body: Body, now: Now) -> Result<Json> {
    let mut chat = input::chat(body)?;
    let Some(Json::Array(messages)) = chat.remove("messages") else {
        return Err(body::wrong("messages", "is missing"));
    };
    let count = |settings: &Settings| {
        settings.check(1)?;
        let chats = bridge.chats(settings, vec![messages])?;
        let text = bridge.rendered(&chats, now)?;
        bridge.tokenize_rendered(&text, false)
    };
    let tokens = Settings::of_body(&chat).and_then(|settings| count(&settings));
    Ok(json!({"input_tokens": tokens.map_err(input::in_own_words)?.len()}))
}

/// The form of a message.
struct Messages {
    writer: Writer,
    blocks: Blocks,
    /// What counts; texts are in the writer's blocks.
    fold: Fold,
    has_begun: bool,
}

/// Writes events and keeps the blocks that are over.
struct Writer {
    stamp: Stamp,
    is_streaming: bool,
    has_calls: bool,
    content: Vec<Json>,
}

impl Messages {
    fn begin(&mut self, out: &mut Vec<u8>) {
        if std::mem::replace(&mut self.has_begun, true) || !self.writer.is_streaming {
            return;
        }
        let message = self.message(Vec::new(), (Json::Null, Json::Null));
        named(out, "message_start", &json!({"type": "message_start", "message": message}));
    }

    /// Returns the message object.
    fn message(&self, content: Vec<Json>, (reason, sequence): (Json, Json)) -> Json {
        json!({
            "id": format!("msg_{}", self.writer.stamp.id),
            "type": "message",
            "role": "assistant",
            "model": self.writer.stamp.model,
            "content": content,
            "stop_reason": reason,
            "stop_sequence": sequence,
            "usage": self.usage(),
        })
    }

    /// Returns what the message cost: here, tokens that were in the cache are counted apart.
    fn usage(&self) -> Json {
        let usage = self.fold.usage();
        json!({
            "input_tokens": usage.prompt.saturating_sub(usage.cached),
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": usage.cached,
            "output_tokens": usage.completion,
            "output_tokens_details": {"thinking_tokens": usage.reasoning},
        })
    }

    /// Ends the blocks and returns why the message ended, with the text that ended it.
    fn close(&mut self, out: &mut Vec<u8>) -> (Json, Json) {
        let writer = &mut self.writer;
        self.blocks.end(false, |block, step| writer.step(block, step, out));
        let finish = self.fold.told.first().and_then(|told| told.finish.as_ref());
        match finish {
            Some(finish) if finish.stop.is_some() => (json!("stop_sequence"), json!(finish.stop)),
            Some(finish) if finish.reason == FinishReason::Stop => {
                let reason = if self.writer.has_calls { "tool_use" } else { "end_turn" };
                (json!(reason), Json::Null)
            }
            _ => (json!("max_tokens"), Json::Null),
        }
    }
}

impl Writer {
    fn step(&mut self, block: &Block, step: Step<'_>, out: &mut Vec<u8>) {
        match step {
            Step::Begin => self.begin(block, out),
            Step::Grow(text, _) => {
                let delta = match block.kind {
                    Kind::Text => json!({"type": "text_delta", "text": text}),
                    Kind::Thought => json!({"type": "thinking_delta", "thinking": text}),
                    Kind::Call { .. } => json!({"type": "input_json_delta", "partial_json": text}),
                };
                self.event(out, "content_block_delta", block, Some(("delta", delta)));
            }
            Step::End(_) => {
                if block.kind == Kind::Thought {
                    let signature = self.signature(block);
                    let delta = json!({"type": "signature_delta", "signature": signature});
                    self.event(out, "content_block_delta", block, Some(("delta", delta)));
                }
                self.event(out, "content_block_stop", block, None);
                let whole = self.whole(block);
                self.content.push(whole);
            }
        }
    }

    fn begin(&mut self, block: &Block, out: &mut Vec<u8>) {
        self.has_calls |= matches!(block.kind, Kind::Call { .. });
        let mut begun = self.whole(block);
        if block.kind == Kind::Thought {
            begun["signature"] = "".into();
        }
        self.event(out, "content_block_start", block, Some(("content_block", begun)));
    }

    fn event(
        &self,
        out: &mut Vec<u8>,
        event: &str,
        block: &Block,
        field: Option<(&'static str, Json)>,
    ) {
        if !self.is_streaming {
            return;
        }
        let mut value = json!({"type": event, "index": block.index});
        if let Some((key, field)) = field {
            value[key] = field;
        }
        named(out, event, &value);
    }

    /// Returns a name for a thought. Clients send it back; nothing is proven by it.
    fn signature(&self, block: &Block) -> String {
        self.stamp.derived(block.index as u64)
    }

    /// Returns a block as far as it has grown.
    fn whole(&self, block: &Block) -> Json {
        match &block.kind {
            Kind::Text => json!({"type": "text", "text": block.text}),
            Kind::Thought => json!({
                "type": "thinking",
                "thinking": block.text,
                "signature": self.signature(block),
            }),
            Kind::Call { number, id, name } => {
                let own = || format!("toolu_{}", self.stamp.derived(u64::from(*number)));
                // A call that was cut off has no input.
                let input: Map<String, Json> =
                    serde_json::from_str(&block.text).unwrap_or_default();
                json!({
                    "type": "tool_use",
                    "id": id.clone().unwrap_or_else(own),
                    "name": name,
                    "input": input,
                })
            }
        }
    }
}

impl Form for Messages {
    fn write(&mut self, output: TextOutput, out: &mut Vec<u8>) {
        self.fold.prompt_tokens = output.prompt_tokens.clone();
        self.begin(out);
        let writer = &mut self.writer;
        for delta in output.deltas.iter().filter(|delta| delta.index == 0) {
            self.blocks.take(delta, |block, step| writer.step(block, step, out));
        }
        self.fold.count(&output);
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        self.begin(out);
        let (reason, sequence) = self.close(out);
        let end = json!({
            "type": "message_delta",
            "delta": {"stop_reason": reason, "stop_sequence": sequence},
            "usage": self.usage(),
        });
        named(out, "message_delta", &end);
        named(out, "message_stop", &json!({"type": "message_stop"}));
    }

    fn fail(&mut self, error: &Json, out: &mut Vec<u8>) {
        named(out, "error", &json!({"type": "error", "error": error}));
    }

    fn collect(&mut self, output: TextOutput, _: &mut Fold) {
        self.write(output, &mut Vec::new());
    }

    fn whole(&mut self, _: Fold) -> Json {
        let end = self.close(&mut Vec::new());
        let content = std::mem::take(&mut self.writer.content);
        self.message(content, end)
    }
}

#[cfg(test)]
mod tests;
