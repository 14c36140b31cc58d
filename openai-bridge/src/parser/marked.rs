//! Calls between markers: JSON objects, alone or in lists, or a name and then the arguments.
//!
//! One machine reads them all; a [`Spec`] says which markers a format has. The text since a marker
//! is kept until the call has begun, and is content again if it does not.

use std::sync::Arc;

use super::Schemas;
use super::call::{Arguments, Call, Rules, Step};
use super::matcher::Matcher;
use super::prose::Prose;
use super::sink::Sink;

/// The longest text between the marker of a call and its arguments, in bytes.
const MAX_HEADER_BYTES: usize = 512;

/// A call's name, and its identity where the format has one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Header {
    /// The identity the model gave.
    pub(super) id: Option<String>,
    /// The tool's name.
    pub(super) name: String,
}

/// How a format marks its calls.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spec {
    /// Begin a section, or a call that is a JSON object.
    pub(super) opens: &'static [&'static str],
    /// Begin a call whose name comes first.
    pub(super) begins: &'static [&'static str],
    /// End one call of a section.
    pub(super) ends: &'static [&'static str],
    /// End a section.
    pub(super) closes: &'static [&'static str],
    /// Characters that begin calls without a marker, at the beginning of the text.
    pub(super) starts: &'static [char],
    /// Reads the name once the header is complete, which it is with an opening brace at the latest.
    pub(super) header: Option<fn(&str) -> Option<Header>>,
    /// Calls are JSON objects.
    pub(super) has_objects: bool,
    /// What a call may do that only some formats have.
    pub(super) rules: Rules,
}

impl Spec {
    /// No markers at all.
    pub(super) const NONE: Self = Self {
        opens: &[],
        begins: &[],
        ends: &[],
        closes: &[],
        starts: &[],
        header: None,
        has_objects: false,
        rules: Rules { is_wary: false, takes_id: false },
    };
}

/// Reads the calls of a format.
#[derive(Clone, Debug)]
pub(super) struct Marked {
    spec: Spec,
    schemas: Arc<Schemas>,
    prose: Prose,
    edges: Matcher,
    state: State,
    /// The text since a marker or a call, while it may still be content.
    raw: String,
    /// Whether a call was read since the last opening marker.
    has_call: bool,
    is_wary: bool,
    calls: u32,
}

#[derive(Clone, Debug)]
enum State {
    Prose,
    /// In a section, between calls.
    Between,
    Object(Box<Call>),
    Header(String),
    BeforeArguments,
    Arguments(Arguments),
}

impl Marked {
    /// Begins before any text.
    pub(super) fn new(spec: Spec, schemas: Arc<Schemas>) -> Self {
        let opens: Vec<&'static str> = [spec.opens, spec.begins].concat();
        let edges = [&opens, spec.ends, spec.closes].concat();
        Self {
            spec,
            schemas,
            prose: Prose::new(&opens),
            edges: Matcher::new(edges),
            state: State::Prose,
            raw: String::new(),
            has_call: false,
            is_wary: false,
            calls: 0,
        }
    }

    /// Takes the next character.
    pub(super) fn push(&mut self, c: char, sink: &mut Sink) {
        match &mut self.state {
            State::Prose => self.prose(c, sink),
            State::Between => self.between(c, sink),
            State::Object(_) => self.object(c, sink),
            State::Header(_) => self.header(c, sink),
            State::BeforeArguments => self.before_arguments(c, sink),
            State::Arguments(arguments) => {
                if arguments.push(c, self.calls - 1, sink) {
                    self.call_ended();
                }
            }
        }
    }

    /// Ends the text.
    pub(super) fn finish(&mut self, sink: &mut Sink) {
        let is_call = match &self.state {
            State::Prose => false,
            State::Between => {
                let held = self.edges.take_held();
                let mut ends = self.spec.closes.iter().chain(self.spec.ends);
                let is_syntax = held.is_empty() || ends.any(|marker| marker.starts_with(&held));
                self.raw.push_str(&held);
                self.has_call && is_syntax
            }
            State::Object(call) => call.is_begun(),
            State::Header(_) => false,
            State::BeforeArguments | State::Arguments(_) => true,
        };
        if is_call {
            self.prose.call_ended();
        } else {
            self.give_back(sink);
        }
        self.prose.finish(sink);
    }

    /// Makes content of what is kept.
    fn give_back(&mut self, sink: &mut Sink) {
        let raw = std::mem::take(&mut self.raw);
        self.prose.content(&raw, sink);
        self.state = State::Prose;
    }

    fn call_ended(&mut self) {
        self.raw.clear();
        self.has_call = true;
        self.prose.call_ended();
        self.state = State::Between;
    }

