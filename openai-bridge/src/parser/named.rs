//! The whole text is the arguments of one call, whose name the request chose.

use super::call::Arguments;
use super::prose::Prose;
use super::sink::Sink;

/// Reads the arguments of one call.
#[derive(Clone, Debug)]
pub(super) struct Named {
    name: String,
    state: State,
    /// What comes after the arguments, or instead of them.
    prose: Prose,
}

#[derive(Clone, Debug)]
enum State {
    Before,
    Arguments(Arguments),
    Prose,
}

impl Named {
    /// Begins before any text.
    pub(super) fn new(name: String) -> Self {
        Self { name, state: State::Before, prose: Prose::new(&[]) }
    }

    /// Takes the next character.
    pub(super) fn push(&mut self, c: char, sink: &mut Sink) {
        match &mut self.state {
            State::Before if c == '{' => {
                sink.begin(0, None, std::mem::take(&mut self.name));
                self.state = Arguments::begin(c, 0, sink).map_or(State::Prose, State::Arguments);
                self.prose.call_ended();
            }
            State::Arguments(arguments) => {
                if arguments.push(c, 0, sink) {
                    self.state = State::Prose;
                }
            }
            State::Before | State::Prose => {
                if !c.is_ascii_whitespace() {
                    self.state = State::Prose;
                }
                self.prose.push(c, sink);
            }
        }
    }

    /// Ends the text.
    pub(super) fn finish(&mut self, sink: &mut Sink) {
        self.prose.finish(sink);
    }
}
