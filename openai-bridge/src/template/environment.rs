//! The Jinja environment of `transformers`: its settings, filters, tests and functions.
//!
//! What minijinja does differently from Jinja2 is replaced here; everything else is its own.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Value};

use super::python::{self, JsonStyle};
use super::{clock::Now, methods, values};

/// Instructions that one rendering may take; a long conversation needs some ten thousands.
const FUEL: u64 = 5_000_000;

/// Depth of macros in macros; each takes 10 or more of it and some of the thread's stack.
const RECURSION: usize = 300;

/// Returns an environment without templates.
pub(super) fn environment() -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?;
    environment.set_syntax(syntax);
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(RECURSION);
    environment.set_debug(false);
    environment.set_unknown_method_callback(methods::call);
    environment.set_formatter(|out, _, value| {
        let mut text = String::new();
        python::str(&mut text, value)?;
        out.write_str(&text).map_err(Error::from)
    });
    environment.add_function("raise_exception", |text: String| -> Result<(), Error> {
        Err(Error::new(ErrorKind::InvalidOperation, text))
    });
    environment.add_filter("tojson", tojson);
    environment.add_filter("string", |value: &Value| string(value));
    environment.add_filter("trim", trim);
    environment.add_filter("length", length);
    environment.add_filter("count", length);
    environment.add_filter("items", items);
    environment.add_filter("indent", indent);
    environment.add_filter("default", default);
    environment.add_filter("d", default);
    environment.add_filter("escape", escape);
    environment.add_filter("e", escape);
    // What the library iterates lazily, such as a slice or a sum of lists, is a list in Python.
    environment.add_test("sequence", is_iterable);
    environment.add_test("iterable", is_iterable);
    environment.add_test("callable", |value: &Value| {
        value.kind() == ValueKind::Plain && !values::is_float(value)
    });
    environment.add_test("float", values::is_float);
    environment.add_test("number", |value: &Value| {
        value.kind() == ValueKind::Bool || value.is_number() || values::is_float(value)
    });
    Ok(environment)
}

/// Returns the function `strftime_now` of one rendering.
pub(super) fn strftime_now(now: Now) -> Value {
    Value::from_function(move |format: &str| now.format(format))
}

/// Replaces the tags of `{% generation %}` blocks, which mark what the model said for training,
/// by blocks that do nothing but keep the scope and the white space as they were.
pub(super) fn without_generation(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        out.push_str(before);
        let Some(length) = tag.find("%}") else { break };
        let (tag, after) = tag.split_at(length);
        let (open, inner) = match tag.as_bytes().get(2) {
            Some(b'-' | b'+') => tag.split_at(3),
            _ => tag.split_at(2),
        };
        let (inner, close) = match inner.as_bytes().last() {
            Some(b'-' | b'+') => inner.split_at(inner.len() - 1),
            _ => (inner, ""),
        };
        let instead = match inner.trim() {
            "generation" => "with",
            "endgeneration" => "endwith",
            // A tag's text may hold `{%` in a string: go on right behind its opening.
            _ => {
                out.push_str("{%");
                rest = &rest[start + 2..];
                continue;
            }
        };
        out.push_str(open);
        out.push_str(&format!(" {instead} {close}"));
        rest = after;
    }
    out.push_str(rest);
    out
}

fn tojson(value: &Value, positional: Rest<Value>, named: Kwargs) -> Result<String, Error> {
    JsonStyle::from_arguments(&positional, &named)?.dump(value)
}

fn string(value: &Value) -> Result<Value, Error> {
    if value.kind() == ValueKind::String {
        return Ok(value.clone());
    }
    let mut out = String::new();
    python::str(&mut out, value)?;
    Ok(out.into())
}

fn trim(value: &Value, chars: Option<&str>) -> Result<String, Error> {
    let text = string(value)?;
    let text = text.as_str().unwrap_or_default();
    Ok(methods::strip(text, chars, true, true).to_owned())
}

fn length(value: &Value) -> Result<usize, Error> {
    if value.is_undefined() {
        return Ok(0);
    }
    value.len().ok_or_else(|| {
        let why = format!("a value of type {} has no length", value.kind());
        Error::new(ErrorKind::InvalidOperation, why)
    })
}

fn items(value: &Value) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::Undefined => Ok(Value::from(Vec::<Value>::new())),
        _ => minijinja::filters::items(value),
    }
}

/// Indents lines as Jinja2, which keeps an empty last line.
fn indent(
    value: &Value,
    width: Option<Value>,
    first: Option<bool>,
    blank: Option<bool>,
    named: Kwargs,
) -> Result<String, Error> {
    let width = match width {
        Some(width) => Some(width),
        None => named.get::<Option<Value>>("width")?,
    };
    let first = first.or(named.get("first")?).unwrap_or(false);
    let blank = blank.or(named.get("blank")?).unwrap_or(false);
    named.assert_all_used()?;
    let indention = match width {
        None => "    ".to_owned(),
        Some(text) if text.as_str().is_some() => text.as_str().unwrap_or_default().to_owned(),
        Some(width) => " ".repeat(i64::try_from(width)?.clamp(0, 256) as usize),
    };
    let text = string(value)?;
    let text = format!("{}\n", text.as_str().unwrap_or_default());
    let lines = methods::lines(&text, false);
    let mut out = String::with_capacity(text.len());
    for (index, line) in lines.into_iter().enumerate() {
        if index > 0 {
            out.push('\n');
        }
        let is_indented = if index == 0 { first } else { blank || !line.is_empty() };
        if is_indented {
            out.push_str(&indention);
        }
        out.push_str(line);
    }
    Ok(out)
}

fn default(
    value: &Value,
    other: Option<Value>,
    boolean: Option<bool>,
    named: Kwargs,
) -> Result<Value, Error> {
    let other = match other {
        Some(other) => other,
        None => named.get::<Option<Value>>("default_value")?.unwrap_or_else(|| Value::from("")),
    };
    let boolean = boolean.or(named.get("boolean")?).unwrap_or(false);
    named.assert_all_used()?;
    let is_wanted = value.is_undefined() || (boolean && !value.is_true());
    Ok(if is_wanted { other } else { value.clone() })
}

fn escape(value: &Value) -> Result<String, Error> {
    let text = string(value)?;
    let mut out = String::new();
    for letter in text.as_str().unwrap_or_default().chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&#34;"),
            '\'' => out.push_str("&#39;"),
            letter => out.push(letter),
        }
    }
    Ok(out)
}

fn is_iterable(value: &Value) -> bool {
    matches!(
        value.kind(),
        ValueKind::Undefined
            | ValueKind::String
            | ValueKind::Seq
            | ValueKind::Map
            | ValueKind::Iterable
    )
}
