//! The reasoning before an answer, between two markers.
//!
//! It stands at the beginning of the text and nowhere else, so that an answer may speak of markers.
//! Line breaks next to a marker are the format's.

use super::matcher::Matcher;
use super::sink::{Sink, as_text};

/// How a format marks the reasoning.
#[derive(Clone, Copy, Debug)]
pub(super) struct Marks {
    /// Begin the reasoning.
    pub(super) starts: &'static [&'static str],
    /// End it.
    pub(super) ends: &'static [&'static str],
    /// All white space next to a marker is the format's: the markers are prose.
    pub(super) trims_space: bool,
}

/// Separates the reasoning from what follows it.
#[derive(Clone, Debug)]
pub(super) struct Reasoning {
    marks: Marks,
    is_open: bool,
    state: State,
    matcher: Matcher,
    /// The beginning of the text, or white space that may be next to a marker.
    held: String,
    /// How much of the beginning is white space.
    space_bytes: usize,
    /// Markers that are not the reasoning's and end it all the same.
    interrupts: &'static [&'static str],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Before anything but white space.
    Start,
    /// After the opening marker.
    Opened,
    Inside,
    /// After the closing marker.
    Closed,
    Done,
}

impl Reasoning {
    /// Begins before any text; `is_open` says that it is reasoning without a marker, too.
    pub(super) fn new(marks: Marks, is_open: bool, interrupts: &'static [&'static str]) -> Self {
        let matcher = Matcher::new(marks.ends.iter().chain(interrupts).copied());
        Self {
            marks,
            is_open,
            state: State::Start,
            matcher,
            held: String::new(),
            space_bytes: 0,
            interrupts,
        }
    }

    /// Takes the next character and appends what is no reasoning to `rest`.
    pub(super) fn push(&mut self, c: char, rest: &mut String, sink: &mut Sink) {
        match self.state {
            State::Start => self.start(c, rest, sink),
            State::Opened if self.is_space(c) => {}
            State::Opened | State::Inside => {
                self.state = State::Inside;
                self.inside(c, rest, sink);
            }
            State::Closed if self.is_space(c) => {}
            State::Closed | State::Done => {
                self.state = State::Done;
                rest.push(c);
            }
        }
    }

    /// Returns whether all further text is the answer's.
    pub(super) fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Ends the text.
    pub(super) fn finish(&mut self, rest: &mut String, sink: &mut Sink) {
        if self.state == State::Start {
            self.begin(rest, sink);
        }
        if self.state == State::Inside {
            self.held.push_str(&self.matcher.take_held());
            sink.reasoning(&self.held);
            self.held.clear();
        }
    }

    fn is_space(&self, c: char) -> bool {
        c == '\n' || (self.marks.trims_space && c.is_ascii_whitespace())
    }

    fn start(&mut self, c: char, rest: &mut String, sink: &mut Sink) {
        if c.is_ascii_whitespace() && self.space_bytes == self.held.len() {
            self.space_bytes += 1;
        }
        self.held.push(c);
        let text = &self.held[self.space_bytes..];
        if self.marks.starts.contains(&text) {
            self.held.clear();
            self.state = State::Opened;
        } else if !self.marks.starts.iter().any(|start| start.starts_with(text)) {
            self.begin(rest, sink);
        }
    }

    /// There is no opening marker: the text is reasoning all the same, or none of it is.
    fn begin(&mut self, rest: &mut String, sink: &mut Sink) {
        let held = std::mem::take(&mut self.held);
        self.state = if self.is_open { State::Opened } else { State::Done };
        held.chars().for_each(|c| self.push(c, rest, sink));
    }

    fn inside(&mut self, c: char, rest: &mut String, sink: &mut Sink) {
        let mut text = String::new();
        let found = self.matcher.push(c, &mut text);
        for c in text.chars() {
            if self.is_space(c) {
                self.held.push(c);
                continue;
            }
            sink.reasoning(&std::mem::take(&mut self.held));
            sink.reasoning(as_text(c, &mut [0; 4]));
        }
        let Some(marker) = found else { return };
        self.held.clear();
        self.state = State::Closed;
        if self.interrupts.contains(&marker) {
            self.state = State::Done;
            rest.push_str(marker);
        }
    }
}
