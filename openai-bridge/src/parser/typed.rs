//! Values without types, as XML-like formats have them: their JSON by the tool's schema.
//!
//! A string passes as it grows; whatever may be something else is held until its end shows what it
//! is.

use serde_json::Value;

use super::sink::as_text;

/// What a parameter may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Types {
    /// A string.
    pub(super) is_text: bool,
    boolean: bool,
    integer: bool,
    number: bool,
    null: bool,
    array: bool,
    object: bool,
}

impl Types {
    /// Nothing but a string.
    pub(super) const TEXT: Self = Self {
        is_text: true,
        boolean: false,
        integer: false,
        number: false,
        null: false,
        array: false,
        object: false,
    };

    /// Anything.
    pub(super) const ANY: Self = Self {
        is_text: true,
        boolean: true,
        integer: true,
        number: true,
        null: true,
        array: true,
        object: true,
    };

    /// Anything but a string.
    pub(super) const DATA: Self = Self { is_text: false, ..Self::ANY };

    /// Returns what a tool's schema says of a parameter: anything where it says nothing.
    pub(super) fn of(schema: Option<&Value>, parameter: &str) -> Self {
        let Some(property) = schema.and_then(|schema| schema.get("properties")?.get(parameter))
        else {
            return Self::ANY;
        };
        let mut types = Self::default();
        types.add(property);
        if types == Self::default() { Self::ANY } else { types }
    }

    fn add(&mut self, schema: &Value) {
        for union in ["anyOf", "oneOf"].iter().filter_map(|key| schema.get(key)?.as_array()) {
            for schema in union {
                // References are not followed, and a union of unions is anything.
                match schema.get("type").or_else(|| schema.get("enum")) {
                    Some(_) => self.add_named(schema),
                    None => *self = Self::ANY,
                }
            }
        }
        self.add_named(schema);
    }

    fn add_named(&mut self, schema: &Value) {
        match (schema.get("type"), schema.get("enum").and_then(Value::as_array)) {
            (Some(Value::String(name)), _) => self.add_name(name),
            (Some(Value::Array(names)), _) => {
                names.iter().filter_map(Value::as_str).for_each(|name| self.add_name(name));
            }
            (None, Some(values)) => values.iter().for_each(|value| self.add_name(name_of(value))),
            _ => {}
        }
    }

    fn add_name(&mut self, name: &str) {
        match name {
            "string" => self.is_text = true,
            "boolean" => self.boolean = true,
            "integer" => self.integer = true,
            "number" => self.number = true,
            "null" => self.null = true,
            "array" => self.array = true,
            "object" => self.object = true,
            _ => *self = Self::ANY,
        }
    }

    fn allow(self, value: &Value) -> bool {
        match value {
            Value::Null => self.null,
            Value::Bool(_) => self.boolean,
            Value::Number(number) => self.number || (self.integer && !number.is_f64()),
            Value::String(_) => false,
            Value::Array(_) => self.array,
            Value::Object(_) => self.object,
        }
    }

    /// Returns the JSON of a whole value.
    pub(super) fn json(self, text: &str) -> String {
        let trimmed = text.trim();
        let word = match trimmed {
            "True" => "true",
            "False" => "false",
            "None" => "null",
            other => other,
        };
        match serde_json::from_str::<Value>(word) {
            Ok(value) if self.allow(&value) => word.to_owned(),
            _ => quoted(text),
        }
    }
}

fn name_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// Returns a text as a JSON string.
pub(super) fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    text.chars().for_each(|c| escape(c, &mut out));
    out.push('"');
    out
}

/// Writes a character of a JSON string.
pub(super) fn escape(c: char, out: &mut String) {
    match c {
        '"' => out.push_str("\\\""),
        '\\' => out.push_str("\\\\"),
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        '\0'..='\u{1f}' => out.push_str(&format!("\\u{:04x}", u32::from(c))),
        _ => out.push_str(as_text(c, &mut [0; 4])),
    }
}

/// One value, as it grows.
#[derive(Clone, Debug)]
pub(super) struct Growing {
    types: Types,
    /// One line break at each end is the format's.
    trims: bool,
    is_begun: bool,
    /// A line break that may be the last, or all of a value that is no string.
    held: String,
}

impl Growing {
    /// Begins a value.
    pub(super) fn new(types: Types, trims: bool) -> Self {
        Self { types, trims, is_begun: false, held: String::new() }
    }

    /// Takes a character.
    pub(super) fn push(&mut self, c: char, out: &mut String) {
        let is_first = !std::mem::replace(&mut self.is_begun, true);
        if is_first && self.types == Types::TEXT {
            out.push('"');
        }
        if is_first && self.trims && c == '\n' {
            return;
        }
        if self.types == Types::TEXT {
            self.held.drain(..).for_each(|c| escape(c, out));
            if !(self.trims && c == '\n') {
                return escape(c, out);
            }
        }
        self.held.push(c);
    }

    /// Ends the value; a text that is cut off lacks its last quote.
    pub(super) fn finish(&mut self, is_whole: bool, out: &mut String) {
        if !self.is_begun && !is_whole {
            return;
        }
        if self.types == Types::TEXT {
            match is_whole {
                true if self.is_begun => out.push('"'),
                true => out.push_str("\"\""),
                false => self.held.drain(..).for_each(|c| escape(c, out)),
            }
            return;
        }
        let text = match self.trims {
            true => self.held.strip_suffix('\n').unwrap_or(&self.held),
            false => &self.held,
        };
        out.push_str(&self.types.json(text));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn schemas_give_values_their_types() {
        let schema = json!({"properties": {
            "text": {"type": "string"}, "count": {"type": "integer"}, "ratio": {"type": "number"},
            "flag": {"type": "boolean"}, "list": {"type": "array"}, "map": {"type": "object"},
            "maybe": {"type": ["string", "null"]}, "either": {"anyOf": [{"type": "integer"},
            {"type": "string"}]}, "choice": {"enum": ["a", "1"]}, "linked": {"$ref": "#/x"},
        }});
        let check = |parameter, text: &str, json: &str| {
            assert_eq!(Types::of(Some(&schema), parameter).json(text), json, "{parameter} {text}");
        };
        check("text", "5", "\"5\"");
        check("count", " 5\n", "5");
        check("count", "5.5", "\"5.5\"");
        check("count", "five", "\"five\"");
        check("ratio", "5", "5");
        check("flag", "True", "true");
        check("flag", "yes", "\"yes\"");
        check("list", "[1, \"x\"]", "[1, \"x\"]");
        check("map", "{\"a\": {}}", "{\"a\": {}}");
        check("maybe", "None", "null");
        check("maybe", "5", "\"5\"");
        check("either", "5", "5");
        check("either", "x", "\"x\"");
        check("choice", "1", "\"1\"");
        check("linked", "[1]", "[1]");
        check("unknown", "a \"b\"\n\u{1}", "\"a \\\"b\\\"\\n\\u0001\"");
        check("unknown", "12", "12");
    }

    #[test]
    fn a_text_grows_and_loses_one_line_break_at_each_end() {
        let check = |text: &str, trims, json: &str| {
            let (mut growing, mut out) = (Growing::new(Types::TEXT, trims), String::new());
            text.chars().for_each(|c| growing.push(c, &mut out));
            growing.finish(true, &mut out);
            assert_eq!(out, json, "{text:?}");
        };
        check("\na\n", true, "\"a\"");
        check("\n\na\n\n", true, "\"\\na\\n\"");
        check("a", true, "\"a\"");
        check("\n", true, "\"\"");
        check("", true, "\"\"");
        check("\na\n", false, "\"\\na\\n\"");
    }
}
