//! Calls whose parameters are written one by one between tags, as in XML.
//!
//! The values have no types of their own: the tool's schema gives them. What is kept since the
//! opening tag is content again if no call comes of it; a value ends at the first closing tag.

use std::sync::Arc;

use super::Schemas;
use super::matcher::Matcher;
use super::prose::Prose;
use super::sink::Sink;
use super::typed::{Growing, Types, quoted};

/// The longest name of a tool or a parameter, in bytes.
const MAX_NAME_BYTES: usize = 512;

/// A format's tags.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tags {
    /// Begin a section, or a call.
    pub(super) opens: &'static [&'static str],
    /// End a section.
    pub(super) closes: &'static [&'static str],
    /// Stands before a tool's name; without it, the name follows the opening tag.
    pub(super) name: Option<&'static str>,
    /// End a tool's name.
    pub(super) name_ends: &'static [&'static str],
    /// Stands before a parameter's name, and after it.
    pub(super) key: (&'static str, &'static str),
    /// Stands before a value, if anything does.
    pub(super) value: Option<&'static str>,
    /// Ends a value.
    pub(super) value_end: &'static str,
    /// Ends a call.
    pub(super) call_end: &'static str,
    /// One line break at each end of a value is the format's.
    pub(super) trims: bool,
    /// A parameter's tag says `string="true"` or `string="false"`.
    pub(super) says_type: bool,
}

/// Reads the calls of a format.
#[derive(Clone, Debug)]
pub(super) struct Tagged {
    tags: Tags,
    schemas: Arc<Schemas>,
    prose: Prose,
    state: State,
    matcher: Matcher,
    /// What stands before the next tag, where that is a name.
    text: String,
    raw: String,
    tool: String,
    has_call: bool,
    has_parameter: bool,
    calls: u32,
}

#[derive(Clone, Debug)]
enum State {
    Prose,
    Between,
    Name,
    Inside,
    Key,
    BeforeValue(Types),
    Value(Growing),
}

impl Tagged {
    /// Begins before any text.
    pub(super) fn new(tags: Tags, schemas: Arc<Schemas>) -> Self {
        Self {
            tags,
            schemas,
            prose: Prose::new(tags.opens),
            state: State::Prose,
            matcher: Matcher::new([]),
            text: String::new(),
            raw: String::new(),
            tool: String::new(),
            has_call: false,
            has_parameter: false,
            calls: 0,
        }
    }

    /// Takes the next character.
    pub(super) fn push(&mut self, c: char, sink: &mut Sink) {
        if matches!(self.state, State::Prose) {
            let Some(tag) = self.prose.push(c, sink) else { return };
            self.raw = self.prose.take_space() + tag;
            return self.opened(tag);
        }
        let is_raw = matches!(self.state, State::Between | State::Name);
        let mut text = String::new();
        let found = self.matcher.push(c, &mut text);
        if is_raw {
            self.raw.push(c);
        }
        if !text.is_empty() && !self.text(&text, sink) {
            return self.leave(&text, sink);
        }
        if let Some(tag) = found {
            self.tag(tag, sink);
        }
    }

    /// Ends the text.
    pub(super) fn finish(&mut self, sink: &mut Sink) {
        let held = self.matcher.take_held();
        let mut closes = self.tags.closes.iter();
        let is_close = held.is_empty() || closes.any(|tag| tag.starts_with(&held));
        match &mut self.state {
            State::Prose => {}
            State::Between if self.has_call && is_close && self.raw.trim_start() == held => {
                self.prose.call_ended();
            }
            State::Between | State::Name => {
                let raw = std::mem::take(&mut self.raw);
                self.prose.content(&raw, sink);
            }
            State::Value(value) => {
                let mut out = String::new();
                held.chars().for_each(|c| value.push(c, &mut out));
                value.finish(false, &mut out);
                sink.arguments(self.calls - 1, &out);
                self.prose.call_ended();
            }
            State::Inside | State::Key | State::BeforeValue(_) => self.prose.call_ended(),
        }
        self.prose.finish(sink);
    }

