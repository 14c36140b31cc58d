//! A call written as a JSON object: `{"name": …, "arguments": {…}}`, in whatever order.

use super::Schemas;
use super::scan::{Item, Kind, Object, Part, Unescape, Value};
use super::sink::Sink;

/// Turns the value that stands for the arguments into the text of an object.
///
/// An object passes as it is; a string is one that a model encoded once more; `null` is `{}`.
#[derive(Clone, Debug)]
pub(super) struct ArgumentText {
    kind: Kind,
    unescape: Unescape,
    word: String,
    has_text: bool,
}

impl ArgumentText {
    /// Begins with the value's kind.
    pub(super) fn new(kind: Kind) -> Self {
        Self { kind, unescape: Unescape::default(), word: String::new(), has_text: false }
    }

    /// Takes a character of the value, of which `edge` says that it is the first or the last one.
    pub(super) fn push(&mut self, c: char, is_edge: bool, out: &mut String) {
        match self.kind {
            Kind::Container => out.push(c),
            Kind::Text if is_edge => {}
            Kind::Text => self.unescape.push(c, out),
            Kind::Word => self.word.push(c),
        }
        self.has_text |= !out.is_empty();
    }

    /// Writes what is left at the end of the call.
    pub(super) fn finish(&mut self, out: &mut String) {
        match self.kind {
            Kind::Word if self.word != "null" => out.push_str(&self.word),
            _ if !self.has_text => out.push_str("{}"),
            _ => {}
        }
    }
}

/// Arguments that stand alone: a JSON value, up to its end.
#[derive(Clone, Debug)]
pub(super) struct Arguments {
    value: Value,
    text: ArgumentText,
}

impl Arguments {
    /// Begins with the first character of an object or a string; `None` if it is none.
    pub(super) fn begin(c: char, index: u32, sink: &mut Sink) -> Option<Self> {
        let value = Value::begin(c).filter(|_| matches!(c, '{' | '"'))?;
        let mut arguments = Self { text: ArgumentText::new(value.kind()), value };
        let mut out = String::new();
        arguments.text.push(c, true, &mut out);
        sink.arguments(index, &out);
        Some(arguments)
    }

    /// Takes the next character and returns whether it was the last one.
    pub(super) fn push(&mut self, c: char, index: u32, sink: &mut Sink) -> bool {
        let is_last = self.value.push(c) != Part::Inside;
        let mut out = String::new();
        self.text.push(c, is_last, &mut out);
        if is_last {
            self.text.finish(&mut out);
        }
        sink.arguments(index, &out);
        is_last
    }
}

/// What a format allows in a call.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rules {
    /// Nothing marks a call: it begins only with its arguments and with a name that is a tool's.
    pub(super) is_wary: bool,
    /// The object may carry the call's `id`.
    pub(super) takes_id: bool,
}

/// Where a call is after a character.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Within the object.
    Running,
    /// At its end.
    Done,
    /// The object is no call; the character does not belong to it unless it is its end.
    Malformed,
}

/// A call's object, from the character after its opening brace on.
#[derive(Clone, Debug)]
pub(super) struct Call {
    rules: Rules,
    index: u32,
    object: Object,
    field: Field,
    /// The string that is being read.
    text: String,
    name: Option<String>,
    id: Option<String>,
    arguments: Option<ArgumentText>,
    /// Arguments that came before the name.
    held: String,
    is_begun: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Name,
    Id,
    Arguments,
    Other,
}

impl Call {
    /// Begins the call that will have this index.
    pub(super) fn new(rules: Rules, index: u32) -> Self {
        Self {
            rules,
            index,
            object: Object::default(),
            field: Field::Other,
            text: String::new(),
            name: None,
            id: None,
            arguments: None,
            held: String::new(),
            is_begun: false,
        }
    }

    /// Returns whether the call's beginning was told.
    pub(super) fn is_begun(&self) -> bool {
        self.is_begun
    }

    /// Takes the next character.
    pub(super) fn push(&mut self, c: char, schemas: &Schemas, sink: &mut Sink) -> Step {
        let item = self.object.push(c);
        let is_sound = match item {
            Item::Syntax => return Step::Running,
            Item::Malformed => return Step::Malformed,
            Item::End => return self.end(schemas, sink),
            Item::First => self.first(c),
            Item::More => self.more(c, false),
            Item::Last => self.more(c, true),
        };
        match is_sound && self.tell(schemas, sink) {
            true => Step::Running,
            false => Step::Malformed,
        }
    }

    fn first(&mut self, c: char) -> bool {
        self.text.clear();
        self.field = match self.object.key() {
            "name" if self.name.is_none() => Field::Name,
            "id" if self.rules.takes_id && self.id.is_none() => Field::Id,
            "arguments" | "parameters" if self.arguments.is_none() => Field::Arguments,
            "id" | "type" => Field::Other,
            // An answer in JSON: the sooner it is known to be none of ours, the sooner it streams.
            _ if self.rules.is_wary => return false,
            _ => Field::Other,
        };
        if self.field == Field::Arguments {
            let Some(value) = Value::begin(c) else { return false };
            self.arguments = Some(ArgumentText::new(value.kind()));
            return self.more(c, true);
        }
        self.more(c, false) && (self.field != Field::Name || c == '"')
    }

    fn more(&mut self, c: char, is_edge: bool) -> bool {
        match (self.field, &mut self.arguments) {
            (Field::Arguments, Some(arguments)) => arguments.push(c, is_edge, &mut self.held),
            (Field::Name | Field::Id, _) => self.text.push(c),
            _ => {}
        }
        if !is_edge {
            return true;
        }
        let text = || serde_json::from_str::<String>(&self.text).ok();
        match self.field {
            Field::Name => {
                self.name = text().filter(|name| !name.is_empty());
                self.name.is_some()
            }
            Field::Id => {
                self.id = text();
                true
            }
            _ => true,
        }
    }

    /// Tells what can be told; false if the name is no tool's and has to be.
    fn tell(&mut self, schemas: &Schemas, sink: &mut Sink) -> bool {
        let is_wary = self.rules.is_wary;
        if !self.is_begun
            && let Some(name) = &self.name
            && (!is_wary || self.arguments.is_some())
        {
            if is_wary && !schemas.is_empty() && !schemas.contains_key(name) {
                return false;
            }
            sink.begin(self.index, self.id.take(), name.clone());
            self.is_begun = true;
        }
        if self.is_begun {
            sink.arguments(self.index, &self.held);
            self.held.clear();
        }
        true
    }

    fn end(&mut self, schemas: &Schemas, sink: &mut Sink) -> Step {
        match &mut self.arguments {
            Some(arguments) => arguments.finish(&mut self.held),
            None => self.held.push_str("{}"),
        }
        match self.tell(schemas, sink) && self.is_begun {
            true => Step::Done,
            false => Step::Malformed,
        }
    }
}
