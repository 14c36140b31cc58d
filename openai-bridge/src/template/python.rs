//! Values as Python writes them: `str`, `repr` and `json.dumps`.

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, Value};

use super::values;

/// Deepest nesting that is written; JSON of a request has at most 128.
const MAX_DEPTH: usize = 200;

/// Returns whether Python's `str.strip` and `str.split` take a character for space.
pub(super) fn is_space(letter: char) -> bool {
    letter.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&letter)
}

/// Writes a value as Python's `str`.
pub(super) fn str(out: &mut String, value: &Value) -> Result<(), Error> {
    match value.kind() {
        ValueKind::Undefined => Ok(()),
        ValueKind::String => {
            out.push_str(value.as_str().unwrap_or_default());
            Ok(())
        }
        _ => repr(out, value, 0),
    }
}

fn repr(out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(too_deep());
    }
    match value.kind() {
        ValueKind::Undefined => out.push_str("Undefined"),
        ValueKind::None => out.push_str("None"),
        ValueKind::Number => number(out, value),
        ValueKind::String => string_repr(out, value.as_str().unwrap_or_default()),
        ValueKind::Map => {
            out.push('{');
            for (index, key) in value.try_iter()?.enumerate() {
                out.push_str(if index > 0 { ", " } else { "" });
                repr(out, &key, depth + 1)?;
                out.push_str(": ");
                repr(out, &value.get_item(&key)?, depth + 1)?;
            }
            out.push('}');
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let is_tuple = value.is_tuple();
            out.push(if is_tuple { '(' } else { '[' });
            let mut count = 0;
            for item in value.try_iter()? {
                out.push_str(if count > 0 { ", " } else { "" });
                repr(out, &item, depth + 1)?;
                count += 1;
            }
            out.push_str(match (is_tuple, count) {
                (true, 1) => ",)",
                (true, _) => ")",
                (false, _) => "]",
            });
        }
        _ => out.push_str(&value.to_string()),
    }
    Ok(())
}

fn number(out: &mut String, value: &Value) {
    match values::float(value).filter(|_| values::is_float(value)) {
        Some(number) => out.push_str(&float(number)),
        None => out.push_str(&value.to_string()),
    }
}

/// Writes a float as Python: the shortest digits that mean it, an exponent from `1e16` on and
/// below `1e-4`.
pub(super) fn float(number: f64) -> String {
    if number.is_nan() {
        return "nan".into();
    }
    let text = format!("{number:?}");
    let Some((digits, exponent)) = text.split_once('e') else { return text };
    let (sign, exponent) = match exponent.strip_prefix('-') {
        Some(exponent) => ('-', exponent),
        None => ('+', exponent),
    };
    let digits = digits.strip_suffix(".0").unwrap_or(digits);
    format!("{digits}e{sign}{exponent:0>2}")
}

fn string_repr(out: &mut String, text: &str) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for letter in text.chars() {
        match letter {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            letter if letter == quote => {
                out.push('\\');
                out.push(letter);
            }
            letter if is_printable(letter) => out.push(letter),
            letter => {
                let code = u32::from(letter);
                out.push_str(&match code {
                    0..=0xff => format!("\\x{code:02x}"),
                    0x100..=0xffff => format!("\\u{code:04x}"),
                    _ => format!("\\U{code:08x}"),
                });
            }
        }
    }
    out.push(quote);
}

/// Returns whether Python's `repr` leaves a character as it is.
///
/// Rust's own escapes know the same classes of Unicode, but that they also escape quotes, which
/// are not asked here, and extending marks, which Python leaves.
fn is_printable(letter: char) -> bool {
    match letter {
        ' '..='~' => true,
        letter if letter.is_control() => false,
        letter if letter.is_whitespace() => false,
        letter => letter.escape_debug().len() == 1 || is_extending(letter),
    }
}

/// Returns whether `escape_debug` escapes a character only because it joins the one before.
fn is_extending(letter: char) -> bool {
    format!("{:?}", String::from_iter(['a', letter])).len() == 3 + letter.len_utf8()
}

/// How `json.dumps` is asked to write.
pub(super) struct JsonStyle {
    ensure_ascii: bool,
    indent: Option<String>,
    item: String,
    key: String,
    sort_keys: bool,
}