    fn enter(&mut self, state: State, tags: &[&'static str]) {
        self.state = state;
        self.matcher = Matcher::new(tags.iter().copied());
        self.text.clear();
    }

    fn opened(&mut self, tag: &'static str) {
        self.has_call = false;
        match self.tags.name {
            Some(name) if name != tag => self.between(),
            _ => self.enter(State::Name, self.tags.name_ends),
        }
    }

    fn between(&mut self) {
        let tags = [self.tags.opens, self.tags.closes].concat();
        match self.tags.name {
            Some(name) if !tags.contains(&name) => {
                self.enter(State::Between, &[&tags[..], &[name]].concat());
            }
            _ => self.enter(State::Between, &tags),
        }
    }

    fn inside(&mut self) {
        let tags = [&[self.tags.key.0, self.tags.call_end], self.tags.closes].concat();
        self.enter(State::Inside, &tags);
    }

    /// Takes text that is no tag; false if none may stand here.
    fn text(&mut self, text: &str, sink: &mut Sink) -> bool {
        match &mut self.state {
            State::Name | State::Key => {
                self.text.push_str(text);
                self.text.len() <= MAX_NAME_BYTES
            }
            State::Value(value) => {
                let mut out = String::new();
                text.chars().for_each(|c| value.push(c, &mut out));
                sink.arguments(self.calls - 1, &out);
                true
            }
            _ => text.chars().all(|c| c.is_ascii_whitespace()),
        }
    }

    /// Leaves the section: what was kept and what did not fit is content.
    fn leave(&mut self, text: &str, sink: &mut Sink) {
        let held = self.matcher.take_held();
        let mut raw = std::mem::take(&mut self.raw);
        let is_begun = matches!(self.state, State::Inside | State::Key | State::BeforeValue(_));
        if is_begun {
            self.prose.call_ended();
            // The text of a name was taken already.
            raw = if self.text.is_empty() { text.to_owned() } else { self.text.clone() };
        } else {
            raw.truncate(raw.len() - held.len());
        }
        self.state = State::Prose;
        self.prose.content(&raw, sink);
        held.chars().for_each(|c| self.push(c, sink));
    }

    fn tag(&mut self, tag: &'static str, sink: &mut Sink) {
        match &self.state {
            State::Prose => {}
            State::Between if self.tags.closes.contains(&tag) => {
                if self.has_call {
                    self.raw.clear();
                }
                self.leave("", sink);
            }
            State::Between if Some(tag) == self.tags.name => {
                self.enter(State::Name, self.tags.name_ends);
            }
            State::Between => self.opened(tag),
            State::Name => self.name(tag, sink),
            State::Inside if tag == self.tags.key.0 => self.enter(State::Key, &[self.tags.key.1]),
            State::Inside => self.call_ended(tag, sink),
            State::Key => self.key(sink),
            State::BeforeValue(types) => self.value(*types),
            State::Value(_) => self.value_ended(sink),
        }
    }

    fn name(&mut self, tag: &'static str, sink: &mut Sink) {
        let name = unquoted(&self.text).to_owned();
        if name.is_empty() && tag == "\n" {
            // The name stands in the next line.
            return;
        }
        if name.is_empty() || name.contains(['<', '\n', '{']) {
            return self.leave("", sink);
        }
        sink.begin(self.calls, None, name.clone());
        self.calls += 1;
        self.raw.clear();
        self.tool = name;
        self.has_parameter = false;
        if tag == self.tags.key.0 {
            self.enter(State::Key, &[self.tags.key.1]);
        } else if tag == self.tags.call_end {
            self.call_ended(tag, sink);
        } else {
            self.inside();
        }
    }

    fn key(&mut self, sink: &mut Sink) {
        let (key, rest) = match self.tags.says_type {
            true => self.text.split_once(' ').unwrap_or((&self.text, "")),
            false => (self.text.as_str(), ""),
        };
        let key = unquoted(key);
        let types = match rest.trim() {
            "string=\"true\"" => Types::TEXT,
            "string=\"false\"" => Types::DATA,
            _ => Types::of(self.schemas.get(&self.tool), key),
        };
        let before = if self.has_parameter { ", " } else { "{" };
        sink.arguments(self.calls - 1, &format!("{before}{}: ", quoted(key)));
        self.has_parameter = true;
        match self.tags.value {
            Some(tag) => self.enter(State::BeforeValue(types), &[tag]),
            None => self.value(types),
        }
    }

    fn value(&mut self, types: Types) {
        let value = Growing::new(types, self.tags.trims);
        self.enter(State::Value(value), &[self.tags.value_end]);
    }

    fn value_ended(&mut self, sink: &mut Sink) {
        let mut out = String::new();
        if let State::Value(value) = &mut self.state {
            value.finish(true, &mut out);
        }
        sink.arguments(self.calls - 1, &out);
        self.inside();
    }

    fn call_ended(&mut self, tag: &'static str, sink: &mut Sink) {
        let end = if self.has_parameter { "}" } else { "{}" };
        sink.arguments(self.calls - 1, end);
        self.prose.call_ended();
        self.has_call = true;
        match self.tags.closes.is_empty() || self.tags.closes.contains(&tag) {
            true => self.state = State::Prose,
            false => self.between(),
        }
    }
}

/// Takes white space and quotes off a name.
fn unquoted(text: &str) -> &str {
    text.trim().trim_matches(['"', '\''])
}
