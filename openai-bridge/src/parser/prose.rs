//! The text around calls: content, up to a marker.
//!
//! White space next to a call is the format's: a run of it is held back until it is known whether
//! text follows, which makes it content, or a call or, after a call, the end, which drop it.

use super::matcher::Matcher;
use super::sink::{Sink, as_text};

/// Passes content on and finds the markers in it.
#[derive(Clone, Debug)]
pub(super) struct Prose {
    matcher: Matcher,
    space: String,
    is_fresh: bool,
    is_after_call: bool,
}

impl Prose {
    /// Looks for these markers.
    pub(super) fn new(markers: &[&'static str]) -> Self {
        let matcher = Matcher::new(markers.iter().copied());
        Self { matcher, space: String::new(), is_fresh: true, is_after_call: false }
    }

    /// Returns whether the next character would be the first that is no white space.
    pub(super) fn is_fresh(&self) -> bool {
        self.is_fresh && self.matcher.is_idle()
    }

    /// Takes a character and returns the marker that it completes.
    pub(super) fn push(&mut self, c: char, sink: &mut Sink) -> Option<&'static str> {
        if self.matcher.is_text(c) {
            self.character(c, sink);
            return None;
        }
        let mut text = String::new();
        let found = self.matcher.push(c, &mut text);
        self.content(&text, sink);
        found
    }

    /// Takes the white space that was held back: it lies before a marker.
    pub(super) fn take_space(&mut self) -> String {
        std::mem::take(&mut self.space)
    }

    /// Passes on text that is content for certain, but for white space at its end.
    pub(super) fn content(&mut self, text: &str, sink: &mut Sink) {
        text.chars().for_each(|c| self.character(c, sink));
    }

    fn character(&mut self, c: char, sink: &mut Sink) {
        if c.is_ascii_whitespace() {
            self.space.push(c);
            return;
        }
        if !self.space.is_empty() {
            sink.content(&self.take_space());
        }
        sink.content(as_text(c, &mut [0; 4]));
        self.is_fresh = false;
        self.is_after_call = false;
    }

    /// Says that a call was just read.
    pub(super) fn call_ended(&mut self) {
        self.is_fresh = false;
        self.is_after_call = true;
    }

    /// Passes on what is held back: the text is over.
    pub(super) fn finish(&mut self, sink: &mut Sink) {
        let held = self.matcher.take_held();
        self.content(&held, sink);
        let space = self.take_space();
        if !self.is_after_call {
            sink.content(&space);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parser::Event;

    fn run(before: &str, is_after_call: bool) -> (String, String) {
        let (mut prose, mut out) = (Prose::new(&["<a>"]), Vec::new());
        let mut sink = Sink::new(&mut out);
        if is_after_call {
            prose.call_ended();
        }
        let mut space = String::new();
        for c in before.chars() {
            if prose.push(c, &mut sink).is_some() {
                space = prose.take_space();
            }
        }
        prose.finish(&mut sink);
        let content = out.into_iter().map(|event| match event {
            Event::Content(text) => text,
            other => panic!("{other:?}"),
        });
        (content.collect(), space)
    }

    #[test]
    fn white_space_is_content_between_texts_and_the_formats_next_to_calls() {
        let check = |text, is_after_call, content: &str, space: &str| {
            assert_eq!(run(text, is_after_call), (content.into(), space.into()), "{text:?}");
        };
        check(" x \n y\n", false, " x \n y\n", "");
        check("x \n<a>", false, "x", " \n");
        check("\n\n", true, "", "");
        check("\n\ny\n", true, "\n\ny\n", "");
        check("x <", false, "x <", "");
    }
}
