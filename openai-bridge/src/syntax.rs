//! How a model writes its calls and its thoughts: found in its template, or named.

use std::sync::Arc;

use engine::{Error, Result};

use crate::parser::{OutputParser, ParserConfig, ReasoningFormat, Syntax as Calls, ToolFormat};
use crate::template::Template;
use crate::tools::{Choice, Tools};

/// The formats of one model.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Syntax {
    tools: Option<ToolFormat>,
    reasoning: Option<ReasoningFormat>,
}

impl Syntax {
    /// Finds the formats in a template. One that does not know tools is told of them in the words
    /// of Hermes.
    pub(crate) fn of_template(template: &Template) -> Self {
        let source = template.source();
        let tools = match template.knows_tools() {
            true => ToolFormat::detect(source),
            false => None,
        };
        let tools = tools.or_else(|| ToolFormat::by_name("hermes"));
        Self { tools, reasoning: ReasoningFormat::detect(source) }
    }

    /// Takes the formats of these names, where there are some; `none` switches one off.
    pub(crate) fn with_names(self, tools: Option<&str>, reasoning: Option<&str>) -> Result<Self> {
        let unknown = |what: &str, name: &str, names: Vec<&str>| {
            let names = names.join(", ");
            Error::invalid(format!("{what} parser `{name}` is not known; known are {names}, none"))
        };
        let tools = match tools {
            None => self.tools,
            Some("none") => None,
            Some(name) => Some(
                ToolFormat::by_name(name)
                    .ok_or_else(|| unknown("tool-call", name, ToolFormat::names().collect()))?,
            ),
        };
        let reasoning =
            match reasoning {
                None => self.reasoning,
                Some("none") => None,
                Some(name) => Some(ReasoningFormat::by_name(name).ok_or_else(|| {
                    unknown("reasoning", name, ReasoningFormat::names().collect())
                })?),
            };
        Ok(Self { tools, reasoning })
    }

    /// Returns the steering tokens that the formats are made of.
    pub(crate) fn markers(&self) -> Vec<&'static str> {
        let tools = self.tools.iter().flat_map(|format| format.markers());
        let reasoning = self.reasoning.iter().flat_map(|format| format.markers());
        tools.chain(reasoning).copied().collect()
    }

    /// Returns how calls are written.
    pub(crate) fn tools(&self) -> Option<ToolFormat> {
        self.tools
    }

    /// Returns whether a prompt has already begun the thoughts.
    pub(crate) fn starts_in_reasoning(&self, prompt: &str) -> bool {
        let begin = self.marks().map(|(begin, _)| begin);
        begin.is_some_and(|begin| prompt.trim_end().ends_with(begin))
    }

    /// Returns what ends the thoughts.
    pub(crate) fn reasoning_end(&self) -> Option<String> {
        self.marks().map(|(_, end)| end.to_owned())
    }

    /// Returns what begins and what ends the thoughts, where it is one word each.
    fn marks(&self) -> Option<(&'static str, &'static str)> {
        match self.reasoning?.markers() {
            [begin, end] => Some((begin, end)),
            _ => None,
        }
    }

    /// Makes the parser of one answer; none if its text is told as it is.
    pub(crate) fn parser(&self, tools: &Tools, starts_in_reasoning: bool) -> Option<OutputParser> {
        let calls = match &tools.choice {
            Choice::None => None,
            Choice::Auto => self.tools.map(Calls::Format),
            Choice::Required => Some(Calls::Array),
            Choice::Named(name) => Some(Calls::Named(name.clone())),
        };
        if calls.is_none() && self.reasoning.is_none() {
            return None;
        }
        Some(OutputParser::new(ParserConfig {
            tools: calls,
            reasoning: self.reasoning,
            starts_in_reasoning,
            schemas: Arc::clone(&tools.schemas),
        }))
    }
}
