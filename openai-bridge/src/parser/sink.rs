//! Where the machines write: events in order, neighbours of one kind joined.

use super::Event;

/// Appends to a list of events and joins what belongs together.
pub(super) struct Sink<'a> {
    out: &'a mut Vec<Event>,
}

impl<'a> Sink<'a> {
    /// Writes to the end of `out`.
    pub(super) fn new(out: &'a mut Vec<Event>) -> Self {
        Self { out }
    }

    /// Adds to the content.
    pub(super) fn content(&mut self, text: &str) {
        match self.out.last_mut() {
            _ if text.is_empty() => {}
            Some(Event::Content(last)) => last.push_str(text),
            _ => self.out.push(Event::Content(text.to_owned())),
        }
    }

    /// Adds to the reasoning.
    pub(super) fn reasoning(&mut self, text: &str) {
        match self.out.last_mut() {
            _ if text.is_empty() => {}
            Some(Event::Reasoning(last)) => last.push_str(text),
            _ => self.out.push(Event::Reasoning(text.to_owned())),
        }
    }

    /// Begins a call.
    pub(super) fn begin(&mut self, index: u32, id: Option<String>, name: String) {
        self.out.push(Event::CallBegun { index, id, name });
    }

    /// Adds to a call's arguments.
    pub(super) fn arguments(&mut self, index: u32, text: &str) {
        match self.out.last_mut() {
            _ if text.is_empty() => {}
            Some(Event::Arguments { index: at, text: last }) if *at == index => last.push_str(text),
            _ => self.out.push(Event::Arguments { index, text: text.to_owned() }),
        }
    }
}

/// Lends a character as text.
pub(super) fn as_text(c: char, room: &mut [u8; 4]) -> &str {
    c.encode_utf8(room)
}
