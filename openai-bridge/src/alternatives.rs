//! What an answer looks like while tools may be called and a text is held to a constraint.
//!
//! The answer is either calls in the model's own format or the text that the client asks for, as
//! one grammar in llguidance's dialect of Lark. Calls begin with the format's own marker, so that
//! the first token decides between the two. Where a call's body is JSON, its name and arguments
//! follow the tools' schemas; behind other markers the model is free.

use engine::{Constraint, TokenId, TokenKind, Vocabulary};
use serde_json::{Value as Json, json};

use crate::parser::ToolFormat;
use crate::tools::{Tools, name};

/// Any text up to a control token.
const TEXT: &str = "TEXT: /(?s:.+)/\n";

/// The control tokens that a model's formats are made of. A grammar knows them by number; other
/// markers are text.
#[derive(Clone, Debug, Default)]
pub(crate) struct Marks(Vec<(String, TokenId)>);

impl Marks {
    /// Finds those among `markers` that are control tokens of a vocabulary.
    pub(crate) fn of(markers: &[&str], vocabulary: &Vocabulary) -> Self {
        let tokens = vocabulary.tokens.iter().zip(&vocabulary.kinds).zip(0..);
        let found = tokens.filter(|((token, kind), _)| {
            **kind == TokenKind::Control && markers.contains(&token.as_str())
        });
        Self(found.map(|((token, _), id)| (token.clone(), id)).collect())
    }

    /// Returns a text as the parts of a rule: control tokens by number, the rest literally.
    fn spell(&self, text: &str) -> String {
        let found = self.0.iter().filter_map(|(token, id)| Some((text.find(token)?, token, id)));
        let Some((start, token, id)) = found.min_by_key(|(start, token, _)| (*start, !token.len()))
        else {
            return if text.is_empty() { String::new() } else { literal(text) };
        };
        let (before, after) = (&text[..start], &text[start + token.len()..]);
        [self.spell(before), format!("<[{id}]>"), self.spell(after)]
            .into_iter()
            .filter(|part| !part.is_empty())
            .collect::<Vec<_>>()
            .join(" ")
    }

    /// Returns the rule of texts that may hold all these tokens.
    fn tail(&self) -> String {
        let ids: Vec<String> = self.0.iter().map(|(_, id)| id.to_string()).collect();
        match ids.is_empty() {
            true => format!("tail: TEXT?\n{TEXT}"),
            false => format!("tail: TEXT? (<[{}]> TEXT?)*\n{TEXT}", ids.join(",")),
        }
    }
}

