//! Harmony, the format of gpt-oss: messages in channels, each with a header and a body.
//!
//! `analysis` is reasoning, a recipient (`to=functions.NAME`) makes a message a call, all else is
//! content. Headers are no text: one that is cut off is dropped, unless it names a recipient.

use super::call::Arguments;
use super::matcher::Matcher;
use super::sink::{Sink, as_text};

const START: &str = "<|start|>";
const CHANNEL: &str = "<|channel|>";
const MESSAGE: &str = "<|message|>";
const CONSTRAIN: &str = "<|constrain|>";
/// A recipient may stand before the channel, where the prompt has ended with the role.
const RECIPIENT: &str = " to=";
const ENDS: [&str; 5] = [START, CHANNEL, "<|end|>", "<|call|>", "<|return|>"];

/// The tokens that make a message, which have to be decoded as text.
pub(super) const MARKERS: &[&str] =
    &[START, CHANNEL, MESSAGE, CONSTRAIN, "<|end|>", "<|call|>", "<|return|>"];

/// Reads messages.
#[derive(Clone, Debug)]
pub(super) struct Harmony {
    /// Whether messages to functions are calls, or content as they stand.
    has_calls: bool,
    state: State,
    matcher: Matcher,
    raw: String,
    is_fresh: bool,
    calls: u32,
}

#[derive(Clone, Debug)]
enum State {
    /// Between messages; what stands here belongs to no channel.
    Outside,
    Header(String),
    Reasoning,
    Content,
    BeforeArguments,
    Arguments(Arguments),
}

impl Harmony {
    /// Begins after the prompt, which may have opened the reasoning.
    pub(super) fn new(has_calls: bool, starts_in_reasoning: bool) -> Self {
        let state = if starts_in_reasoning { State::Reasoning } else { State::Outside };
        let first = if starts_in_reasoning { None } else { Some(RECIPIENT) };
        let matcher = Matcher::new(ENDS.into_iter().chain(first));
        Self { has_calls, state, matcher, raw: String::new(), is_fresh: true, calls: 0 }
    }

    /// Takes the next character.
    pub(super) fn push(&mut self, c: char, sink: &mut Sink) {
        if let State::Arguments(arguments) = &mut self.state {
            if arguments.push(c, self.calls - 1, sink) {
                self.enter(State::Outside);
            }
            return;
        }
        let mut text = String::new();
        let found = self.matcher.push(c, &mut text);
        if matches!(self.state, State::Header(_)) {
            self.raw.push(c);
        }
        for c in text.chars() {
            self.text(c, sink);
        }
        match (found, &mut self.state) {
            (None, _) => {}
            (Some(MESSAGE), State::Header(header)) => {
                let header = std::mem::take(header);
                self.message(&header, sink);
            }
            (Some(marker), State::Header(header)) if marker == CHANNEL || marker == CONSTRAIN => {
                header.push_str(marker);
            }
            (Some(marker @ (START | CHANNEL | RECIPIENT)), _) => {
                self.without_arguments(sink);
                self.enter(State::Header(marker.to_owned()));
                self.raw = marker.to_owned();
            }
            (Some(_), _) => {
                self.without_arguments(sink);
                self.enter(State::Outside);
            }
        }
    }

    /// Ends the text.
    pub(super) fn finish(&mut self, sink: &mut Sink) {
        let held = self.matcher.take_held();
        match &self.state {
            State::Header(_) if recipient(&self.raw).is_some() => sink.content(&self.raw),
            State::Header(_) | State::BeforeArguments | State::Arguments(_) => {}
            _ => held.chars().for_each(|c| self.text(c, sink)),
        }
    }

    fn enter(&mut self, state: State) {
        self.matcher = match state {
            State::Header(_) => Matcher::new([CHANNEL, CONSTRAIN, MESSAGE, START]),
            _ => Matcher::new(ENDS),
        };
        self.state = state;
        self.is_fresh = false;
        self.raw.clear();
    }

    fn text(&mut self, c: char, sink: &mut Sink) {
        let mut room = [0; 4];
        match &mut self.state {
            State::Header(header) => header.push(c),
            State::Reasoning => sink.reasoning(as_text(c, &mut room)),
            State::Outside if c.is_ascii_whitespace() && !self.is_fresh => {}
            // A model that left its format.
            State::Outside | State::Content => {
                sink.content(as_text(c, &mut room));
                if std::mem::take(&mut self.is_fresh) {
                    self.matcher = self.matcher.without(RECIPIENT);
                }
                self.state = State::Content;
            }
            State::BeforeArguments if c.is_ascii_whitespace() => {}
            State::BeforeArguments => match Arguments::begin(c, self.calls - 1, sink) {
                Some(arguments) => self.state = State::Arguments(arguments),
                None => {
                    self.without_arguments(sink);
                    self.state = State::Content;
                    sink.content(as_text(c, &mut room));
                }
            },
            State::Arguments(_) => {}
        }
    }

    /// Completes a call that got no arguments.
    fn without_arguments(&mut self, sink: &mut Sink) {
        if matches!(self.state, State::BeforeArguments) {
            sink.arguments(self.calls - 1, "{}");
        }
    }

    /// Begins the body that a header announces.
    fn message(&mut self, header: &str, sink: &mut Sink) {
        let channel = header.split(CHANNEL).nth(1).unwrap_or_default().trim_start();
        match recipient(header) {
            Some(name) if self.has_calls => {
                sink.begin(self.calls, None, name.to_owned());
                self.calls += 1;
                self.enter(State::BeforeArguments);
            }
            Some(_) => {
                sink.content(&self.raw);
                self.enter(State::Content);
            }
            None if channel.starts_with("analysis") => self.enter(State::Reasoning),
            None => self.enter(State::Content),
        }
    }
}

/// Returns the function that a header names.
fn recipient(header: &str) -> Option<&str> {
    let is_end = |c: char| c.is_whitespace() || c == '<';
    let name = header.split("to=").nth(1)?.split(is_end).next()?;
    let name = name.strip_prefix("functions.").unwrap_or(name);
    (!name.is_empty() && name != "assistant").then_some(name)
}
