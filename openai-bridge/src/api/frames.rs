//! Pieces of frames: a stream's chunks differ in little, so the rest is written once.

use serde_json::Value as Json;

/// The end of a stream of chunks.
pub(super) const DONE: &[u8] = b"data: [DONE]\n\n";

/// Writes a frame of one JSON value.
pub(super) fn frame(out: &mut Vec<u8>, value: &Json) {
    out.extend_from_slice(b"data: ");
    json(out, value);
    out.extend_from_slice(b"\n\n");
}

/// Writes a frame with an event's name.
pub(super) fn named(out: &mut Vec<u8>, event: &str, value: &Json) {
    out.extend_from_slice(b"event: ");
    out.extend_from_slice(event.as_bytes());
    out.push(b'\n');
    frame(out, value);
}

/// Writes JSON text.
pub(super) fn json<T: serde::Serialize + ?Sized>(out: &mut Vec<u8>, value: &T) {
    // Writing JSON into memory cannot fail for texts, numbers and values.
    if serde_json::to_writer(&mut *out, value).is_err() {
        out.extend_from_slice(b"null");
    }
}

/// Chunks of one stream: what stands before and behind the choices.
#[derive(Clone, Debug)]
pub(super) struct Chunks {
    head: Vec<u8>,
    tail: Vec<u8>,
}

impl Chunks {
    /// Makes the frame around choices; `head` is an object, and `has_usage` gives every chunk an
    /// empty usage.
    pub(super) fn new(head: &Json, has_usage: bool) -> Self {
        let mut text = b"data: ".to_vec();
        json(&mut text, head);
        // The object goes on with its choices.
        text.pop();
        text.extend_from_slice(b",\"choices\":[");
        let tail: &[u8] = if has_usage { b"],\"usage\":null}\n\n" } else { b"]}\n\n" };
        Self { head: text, tail: tail.to_vec() }
    }

    /// Writes one chunk with one choice, whose JSON `choice` writes.
    pub(super) fn chunk(&self, out: &mut Vec<u8>, choice: impl FnOnce(&mut Vec<u8>)) {
        out.extend_from_slice(&self.head);
        choice(out);
        out.extend_from_slice(&self.tail);
    }

    /// Writes one chunk with one choice and the usage so far.
    pub(super) fn chunk_with(
        &self,
        out: &mut Vec<u8>,
        usage: &Json,
        choice: impl FnOnce(&mut Vec<u8>),
    ) {
        out.extend_from_slice(&self.head);
        choice(out);
        out.extend_from_slice(b"],\"usage\":");
        json(out, usage);
        out.extend_from_slice(b"}\n\n");
    }
}
