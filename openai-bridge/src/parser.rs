//! Reads reasoning, content and tool calls out of a model's text, as it grows.
//!
//! One ordered stream of events, from one state machine per format. The law: however the text is
//! cut, the events are the same once neighbours of one kind are joined. The machines keep it by
//! taking one character after the other. Nothing is lost: a call whose name does not come is
//! content again. What is held back is a part of the text.

mod call;
mod format;
mod harmony;
mod marked;
mod matcher;
mod named;
mod prose;
mod python;
mod pythonic;
mod reasoning;
mod scan;
mod sink;
mod specs;
mod tagged;
#[cfg(test)]
mod tests;
mod typed;

use std::collections::HashMap;
use std::sync::Arc;

pub use format::{ReasoningFormat, ToolFormat};
use harmony::Harmony;
use marked::Marked;
use named::Named;
use pythonic::Pythonic;
use reasoning::Reasoning;
use sink::Sink;
use tagged::Tagged;

/// JSON Schemas of the tools' parameters, by the tools' names.
pub type Schemas = HashMap<String, serde_json::Value>;

/// What a piece of text means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The reasoning grows.
    Reasoning(String),
    /// The content grows.
    Content(String),
    /// A call begins.
    CallBegun {
        /// Counts the calls from 0.
        index: u32,
        /// The identity that the model gave, where the format has one.
        id: Option<String>,
        /// The tool's name.
        name: String,
    },
    /// A call's arguments grow; joined they are the JSON text of an object.
    Arguments {
        /// The call's index.
        index: u32,
        /// What comes next.
        text: String,
    },
}

impl Event {
    /// Returns the length of its text in bytes.
    pub(crate) fn size(&self) -> usize {
        match self {
            Self::Reasoning(text) | Self::Content(text) | Self::Arguments { text, .. } => {
                text.len()
            }
            Self::CallBegun { id, name, .. } => name.len() + id.as_ref().map_or(0, String::len),
        }
    }
}

/// How calls are written: by the model's habit, or as the server constrains them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Syntax {
    /// The model's own format.
    Format(ToolFormat),
    /// The whole answer is the arguments of a call to this tool.
    Named(String),
    /// The whole answer is a list: `[{"name": …, "parameters": {…}}, …]`.
    Array,
}

impl From<ToolFormat> for Syntax {
    fn from(format: ToolFormat) -> Self {
        Self::Format(format)
    }
}

/// What to look for in a text.
#[derive(Clone, Debug, Default)]
pub struct ParserConfig {
    /// How calls are written; without it, their syntax stays content.
    pub tools: Option<Syntax>,
    /// How reasoning is marked; without it, its markers stay content.
    pub reasoning: Option<ReasoningFormat>,
    /// The prompt has opened the reasoning already.
    pub starts_in_reasoning: bool,
    /// The parameters' schemas, for formats whose values have no types; where nothing marks a call,
    /// their names are the only ones that a call may have, unless there are none.
    pub schemas: Arc<Schemas>,
}

/// Turns a text that comes in pieces into events.
#[derive(Clone, Debug)]
pub struct OutputParser {
    reasoning: Option<Reasoning>,
    machine: Machine,
    /// What the reasoning gave back, within one push.
    rest: String,
}

#[derive(Clone, Debug)]
enum Machine {
    /// All of it is content.
    Plain,
    Marked(Marked),
    Tagged(Tagged),
    Pythonic(Pythonic),
    Harmony(Harmony),
    Named(Named),
}

impl OutputParser {
    /// Makes a parser for one text.
    pub fn new(config: ParserConfig) -> Self {
        let ParserConfig { tools, reasoning, starts_in_reasoning, schemas } = config;
        let is_harmony = reasoning == Some(ReasoningFormat::GptOss);
        let has_calls = tools == Some(Syntax::Format(ToolFormat::Harmony));
        let machine = match &tools {
            None | Some(Syntax::Format(_)) if is_harmony || has_calls => {
                let is_open = is_harmony && starts_in_reasoning;
                Machine::Harmony(Harmony::new(has_calls, is_open))
            }
            None => Machine::Plain,
            Some(Syntax::Format(format)) => format.machine(schemas),
            Some(Syntax::Named(name)) => Machine::Named(Named::new(name.clone())),
            Some(Syntax::Array) => Machine::Marked(Marked::new(specs::ARRAY, schemas)),
        };
        let interrupts = match &tools {
            Some(Syntax::Format(format)) => format.interrupts(),
            _ => &[],
        };
        // What the server constrains is the answer, whose reasoning is marked if there is any.
        let is_constrained = matches!(tools, Some(Syntax::Named(_) | Syntax::Array));
        let reasoning = reasoning.filter(|_| !is_harmony && !has_calls).map(|format| {
            let is_open = starts_in_reasoning || (format.is_implied() && !is_constrained);
            Reasoning::new(format.marks(), is_open, interrupts)
        });
        Self { reasoning, machine, rest: String::new() }
    }

    /// Takes the next piece of text and appends what it means to `out`.
    pub fn push(&mut self, text: &str, out: &mut Vec<Event>) {
        let mut sink = Sink::new(out);
        let Some(reasoning) = self.reasoning.as_mut().filter(|reasoning| !reasoning.is_done())
        else {
            return self.machine.push(text, &mut sink);
        };
        for c in text.chars() {
            reasoning.push(c, &mut self.rest, &mut sink);
        }
        let rest = std::mem::take(&mut self.rest);
        self.machine.push(&rest, &mut sink);
    }

    /// Ends the text and appends what was held back to `out`.
    pub fn finish(&mut self, out: &mut Vec<Event>) {
        let mut sink = Sink::new(out);
        if let Some(reasoning) = &mut self.reasoning {
            reasoning.finish(&mut self.rest, &mut sink);
        }
        let rest = std::mem::take(&mut self.rest);
        self.machine.push(&rest, &mut sink);
        self.machine.finish(&mut sink);
    }
}

impl Machine {
    fn push(&mut self, text: &str, sink: &mut Sink) {
        match self {
            Self::Plain => sink.content(text),
            Self::Marked(machine) => text.chars().for_each(|c| machine.push(c, sink)),
            Self::Tagged(machine) => text.chars().for_each(|c| machine.push(c, sink)),
            Self::Pythonic(machine) => text.chars().for_each(|c| machine.push(c, sink)),
            Self::Harmony(machine) => text.chars().for_each(|c| machine.push(c, sink)),
            Self::Named(machine) => text.chars().for_each(|c| machine.push(c, sink)),
        }
    }

    fn finish(&mut self, sink: &mut Sink) {
        match self {
            Self::Plain => {}
            Self::Marked(machine) => machine.finish(sink),
            Self::Tagged(machine) => machine.finish(sink),
            Self::Pythonic(machine) => machine.finish(sink),
            Self::Harmony(machine) => machine.finish(sink),
            Self::Named(machine) => machine.finish(sink),
        }
    }
}
