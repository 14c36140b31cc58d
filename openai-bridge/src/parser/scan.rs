//! Follows JSON as it grows: where a value ends, where an object's keys and values lie.
//!
//! Brackets and strings are followed, no more: what a model writes between them is passed on as it
//! is, and whoever reads the arguments judges them.

/// What a character is to a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// It belongs to the value.
    Inside,
    /// It belongs to the value and ends it.
    Last,
    /// The value ended before it.
    Past,
}

/// One JSON value, from its first character on.
#[derive(Clone, Debug)]
pub(super) struct Value {
    kind: Kind,
    depth: usize,
    in_string: bool,
    is_escaped: bool,
}

/// What kind of value the first character promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// An object or an array.
    Container,
    /// A string.
    Text,
    /// A number, `true`, `false` or `null`.
    Word,
}

impl Value {
    /// Begins a value with its first character; `None` if no value begins so.
    pub(super) fn begin(c: char) -> Option<Self> {
        let kind = match c {
            '{' | '[' => Kind::Container,
            '"' => Kind::Text,
            _ if c.is_ascii_alphanumeric() || c == '-' => Kind::Word,
            _ => return None,
        };
        let depth = usize::from(kind == Kind::Container);
        Some(Self { kind, depth, in_string: kind == Kind::Text, is_escaped: false })
    }

    /// Returns what kind of value it is.
    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    /// Takes the next character.
    pub(super) fn push(&mut self, c: char) -> Part {
        if self.kind == Kind::Word {
            let belongs = c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
            return if belongs { Part::Inside } else { Part::Past };
        }
        if self.in_string {
            match c {
                _ if self.is_escaped => self.is_escaped = false,
                '\\' => self.is_escaped = true,
                '"' => {
                    self.in_string = false;
                    return if self.depth == 0 { Part::Last } else { Part::Inside };
                }
                _ => {}
            }
            return Part::Inside;
        }
        match c {
            '"' => self.in_string = true,
            '{' | '[' => self.depth += 1,
            '}' | ']' => self.depth -= 1,
            _ => {}
        }
        if self.depth == 0 { Part::Last } else { Part::Inside }
    }
}

/// What a character is to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Item {
    /// Between keys and values.
    Syntax,
    /// The first character of the current key's value.
    First,
    /// A further one.
    More,
    /// The one that ends a value which has an end of its own.
    Last,
    /// The object's closing brace.
    End,
    /// No JSON object goes on like this.
    Malformed,
}

/// An object, from the character after its opening brace on.
#[derive(Clone, Debug, Default)]
pub(super) struct Object {
    state: Place,
    key: String,
}

#[derive(Clone, Debug, Default)]
enum Place {
    #[default]
    BeforeKey,
    Key(Unescape),
    BeforeColon,
    BeforeValue,
    Inside(Value),
    AfterValue,
}

impl Object {
    /// Returns the key whose value is being read or was read last.
    pub(super) fn key(&self) -> &str {
        &self.key
    }

    /// Takes the next character.
    pub(super) fn push(&mut self, c: char) -> Item {
        if let Place::Key(unescape) = &mut self.state {
            match c {
                '"' if !unescape.is_escaped() => self.state = Place::BeforeColon,
                _ => unescape.push(c, &mut self.key),
            }
            return Item::Syntax;
        }
        if let Place::Inside(value) = &mut self.state {
            match value.push(c) {
                Part::Inside => return Item::More,
                Part::Last => {
                    self.state = Place::AfterValue;
                    return Item::Last;
                }
                Part::Past => self.state = Place::AfterValue,
            }
        }
        if c.is_ascii_whitespace() {
            return Item::Syntax;
        }
        self.between(c)
    }

    fn between(&mut self, c: char) -> Item {
        match (&self.state, c) {
            (Place::BeforeKey, '"') => {
                self.key.clear();
                self.state = Place::Key(Unescape::default());
            }
            (Place::BeforeColon, ':') => self.state = Place::BeforeValue,
            (Place::AfterValue, ',') => self.state = Place::BeforeKey,
            (Place::BeforeKey | Place::AfterValue, '}') => return Item::End,
            (Place::BeforeValue, _) => {
                let Some(value) = Value::begin(c) else { return Item::Malformed };
                self.state = Place::Inside(value);
                return Item::First;
            }
            _ => return Item::Malformed,
        }
        Item::Syntax
    }
}

/// Takes the escapes out of a JSON string, a character at a time.
#[derive(Clone, Debug, Default)]
pub(super) struct Unescape {
    /// The escape that is not complete: a backslash, or `\u` and some digits.
    escape: String,
    /// The first half of a surrogate pair.
    high: Option<u32>,
}

impl Unescape {
    /// Returns whether the next character belongs to an escape.
    pub(super) fn is_escaped(&self) -> bool {
        !self.escape.is_empty()
    }

