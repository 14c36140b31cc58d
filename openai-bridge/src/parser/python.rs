//! Turns Python literals into JSON as they grow.

use super::scan::Part;
use super::typed::{escape, quoted};

/// One literal: a string, a number, a name such as `True`, a list, a tuple or a dictionary.
#[derive(Clone, Debug, Default)]
pub(super) struct Literal {
    levels: Vec<Level>,
    expected: Expected,
    token: Token,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    List,
    Tuple,
    Dictionary,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Expected {
    #[default]
    Value,
    /// The first item of a container, or its end.
    First,
    /// A further item, or the end after a last comma.
    Item,
    Colon,
    Separator,
}

#[derive(Clone, Debug, Default)]
enum Token {
    #[default]
    None,
    Word(String),
    Text {
        quote: char,
        escape: String,
    },
}

impl Literal {
    /// Takes the next character; `None` if no literal goes on like this.
    pub(super) fn push(&mut self, c: char, out: &mut String) -> Option<Part> {
        match &mut self.token {
            Token::Text { quote, escape: held } => {
                if !held.is_empty() {
                    held.push(c);
                    if unescape(held, out) {
                        held.clear();
                    }
                } else if c == '\\' {
                    held.push(c);
                } else if c == *quote {
                    self.token = Token::None;
                    out.push('"');
                    return Some(self.ended());
                } else {
                    escape(c, out);
                }
                return Some(Part::Inside);
            }
            Token::Word(word) if c.is_alphanumeric() || matches!(c, '_' | '.' | '+' | '-') => {
                word.push(c);
                return Some(Part::Inside);
            }
            Token::Word(_) => {
                self.finish(out);
                if self.ended() == Part::Last {
                    return Some(Part::Past);
                }
            }
            Token::None => {}
        }
        if c.is_ascii_whitespace() { Some(Part::Inside) } else { self.begin(c, out) }
    }

    /// Writes a number or a name that the end of the text ends.
    pub(super) fn finish(&mut self, out: &mut String) {
        if let Token::Word(word) = std::mem::take(&mut self.token) {
            out.push_str(&if self.is_key() { quoted(&word) } else { word_json(&word) });
        }
    }

    /// Returns whether the item that is being read is a key of a dictionary.
    fn is_key(&self) -> bool {
        self.levels.last() == Some(&Level::Dictionary) && self.expected != Expected::Value
    }

    /// Says what follows an item that has ended.
    fn ended(&mut self) -> Part {
        if self.levels.is_empty() {
            return Part::Last;
        }
        self.expected = if self.is_key() { Expected::Colon } else { Expected::Separator };
        Part::Inside
    }

    fn begin(&mut self, c: char, out: &mut String) -> Option<Part> {
        match (self.expected, c) {
            (Expected::Colon, ':') => {
                out.push_str(": ");
                self.expected = Expected::Value;
                return Some(Part::Inside);
            }
            (Expected::Separator, ',') => {
                self.expected = Expected::Item;
                return Some(Part::Inside);
            }
            (Expected::First | Expected::Item | Expected::Separator, ']' | ')' | '}') => {
                return self.close(c, out);
            }
            (Expected::Colon | Expected::Separator, _) => return None,
            _ => {}
        }
        let level = match c {
            '[' => Level::List,
            '(' => Level::Tuple,
            '{' => Level::Dictionary,
            _ => return self.scalar(c, out),
        };
        if self.is_key() {
            return None;
        }
        self.separate(out);
        out.push(if level == Level::Dictionary { '{' } else { '[' });
        self.levels.push(level);
        self.expected = Expected::First;
        Some(Part::Inside)
    }

    fn scalar(&mut self, c: char, out: &mut String) -> Option<Part> {
        self.token = match c {
            '"' | '\'' => Token::Text { quote: c, escape: String::new() },
            _ if c.is_alphanumeric() || matches!(c, '_' | '.' | '+' | '-') => Token::Word(c.into()),
            _ => return None,
        };
        self.separate(out);
        if matches!(self.token, Token::Text { .. }) {
            out.push('"');
        }
        Some(Part::Inside)
    }

