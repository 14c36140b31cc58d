//! The events of a response, and the items they tell of.
//!
//! Every event has the next number. A whole answer takes the same steps with nothing written.

use serde_json::{Value as Json, json};

use super::super::Stamp;
use super::super::blocks::{Block, Kind, Step};
use super::super::chat::call_id;
use super::super::frames::{json as write_json, named};
use super::offered::Offered;
use crate::{Score, Scored};

/// Writes events and keeps the items that are over.
#[derive(Debug)]
pub(super) struct Writer {
    stamp: Stamp,
    is_streaming: bool,
    /// Knows functions by their callers' names.
    offered: Offered,
    /// The number of the next event.
    number: u64,
    /// What stands before the number in the open block's deltas.
    head: Vec<u8>,
    output: Vec<Json>,
}

impl Writer {
    pub(super) fn new(stamp: Stamp, is_streaming: bool, offered: Offered) -> Self {
        Self { stamp, is_streaming, offered, number: 0, head: Vec::new(), output: Vec::new() }
    }

    /// Returns the items.
    pub(super) fn take_output(&mut self) -> Vec<Json> {
        std::mem::take(&mut self.output)
    }

    /// Writes an event about the whole response.
    pub(super) fn response(&mut self, out: &mut Vec<u8>, event: &str, response: &Json) {
        if self.is_streaming {
            self.event(out, event, json!({ "response": response }));
        }
    }

    /// Writes what happens to a block.
    pub(super) fn step(&mut self, block: &Block, step: Step<'_>, out: &mut Vec<u8>) {
        let name = match &block.kind {
            Kind::Text => "response.output_text",
            Kind::Thought => "response.reasoning_text",
            Kind::Call { .. } => "response.function_call_arguments",
        };
        match step {
            Step::Begin if self.is_streaming => self.begin(block, name, out),
            Step::Grow(text, scores) if self.is_streaming => self.grow(block, text, scores, out),
            Step::Begin | Step::Grow(..) => {}
            Step::End(is_cut_off) => self.end(block, name, is_cut_off, out),
        }
    }

    fn begin(&mut self, block: &Block, name: &str, out: &mut Vec<u8>) {
        let item = self.item(block, "in_progress");
        self.event(
            out,
            "response.output_item.added",
            json!({"output_index": block.index, "item": item}),
        );
        if let Some(part) = part(block) {
            let mut added = self.place(block);
            added["part"] = part;
            self.event(out, "response.content_part.added", added);
        }
        let event = format!("{name}.delta");
        let mut place = self.place(block);
        place["type"] = event.as_str().into();
        self.head = format!("event: {event}\ndata: ").into_bytes();
        write_json(&mut self.head, &place);
        // The object goes on with what is new.
        self.head.pop();
        self.head.extend_from_slice(b",\"sequence_number\":");
    }

    fn grow(&mut self, block: &Block, text: &str, scores: &[Score], out: &mut Vec<u8>) {
        out.extend_from_slice(&self.head);
        write_json(out, &self.number);
        self.number += 1;
        out.extend_from_slice(b",\"delta\":");
        write_json(out, text);
        if block.kind == Kind::Text {
            out.extend_from_slice(b",\"logprobs\":");
            write_json(out, &logprobs(scores));
        }
        out.extend_from_slice(b"}\n\n");
    }

    fn end(&mut self, block: &Block, name: &str, is_cut_off: bool, out: &mut Vec<u8>) {
        let item = self.item(block, if is_cut_off { "incomplete" } else { "completed" });
        if self.is_streaming {
            let mut done = self.place(block);
            match &block.kind {
                Kind::Text => {
                    done["text"] = block.text.as_str().into();
                    done["logprobs"] = logprobs(&block.scores);
                }
                Kind::Thought => done["text"] = block.text.as_str().into(),
                Kind::Call { name, .. } => {
                    done["name"] = self.offered.own(name).1.into();
                    done["arguments"] = block.text.as_str().into();
                }
            }
            self.event(out, &format!("{name}.done"), done);
            if let Some(part) = part(block) {
                let mut done = self.place(block);
                done["part"] = part;
                self.event(out, "response.content_part.done", done);
            }
            let done = json!({"output_index": block.index, "item": item});
            self.event(out, "response.output_item.done", done);
        }
        self.output.push(item);
    }

    fn event(&mut self, out: &mut Vec<u8>, event: &str, mut value: Json) {
        value["type"] = event.into();
        value["sequence_number"] = self.number.into();
        self.number += 1;
        named(out, event, &value);
    }

    /// Returns where a block stands.
    fn place(&self, block: &Block) -> Json {
        let mut place = json!({"item_id": self.id(block), "output_index": block.index});
        if !matches!(block.kind, Kind::Call { .. }) {
            place["content_index"] = 0.into();
        }
        place
    }

    fn id(&self, block: &Block) -> String {
        let prefix = match &block.kind {
            Kind::Text => "msg",
            Kind::Thought => "rs",
            Kind::Call { .. } => "fc",
        };
        format!("{prefix}_{}", self.stamp.derived(block.index as u64))
    }

    /// Returns a block as an item.
    fn item(&self, block: &Block, status: &str) -> Json {
        let id = self.id(block);
        let content: Vec<Json> = match status {
            "in_progress" => Vec::new(),
            _ => part(block).into_iter().collect(),
        };
        match &block.kind {
            Kind::Text => json!({
                "id": id,
                "type": "message",
                "role": "assistant",
                "status": status,
                "content": content,
            }),
            Kind::Thought => json!({
                "id": id,
                "type": "reasoning",
                "status": status,
                "summary": [],
                "content": content,
                "encrypted_content": null,
            }),
            Kind::Call { number, id: own, name } => {
                let (space, name) = self.offered.own(name);
                let mut call = json!({
                    "id": id,
                    "type": "function_call",
                    "status": status,
                    "call_id": call_id(&self.stamp, 0, *number, own.as_deref()),
                    "name": name,
                    "arguments": block.text,
                });
                if let Some(space) = space {
                    call["namespace"] = space.into();
                }
                call
            }
        }
    }
}

/// Returns the part of an item's content that a block is.
fn part(block: &Block) -> Option<Json> {
    match &block.kind {
        Kind::Text => Some(json!({
            "type": "output_text",
            "text": block.text,
            "annotations": [],
            "logprobs": logprobs(&block.scores),
        })),
        Kind::Thought => Some(json!({"type": "reasoning_text", "text": block.text})),
        Kind::Call { .. } => None,
    }
}

fn logprobs(scores: &[Score]) -> Json {
    let scored = |token: &Scored| json!({"token": token.text(), "logprob": token.finite(), "bytes": token.bytes});
    let score = |score: &Score| {
        let mut told = scored(&score.token);
        told["top_logprobs"] = score.top.iter().map(scored).collect();
        told
    };
    scores.iter().map(score).collect()
}