    /// Takes a character that lies within the quotes.
    pub(super) fn push(&mut self, c: char, out: &mut String) {
        if self.escape.is_empty() {
            if c == '\\' {
                self.escape.push(c);
            } else {
                self.lone(out);
                out.push(c);
            }
            return;
        }
        self.escape.push(c);
        if self.escape == "\\u" || (self.escape.len() < 6 && self.escape.starts_with("\\u")) {
            if c == 'u' || c.is_ascii_hexdigit() {
                return;
            }
            self.lone(out);
            out.push_str(&std::mem::take(&mut self.escape));
            return;
        }
        let escape = std::mem::take(&mut self.escape);
        match escape.strip_prefix("\\u") {
            Some(digits) => self.unit(u32::from_str_radix(digits, 16).unwrap_or(0xFFFD), out),
            None => {
                self.lone(out);
                match c {
                    'n' => out.push('\n'),
                    't' => out.push('\t'),
                    'r' => out.push('\r'),
                    'b' => out.push('\u{8}'),
                    'f' => out.push('\u{c}'),
                    _ => out.push(c),
                }
            }
        }
    }

    /// Takes a UTF-16 unit.
    fn unit(&mut self, unit: u32, out: &mut String) {
        if let (Some(high), 0xDC00..=0xDFFF) = (self.high, unit) {
            self.high = None;
            let code = 0x1_0000 + ((high - 0xD800) << 10) + (unit - 0xDC00);
            out.push(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER));
            return;
        }
        self.lone(out);
        match unit {
            0xD800..=0xDBFF => self.high = Some(unit),
            _ => out.push(char::from_u32(unit).unwrap_or(char::REPLACEMENT_CHARACTER)),
        }
    }

    /// Writes the first half of a pair that has no second.
    fn lone(&mut self, out: &mut String) {
        if self.high.take().is_some() {
            out.push(char::REPLACEMENT_CHARACTER);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_end_where_json_says() {
        let check = |text: &str, expected: usize, part: Part| {
            let mut chars = text.chars();
            let mut value = Value::begin(chars.next().unwrap()).unwrap();
            let parts: Vec<Part> = chars.map(|c| value.push(c)).collect();
            let end = parts.iter().position(|part| *part != Part::Inside).unwrap();
            assert_eq!((end + 1, parts[end]), (expected, part), "{text}");
        };
        check(r#"{"a":"}"}x"#, 8, Part::Last);
        check(r#"[[1,{"b":[]}]] "#, 13, Part::Last);
        check(r#""a\"b" "#, 5, Part::Last);
        check(r#"{"\\":"\""}"#, 10, Part::Last);
        check("-1.5e+3,", 7, Part::Past);
        check("null}", 4, Part::Past);
        assert!(Value::begin('<').is_none());
    }

    #[test]
    fn an_object_tells_its_keys_and_values() {
        let run = |text: &str| {
            let (mut object, mut seen) = (Object::default(), Vec::<(String, String)>::new());
            for c in text.chars() {
                match object.push(c) {
                    Item::First => seen.push((object.key().into(), c.into())),
                    Item::More | Item::Last => seen.last_mut().unwrap().1.push(c),
                    Item::Syntax => {}
                    end => return (seen, Some(end)),
                }
            }
            (seen, None)
        };
        let pairs = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect::<Vec<_>>()
        };
        let (seen, end) = run(r#" "a": 1, "b":{"c":"}"} , "d\u00e9" : "x\"y", "e":null}"#);
        assert_eq!(
            seen,
            pairs(&[("a", "1"), ("b", r#"{"c":"}"}"#), ("dé", r#""x\"y""#), ("e", "null")])
        );
        assert_eq!(end, Some(Item::End));
        assert_eq!(run("}").1, Some(Item::End));
        assert_eq!(run("a: 1}").1, Some(Item::Malformed));
        assert_eq!(run(r#""a" 1}"#).1, Some(Item::Malformed));
        assert_eq!(run(r#""a": {}<"#).1, Some(Item::Malformed));
        assert_eq!(run(r#""a": "tru"#), (pairs(&[("a", "\"tru")]), None));
    }

    #[test]
    fn escapes_are_taken_out() {
        let check = |text: &str, expected: &str| {
            let (mut unescape, mut out) = (Unescape::default(), String::new());
            text.chars().for_each(|c| unescape.push(c, &mut out));
            assert_eq!(out, expected, "{text}");
        };
        check(r#"a\n\"\\\/\tb"#, "a\n\"\\/\tb");
        check(r"\u00e9\u20AC", "é€");
        check(r"\ud83d\ude00!", "😀!");
        check(r"\ud83dx", "\u{FFFD}x");
        check(r"\ud83d\ud83d\ude00", "\u{FFFD}😀");
        check(r"\u12zz", r"\u12zz");
    }
}