    fn prose(&mut self, c: char, sink: &mut Sink) {
        if self.spec.starts.contains(&c) && self.prose.is_fresh() {
            self.raw = self.prose.take_space();
            self.is_wary = self.spec.rules.is_wary;
            self.has_call = false;
            self.state = State::Between;
            return self.between(c, sink);
        }
        if let Some(marker) = self.prose.push(c, sink) {
            self.raw = self.prose.take_space();
            self.opened(marker);
        }
    }

    fn opened(&mut self, marker: &'static str) {
        self.raw.push_str(marker);
        self.has_call = false;
        self.is_wary = false;
        let is_begin = self.spec.begins.contains(&marker);
        self.state = if is_begin { State::Header(String::new()) } else { State::Between };
    }

    fn between(&mut self, c: char, sink: &mut Sink) {
        let mut text = String::new();
        let found = self.edges.push(c, &mut text);
        let mut rest = text.chars();
        while let Some(c) = rest.next() {
            self.filler(c, sink);
            if !matches!(self.state, State::Between) {
                let tail: String = rest.chain(self.edges.take_held().chars()).collect();
                tail.chars().for_each(|c| self.push(c, sink));
                return;
            }
        }
        let Some(marker) = found else { return };
        if self.spec.opens.contains(&marker) || self.spec.begins.contains(&marker) {
            let is_twice = !self.has_call && self.spec.opens.contains(&marker);
            if is_twice && !self.raw.is_empty() {
                self.give_back(sink);
                self.raw = self.prose.take_space();
            }
            return self.opened(marker);
        }
        if self.spec.ends.contains(&marker) {
            self.raw.push_str(marker);
            return if self.has_call { self.call_ended() } else { self.give_back(sink) };
        }
        self.raw.push_str(marker);
        match self.has_call {
            true => {
                self.raw.clear();
                self.state = State::Prose;
            }
            false => self.give_back(sink),
        }
    }

    /// Takes a character between calls that is part of no marker.
    fn filler(&mut self, c: char, sink: &mut Sink) {
        if c.is_ascii_whitespace() {
            return self.raw.push(c);
        }
        let before = self.raw.trim_end();
        let is_opened = !self.has_call && self.spec.opens.iter().any(|m| before.ends_with(m));
        self.raw.push(c);
        match c {
            '{' if self.spec.has_objects => {
                let rules = Rules { is_wary: self.is_wary, ..self.spec.rules };
                self.state = State::Object(Box::new(Call::new(rules, self.calls)));
            }
            // The end of a list: what comes after it is no part of it.
            ']' if self.has_call && self.spec.has_objects => self.raw.clear(),
            ',' | ';' | '[' | '}' if self.spec.has_objects => {}
            '`' if !self.spec.has_objects => {}
            _ if is_opened && self.spec.begins.is_empty() && self.spec.header.is_some() => {
                self.state = State::Header(c.into());
            }
            _ => self.give_back(sink),
        }
    }

    fn object(&mut self, c: char, sink: &mut Sink) {
        let State::Object(call) = &mut self.state else { return };
        let was_begun = call.is_begun();
        let step = call.push(c, &self.schemas, sink);
        let is_begun = call.is_begun();
        if is_begun && !was_begun {
            self.calls += 1;
        }
        match step {
            Step::Running if is_begun => self.raw.clear(),
            Step::Running => self.raw.push(c),
            Step::Done => self.call_ended(),
            Step::Malformed if is_begun => {
                self.call_ended();
                self.push(c, sink);
            }
            Step::Malformed => {
                self.give_back(sink);
                self.push(c, sink);
            }
        }
    }

    fn header(&mut self, c: char, sink: &mut Sink) {
        let State::Header(text) = &mut self.state else { return };
        text.push(c);
        self.raw.push(c);
        let is_end = c == '{';
        let header = self.spec.header.and_then(|read| read(text));
        if let Some(Header { id, name }) = header.filter(|header| is_name(&header.name)) {
            sink.begin(self.calls, id, name);
            self.calls += 1;
            self.raw.clear();
            self.state = State::BeforeArguments;
            if is_end {
                self.push(c, sink);
            }
        } else if is_end || text.len() > MAX_HEADER_BYTES {
            self.give_back(sink);
        }
    }

    fn before_arguments(&mut self, c: char, sink: &mut Sink) {
        if let Some(arguments) = Arguments::begin(c, self.calls - 1, sink) {
            self.state = State::Arguments(arguments);
            return;
        }
        // DeepSeek fences its arguments as a block of JSON.
        if c.is_ascii_whitespace() || matches!(c, '`' | 'j' | 's' | 'o' | 'n') {
            return;
        }
        sink.arguments(self.calls - 1, "{}");
        self.call_ended();
        self.push(c, sink);
    }
}

/// Returns whether a text can be a tool's name, and not prose or another marker.
fn is_name(text: &str) -> bool {
    let is_foreign = |c: char| c.is_whitespace() || matches!(c, '<' | '>' | '{' | '[');
    !text.is_empty() && !text.contains(is_foreign)
}