    fn separate(&self, out: &mut String) {
        if self.expected == Expected::Item {
            out.push_str(", ");
        }
    }

    fn close(&mut self, c: char, out: &mut String) -> Option<Part> {
        let level = self.levels.pop()?;
        let (expected, json) = match level {
            Level::List => (']', ']'),
            Level::Tuple => (')', ']'),
            Level::Dictionary => ('}', '}'),
        };
        if c != expected {
            return None;
        }
        out.push(json);
        // What was closed was a value, never a key.
        self.expected = Expected::Value;
        Some(self.ended())
    }
}

/// Writes what an escape stands for, once it is complete.
fn unescape(held: &str, out: &mut String) -> bool {
    let mut rest = held.chars().skip(1);
    let Some(kind) = rest.next() else { return false };
    let digits = match kind {
        'x' => 2,
        'u' => 4,
        'U' => 8,
        _ => 0,
    };
    if digits > 0 {
        let is_hex = rest.clone().all(|c| c.is_ascii_hexdigit());
        let code = held.get(2..).unwrap_or_default();
        if is_hex && code.len() < digits {
            return false;
        }
        let c = u32::from_str_radix(code, 16).ok().and_then(char::from_u32);
        match c.filter(|_| is_hex) {
            Some(c) => escape(c, out),
            None => held.chars().for_each(|c| escape(c, out)),
        }
        return true;
    }
    match kind {
        'n' => escape('\n', out),
        't' => escape('\t', out),
        'r' => escape('\r', out),
        '\n' => {}
        '\\' | '\'' | '"' => escape(kind, out),
        _ => held.chars().for_each(|c| escape(c, out)),
    }
    true
}

/// Returns a number or a name as JSON: what is neither is a string.
fn word_json(word: &str) -> String {
    match word {
        "True" | "true" => return "true".into(),
        "False" | "false" => return "false".into(),
        "None" | "null" => return "null".into(),
        _ => {}
    }
    let plain = word.replace('_', "");
    let is_number = plain.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c));
    if is_number && serde_json::from_str::<serde_json::Number>(&plain).is_ok() {
        return plain;
    }
    let number = plain.parse::<f64>().ok().filter(|_| is_number);
    match number.and_then(serde_json::Number::from_f64) {
        Some(number) => number.to_string(),
        None => quoted(word),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the JSON and what was left of the text.
    fn run(text: &str) -> Option<(String, &str)> {
        let (mut literal, mut out) = (Literal::default(), String::new());
        for (at, c) in text.char_indices() {
            match literal.push(c, &mut out)? {
                Part::Inside => {}
                Part::Last => return Some((out, &text[at + c.len_utf8()..])),
                Part::Past => return Some((out, &text[at..])),
            }
        }
        literal.finish(&mut out);
        Some((out, ""))
    }

    #[test]
    fn literals_become_json() {
        let check = |text, json: &str, rest| assert_eq!(run(text), Some((json.into(), rest)));
        check("'it\\'s \"x\"'", r#""it's \"x\"""#, "");
        check(r#""a\n\x41\u00e9\U0001F600\d\\", b"#, r#""a\nAé😀\\d\\""#, ", b");
        check("True)", "true", ")");
        check("None,", "null", ",");
        check("-1_000 ", "-1000", " ");
        check(".5)", "0.5", ")");
        check("+1,", "1.0", ",");
        check("1e5)", "1e5", ")");
        check("name)", "\"name\"", ")");
        check("[1, 'a', (2, 3,), [], {}]x", r#"[1, "a", [2, 3], [], {}]"#, "x");
        check("{'a': {\"b\": [True]}, 1: None, }", r#"{"a": {"b": [true]}, "1": null}"#, "");
        check("[1, 2", "[1, 2", "");
        check("'cut", "\"cut", "");
    }

    #[test]
    fn what_is_no_literal_is_refused() {
        for text in ["<", "[1 2]", "{1}", "[1)", "{[1]: 2}", "[,]", "{'a' 1}"] {
            assert_eq!(run(text), None, "{text}");
        }
    }
}
