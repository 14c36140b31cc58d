//! Calls written as Python: `[f(a=1), g(b="x")]`, at the beginning of the text or after a marker.
//!
//! A call begins once its first argument's name or its closing parenthesis is read, so that links
//! and lists stay content.

use std::sync::Arc;

use super::Schemas;
use super::matcher::Matcher;
use super::prose::Prose;
use super::python::Literal;
use super::scan::Part;
use super::sink::Sink;
use super::typed::quoted;

/// A format's markers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Marks {
    /// Stands before a list.
    pub(super) open: &'static str,
    /// Stands after a list.
    pub(super) close: &'static str,
    /// A list may begin the text without a marker.
    pub(super) starts: bool,
}

/// Reads lists of calls.
#[derive(Clone, Debug)]
pub(super) struct Pythonic {
    marks: Marks,
    schemas: Arc<Schemas>,
    prose: Prose,
    closes: Matcher,
    state: State,
    raw: String,
    name: String,
    key: String,
    is_wary: bool,
    /// Whether the call that is being read has begun.
    is_begun: bool,
    /// Whether the list has a call.
    has_call: bool,
    has_parameter: bool,
    calls: u32,
}

#[derive(Clone, Debug)]
enum State {
    Prose,
    /// After the opening marker.
    BeforeList,
    /// Before a call's name.
    BeforeName,
    Name,
    /// Before an argument's name, or the end of the call.
    BeforeKey,
    Key,
    Value(Literal),
    AfterValue,
    /// After a call, within the list.
    AfterCall,
    /// After the list.
    AfterList,
}

impl Pythonic {
    /// Begins before any text.
    pub(super) fn new(marks: Marks, schemas: Arc<Schemas>) -> Self {
        Self {
            marks,
            schemas,
            prose: Prose::new(&[marks.open]),
            closes: Matcher::new([marks.close]),
            state: State::Prose,
            raw: String::new(),
            name: String::new(),
            key: String::new(),
            is_wary: false,
            is_begun: false,
            has_call: false,
            has_parameter: false,
            calls: 0,
        }
    }

    /// Takes the next character.
    pub(super) fn push(&mut self, c: char, sink: &mut Sink) {
        match self.state {
            State::Prose => self.prose(c, sink),
            State::AfterList => self.after_list(c, sink),
            _ => {
                self.raw.push(c);
                if !self.list(c, sink) {
                    self.give_back(sink);
                } else if self.is_begun {
                    self.raw.clear();
                }
            }
        }
    }

    /// Ends the text.
    pub(super) fn finish(&mut self, sink: &mut Sink) {
        match &mut self.state {
            State::Prose => {}
            State::AfterList => self.prose.call_ended(),
            State::Value(literal) => {
                let mut out = String::new();
                literal.finish(&mut out);
                sink.arguments(self.calls - 1, &out);
                self.prose.call_ended();
            }
            State::AfterCall | State::BeforeName if self.has_call => self.prose.call_ended(),
            _ if self.is_begun => self.prose.call_ended(),
            _ => self.give_back(sink),
        }
        self.prose.finish(sink);
    }

    fn give_back(&mut self, sink: &mut Sink) {
        let raw = std::mem::take(&mut self.raw);
        self.prose.content(&raw, sink);
        self.state = State::Prose;
    }

    fn prose(&mut self, c: char, sink: &mut Sink) {
        let is_start = self.marks.starts && c == '[' && self.prose.is_fresh();
        let marker = if is_start { "[" } else { self.prose.push(c, sink).unwrap_or_default() };
        if marker.is_empty() {
            return;
        }
        self.raw = self.prose.take_space() + marker;
        self.is_wary = is_start;
        self.is_begun = false;
        self.has_call = false;
        self.state = if is_start { State::BeforeName } else { State::BeforeList };
    }

    fn after_list(&mut self, c: char, sink: &mut Sink) {
        let mut text = String::new();
        if self.closes.push(c, &mut text).is_some() {
            self.state = State::Prose;
        } else if !text.chars().all(|c| c.is_ascii_whitespace()) {
            self.state = State::Prose;
            let text = text + &self.closes.take_held();
            text.chars().for_each(|c| self.push(c, sink));
        } else {
            self.prose.content(&text, sink);
        }
    }

    /// Takes a character of a list; false if no list goes on like this.
    fn list(&mut self, c: char, sink: &mut Sink) -> bool {
        if let State::Value(literal) = &mut self.state {
            let mut out = String::new();
            let part = literal.push(c, &mut out);
            sink.arguments(self.calls - 1, &out);
            match part {
                Some(Part::Inside) => return true,
                Some(Part::Last) => self.state = State::AfterValue,
                Some(Part::Past) => {
                    self.state = State::AfterValue;
                    return self.list(c, sink);
                }
                None => return false,
            }
            return true;
        }
        let is_word = c.is_alphanumeric() || matches!(c, '_' | '.' | '-');
        match (&self.state, c) {
            (State::Name, _) if is_word => self.name.push(c),
            (State::Key, _) if is_word => self.key.push(c),
            (State::Name, _) if c.is_ascii_whitespace() => return false,
            (_, _) if c.is_ascii_whitespace() => {}
            (State::BeforeList, '[') => self.state = State::BeforeName,
            (State::BeforeName, _) if is_word && !c.is_ascii_digit() => {
                self.name = c.into();
                self.state = State::Name;
            }
            (State::Name, '(') => {
                let is_tool = self.schemas.is_empty() || self.schemas.contains_key(&self.name);
                if self.is_wary && !is_tool {
                    return false;
                }
                self.has_parameter = false;
                self.state = State::BeforeKey;
            }
            (State::BeforeKey, ')') | (State::AfterValue, ')') => self.call_ended(sink),
            (State::BeforeKey, _) if is_word => {
                self.key = c.into();
                self.state = State::Key;
            }
            (State::Key, '=') => self.value(sink),
            (State::AfterValue, ',') => self.state = State::BeforeKey,
            (State::AfterCall, ',') => self.state = State::BeforeName,
            (State::AfterCall | State::BeforeName, ']') if self.has_call => {
                self.prose.call_ended();
                self.closes.take_held();
                self.state = State::AfterList;
            }
            _ => return false,
        }
        true
    }

    fn begin(&mut self, sink: &mut Sink) {
        if !self.is_begun {
            sink.begin(self.calls, None, self.name.clone());
            self.calls += 1;
            self.is_begun = true;
        }
    }

    fn value(&mut self, sink: &mut Sink) {
        self.begin(sink);
        let before = if self.has_parameter { ", " } else { "{" };
        sink.arguments(self.calls - 1, &format!("{before}{}: ", quoted(&self.key)));
        self.has_parameter = true;
        self.state = State::Value(Literal::default());
    }

    fn call_ended(&mut self, sink: &mut Sink) {
        self.begin(sink);
        sink.arguments(self.calls - 1, if self.has_parameter { "}" } else { "{}" });
        self.prose.call_ended();
        self.raw.clear();
        self.is_begun = false;
        self.has_call = true;
        self.state = State::AfterCall;
    }
}