impl JsonStyle {
    /// Reads the arguments of the filter `tojson`, as `transformers` declares it.
    pub(super) fn from_arguments(positional: &[Value], named: &Kwargs) -> Result<Self, Error> {
        let argument = |index: usize, name: &str| -> Result<Option<Value>, Error> {
            match positional.get(index) {
                Some(value) => Ok(Some(value.clone())),
                None => named.get::<Option<Value>>(name),
            }
        };
        let is_true = |value: Option<Value>| value.is_some_and(|value| value.is_true());
        let ensure_ascii = is_true(argument(0, "ensure_ascii")?);
        let indent = match argument(1, "indent")?.filter(|indent| !indent.is_none()) {
            None => None,
            Some(text) if text.as_str().is_some() => text.as_str().map(str::to_owned),
            Some(width) => {
                let width = i64::try_from(width)?;
                Some(" ".repeat(width.clamp(0, 64) as usize))
            }
        };
        let separators = argument(2, "separators")?.filter(|separators| !separators.is_none());
        let (item, key) = match separators {
            None if indent.is_some() => (",".to_owned(), ": ".to_owned()),
            None => (", ".to_owned(), ": ".to_owned()),
            Some(pair) => {
                let [item, key] = [pair.get_item_by_index(0)?, pair.get_item_by_index(1)?];
                (item.to_string(), key.to_string())
            }
        };
        let sort_keys = is_true(argument(3, "sort_keys")?);
        named.assert_all_used()?;
        if positional.len() > 4 {
            return Err(Error::from(ErrorKind::TooManyArguments));
        }
        Ok(Self { ensure_ascii, indent, item, key, sort_keys })
    }

    /// Writes a value as Python's `json.dumps`.
    ///
    /// Errors: a value that is undefined, as in Python.
    pub(super) fn dump(&self, value: &Value) -> Result<String, Error> {
        let mut out = String::new();
        self.write(&mut out, value, 0)?;
        Ok(out)
    }

    fn write(&self, out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(too_deep());
        }
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => json_number(out, value),
            ValueKind::Plain if values::is_float(value) => json_number(out, value),
            ValueKind::String => self.string(out, value.as_str().unwrap_or_default()),
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                out.push('{');
                for (index, key) in keys.iter().enumerate() {
                    self.separate(out, index > 0, depth + 1);
                    self.key(out, key)?;
                    out.push_str(&self.key);
                    self.write(out, &value.get_item(key)?, depth + 1)?;
                }
                self.close(out, '}', keys.is_empty(), depth);
            }
            ValueKind::Seq | ValueKind::Iterable => {
                out.push('[');
                let mut is_empty = true;
                for item in value.try_iter()? {
                    self.separate(out, !is_empty, depth + 1);
                    is_empty = false;
                    self.write(out, &item, depth + 1)?;
                }
                self.close(out, ']', is_empty, depth);
            }
            kind => {
                let why = format!("a value of type {kind} has no JSON");
                return Err(Error::new(ErrorKind::InvalidOperation, why));
            }
        }
        Ok(())
    }

    fn separate(&self, out: &mut String, has_item: bool, depth: usize) {
        if has_item {
            out.push_str(&self.item);
        }
        self.line(out, depth);
    }

    fn close(&self, out: &mut String, bracket: char, is_empty: bool, depth: usize) {
        if !is_empty {
            self.line(out, depth);
        }
        out.push(bracket);
    }

    fn line(&self, out: &mut String, depth: usize) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            (0..depth).for_each(|_| out.push_str(indent));
        }
    }

    fn key(&self, out: &mut String, key: &Value) -> Result<(), Error> {
        if key.kind() == ValueKind::String {
            self.string(out, key.as_str().unwrap_or_default());
            return Ok(());
        }
        let is_scalar = matches!(key.kind(), ValueKind::None | ValueKind::Bool | ValueKind::Number);
        if !is_scalar {
            let why = format!("a value of type {} is no key of JSON", key.kind());
            return Err(Error::new(ErrorKind::InvalidOperation, why));
        }
        out.push('"');
        self.write(out, key, 0)?;
        out.push('"');
        Ok(())
    }

    fn string(&self, out: &mut String, text: &str) {
        out.push('"');
        for letter in text.chars() {
            match letter {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                '\0'..='\u{1f}' => out.push_str(&format!("\\u{:04x}", u32::from(letter))),
                letter if self.ensure_ascii && !matches!(letter, ' '..='~') => {
                    for unit in letter.encode_utf16(&mut [0; 2]) {
                        out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                letter => out.push(letter),
            }
        }
        out.push('"');
    }
}

fn json_number(out: &mut String, value: &Value) {
    match values::float(value).filter(|_| values::is_float(value)) {
        Some(number) if number.is_nan() => out.push_str("NaN"),
        Some(f64::INFINITY) => out.push_str("Infinity"),
        Some(f64::NEG_INFINITY) => out.push_str("-Infinity"),
        _ => number(out, value),
    }
}

fn too_deep() -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("a value nested more than {MAX_DEPTH} deep"))
}