/// How the calls of a format begin.
enum Shape {
    /// An object behind each marker, and what closes it.
    Objects(&'static str, &'static str),
    /// A list of objects behind a marker, and what closes it.
    List(&'static str, &'static str),
    /// Objects with `parameters`, one after the other by `;`, behind a marker or none.
    Bare(&'static str),
    /// A list of objects behind a marker, or a name and then what the format likes.
    ListOrName(&'static str),
    /// A list of calls as Python has them, behind a marker or none.
    Python(&'static str),
    /// What the format likes, behind one of these.
    Free(&'static [&'static str]),
    /// Messages in channels.
    Harmony,
}

fn shape(format: ToolFormat) -> Shape {
    match format {
        ToolFormat::Hermes => Shape::Objects("<tool_call>", "</tool_call>"),
        ToolFormat::Granite => Shape::List("<|tool_call|>", ""),
        ToolFormat::Jamba => Shape::List("<tool_calls>", "</tool_calls>"),
        ToolFormat::Nemotron => Shape::List("<TOOLCALL>", "</TOOLCALL>"),
        ToolFormat::Phi4 => Shape::List("functools", ""),
        ToolFormat::Llama3Json => Shape::Bare("<|python_tag|>"),
        ToolFormat::Mistral => Shape::ListOrName("[TOOL_CALLS]"),
        ToolFormat::Pythonic => Shape::Python("<|python_start|>"),
        ToolFormat::Lfm2 => Shape::Free(&["<|tool_call_start|>"]),
        ToolFormat::DeepseekV3 | ToolFormat::DeepseekV31 => {
            Shape::Free(&["<｜tool▁calls▁begin｜>"])
        }
        ToolFormat::DeepseekV32 => {
            Shape::Free(&["<｜DSML｜function_calls>", "<｜DSML｜tool_calls>"])
        }
        ToolFormat::Qwen3Coder => Shape::Free(&["<tool_call>", "<function="]),
        ToolFormat::SeedOss => Shape::Free(&["<seed:tool_call>", "<function="]),
        ToolFormat::Glm45 => Shape::Free(&["<tool_call>"]),
        ToolFormat::KimiK2 => Shape::Free(&["<|tool_calls_section_begin|>"]),
        ToolFormat::MinimaxM2 => Shape::Free(&["<minimax:tool_call>"]),
        ToolFormat::Harmony => Shape::Harmony,
    }
}

/// Returns the constraint to calls of a format or to what `constraint` asks; none: that one is a
/// grammar of the client's own, which cannot be part of another.
pub(crate) fn either(
    constraint: &Constraint,
    tools: &Tools,
    format: ToolFormat,
    marks: &Marks,
) -> Option<Constraint> {
    let answer = match constraint {
        Constraint::Grammar(_) => return None,
        Constraint::JsonObject => schema(json!({"type": "object"}), false),
        Constraint::JsonSchema(text) => match serde_json::from_str(text) {
            Ok(all @ Json::Object(_)) => schema(all, false),
            Ok(Json::Bool(true)) => schema(json!({}), false),
            // The engine says what is wrong with it.
            _ => return Some(constraint.clone()),
        },
        Constraint::Regex(pattern) => expression(pattern),
        Constraint::Choice(texts) => {
            texts.iter().map(|text| literal(text)).collect::<Vec<_>>().join(" | ")
        }
    };
    let calls = calls(tools, &shape(format), marks);
    Some(Constraint::Grammar(format!("start: answer | calls\nanswer: {answer}\n{calls}")))
}

/// Returns the rule `calls` and those that it needs.
fn calls(tools: &Tools, shape: &Shape, marks: &Marks) -> String {
    let object = |key| schema(tools.call(key), true);
    let list = |key| schema(tools.calls(key), true);
    match *shape {
        Shape::Objects(open, close) => {
            let (open, close) = (marks.spell(open), marks.spell(close));
            format!(
                "calls: call{}\n\
                 call: {open} \"\\n\"? object \"\\n\"? {close}\n\
                 object: {}\n",
                more(tools, "\"\\n\"? call"),
                object("arguments")
            )
        }
        Shape::List(open, close) => {
            let (open, close) = (marks.spell(open), marks.spell(close));
            format!("calls: {open} list {close}\nlist: {}\n", list("arguments"))
        }
        Shape::Bare(open) => format!(
            "calls: ({})? object{}\nobject: {}\n",
            marks.spell(open),
            more(tools, "\";\" \" \"? object"),
            object("parameters")
        ),
        Shape::ListOrName(open) => format!(
            "calls: {} (list | named tail)\nlist: {}\nnamed: {}\n{}",
            marks.spell(open),
            list("arguments"),
            names(tools, "", ""),
            marks.tail()
        ),
        Shape::Python(open) => format!(
            "calls: ({})? named tail\nnamed: {}\n{}",
            marks.spell(open),
            names(tools, "[", "("),
            marks.tail()
        ),
        Shape::Free(opens) => {
            let opens: Vec<String> = opens.iter().map(|open| marks.spell(open)).collect();
            format!("calls: ({}) tail\n{}", opens.join(" | "), marks.tail())
        }
        Shape::Harmony => harmony(marks),
    }
}

/// Returns what stands behind the first call, as often as more calls are welcome.
fn more(tools: &Tools, call: &str) -> String {
    match tools.most_calls() - 1 {
        0 => String::new(),
        more => format!(" ({call}){{0,{more}}}"),
    }
}

/// Thoughts come first; what is told to the reader at the end is what was asked for.
fn harmony(marks: &Marks) -> String {
    let [channel, message, end, start] =
        ["<|channel|>", "<|message|>", "<|end|>", "<|start|>"].map(|mark| marks.spell(mark));
    // A text ends before a control token. Where the marks are text too, it ends before them so.
    let thought = if marks.0.is_empty() { "/[^<]+/" } else { "TEXT" };
    format!(
        "calls: thought* (final | call)\n\
         thought: {channel} \"analysis\" {message} {thought}? {end} {start} \"assistant\"\n\
         final: {channel} \"final\" {message} answer\n\
         call: (\" to=functions.\" /[A-Za-z0-9_.-]+/)? {channel} \"commentary\" tail\n\
         {}",
        marks.tail()
    )
}

/// Returns the alternatives of the tools' names between two texts.
fn names(tools: &Tools, before: &str, after: &str) -> String {
    let spell = |tool| literal(&format!("{before}{}{after}", name(tool)));
    tools.all.iter().map(spell).collect::<Vec<_>>().join(" | ")
}

/// Returns JSON of a schema. Between its tokens stands at most one space, as in every constraint;
/// nobody asked for the schemas of tools to be kept, so what the engine does not know in them is
/// passed over.
pub(crate) fn schema(mut schema: Json, is_lenient: bool) -> String {
    schema["x-guidance"] = json!({
        "item_separator": ", ?",
        "key_separator": ": ?",
        "whitespace_flexible": false,
        "lenient": is_lenient,
    });
    format!("%json {schema}")
}

/// Returns a text in quotes; Lark has JSON's.
pub(crate) fn literal(text: &str) -> String {
    Json::from(text).to_string().replace('\u{7f}', "\\u007f")
}

/// Returns a regular expression between slashes, without the anchors that the whole text has
/// anyway.
fn expression(pattern: &str) -> String {
    let pattern = pattern.strip_prefix('^').unwrap_or(pattern);
    let slashes = |text: &str| text.bytes().rev().take_while(|&byte| byte == b'\\').count();
    let pattern = match pattern.strip_suffix('$') {
        Some(rest) if slashes(rest).is_multiple_of(2) => rest,
        _ => pattern,
    };
    let (mut spelled, mut is_escaped) = (String::from("/"), false);
    for letter in pattern.chars() {
        if letter == '/' && !is_escaped {
            spelled.push('\\');
        }
        is_escaped = letter == '\\' && !is_escaped;
        spelled.push(letter);
    }
    spelled + "/"
}

#[cfg(test)]
mod tests;
