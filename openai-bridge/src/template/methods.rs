//! Methods of Python's strings, lists and dictionaries, as templates call them.

use minijinja::value::{Kwargs, Rest, Tuple, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat;

use super::python::is_space;

/// Calls a method that the value itself does not have.
pub(super) fn call(
    state: &mut State,
    value: &Value,
    method: &str,
    arguments: &[Value],
) -> Result<Value, Error> {
    let answer = match value.kind() {
        ValueKind::String => of_text(value.as_str().unwrap_or_default(), method, arguments)?,
        ValueKind::Map => of_dict(value, method, arguments)?,
        ValueKind::Seq => of_list(value, method, arguments)?,
        _ => None,
    };
    match answer {
        Some(answer) => Ok(answer),
        None => pycompat::unknown_method_callback(state, value, method, arguments),
    }
}

fn of_text(text: &str, method: &str, arguments: &[Value]) -> Result<Option<Value>, Error> {
    Ok(Some(match method {
        "strip" | "lstrip" | "rstrip" => {
            let (chars,): (Option<&str>,) = from_args(arguments)?;
            Value::from(strip(text, chars, method != "rstrip", method != "lstrip"))
        }
        "split" | "rsplit" => split_method(text, method == "rsplit", arguments)?,
        "partition" | "rpartition" => {
            let (separator,): (&str,) = from_args(arguments)?;
            let separator = not_empty(separator)?;
            let cut = match method {
                "partition" => text.split_once(separator).ok_or([text, "", ""]),
                _ => text.rsplit_once(separator).ok_or(["", "", text]),
            };
            let parts = match cut {
                Ok((before, after)) => [before, separator, after],
                Err(parts) => parts,
            };
            Value::from(Tuple::from(parts.map(Value::from)))
        }
        "splitlines" => {
            let (keep, named): (Option<bool>, Kwargs) = from_args(arguments)?;
            let keep = keep.or(named.get("keepends")?).unwrap_or(false);
            lines(text, keep).into_iter().map(Value::from).collect()
        }
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(arguments)?;
            Value::from(text.strip_prefix(prefix).unwrap_or(text))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(arguments)?;
            Value::from(text.strip_suffix(suffix).unwrap_or(text))
        }
        "index" | "rindex" => {
            let (part,): (&str,) = from_args(arguments)?;
            let found = if method == "index" { text.find(part) } else { text.rfind(part) };
            let found = found.ok_or_else(|| refused("substring not found"))?;
            Value::from(text[..found].chars().count())
        }
        "ljust" | "rjust" | "center" | "zfill" => pad(text, method, arguments)?,
        "casefold" => Value::from(text.to_lowercase()),
        "title" => {
            let () = from_args(arguments)?;
            Value::from(title(text))
        }
        "swapcase" => {
            let () = from_args(arguments)?;
            let swapped = text.chars().flat_map(|letter| match letter.is_uppercase() {
                true => letter.to_lowercase().collect::<Vec<_>>(),
                false => letter.to_uppercase().collect(),
            });
            Value::from(String::from_iter(swapped))
        }
        _ => return Ok(None),
    }))
}

fn of_dict(value: &Value, method: &str, arguments: &[Value]) -> Result<Option<Value>, Error> {
    match method {
        "copy" => {
            let () = from_args(arguments)?;
            Ok(Some(value.clone()))
        }
        "pop" | "popitem" | "update" | "clear" | "setdefault" => Err(immutable(method)),
        _ => Ok(None),
    }
}

fn of_list(value: &Value, method: &str, arguments: &[Value]) -> Result<Option<Value>, Error> {
    match method {
        "copy" => {
            let () = from_args(arguments)?;
            Ok(Some(value.clone()))
        }
        "index" => {
            let (wanted, _): (&Value, Rest<Value>) = from_args(arguments)?;
            let found = value.try_iter()?.position(|item| item == *wanted);
            found.map(|index| Some(Value::from(index))).ok_or_else(|| refused("not in the list"))
        }
        "append" | "extend" | "insert" | "pop" | "remove" | "reverse" | "sort" | "clear" => {
            Err(immutable(method))
        }
        _ => Ok(None),
    }
}

/// Takes white space, or the given characters, off the ends of a text.
pub(super) fn strip<'t>(
    text: &'t str,
    chars: Option<&str>,
    at_start: bool,
    at_end: bool,
) -> &'t str {
    let is_taken = |letter: char| match chars {
        Some(chars) => chars.contains(letter),
        None => is_space(letter),
    };
    let text = if at_start { text.trim_start_matches(is_taken) } else { text };
    if at_end { text.trim_end_matches(is_taken) } else { text }
}

/// Returns the lines of a text by Python's ends of lines, which are more than `\n`.
pub(super) fn lines(text: &str, keep_ends: bool) -> Vec<&str> {
    let is_end = |letter: char| {
        matches!(letter, '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}')
            || matches!(letter, '\u{2028}' | '\u{2029}')
    };
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some(end) = rest.find(is_end) {
        let length = match rest[end..].starts_with("\r\n") {
            true => 2,
            false => rest[end..].chars().next().map_or(1, char::len_utf8),
        };
        lines.push(&rest[..if keep_ends { end + length } else { end }]);
        rest = &rest[end + length..];
    }
    if !rest.is_empty() {
        lines.push(rest);
    }
    lines
}

fn split_method(text: &str, from_right: bool, arguments: &[Value]) -> Result<Value, Error> {
    let (separator, count, named): (Option<Value>, Option<i64>, Kwargs) = from_args(arguments)?;
    let separator = match separator {
        Some(separator) => Some(separator),
        None => named.get::<Option<Value>>("sep")?,
    };
    let count = count.or(named.get("maxsplit")?).unwrap_or(-1);
    named.assert_all_used()?;
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    let parts = match separator.filter(|separator| !separator.is_none()) {
        None => split_space(text, count, from_right),
        Some(separator) => {
            let separator = separator.as_str().unwrap_or_default();
            split(text, not_empty(separator)?, count, from_right)
        }
    };
    Ok(parts.into_iter().map(Value::from).collect())
}

fn split<'t>(text: &'t str, separator: &str, count: usize, from_right: bool) -> Vec<&'t str> {
    let parts = count.saturating_add(1);
    if !from_right {
        return text.splitn(parts, separator).collect();
    }
    let mut parts: Vec<&str> = text.rsplitn(parts, separator).collect();
    parts.reverse();
    parts
}

fn split_space(text: &str, count: usize, from_right: bool) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = strip(text, None, !from_right, from_right);
    while !rest.is_empty() {
        let cut = match from_right {
            _ if parts.len() == count => None,
            true => rest.rfind(is_space),
            false => rest.find(is_space),
        };
        let Some(cut) = cut else {
            parts.push(rest);
            break;
        };
        if from_right {
            let space = rest[cut..].chars().next().map_or(1, char::len_utf8);
            parts.push(&rest[cut + space..]);
            rest = rest[..cut].trim_end_matches(is_space);
        } else {
            parts.push(&rest[..cut]);
            rest = rest[cut..].trim_start_matches(is_space);
        }
    }
    if from_right {
        parts.reverse();
    }
    parts
}

/// Writes each run of letters with a capital first, as Python, which has `They'Re`.
fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut in_word = false;
    for letter in text.chars() {
        match in_word {
            true => out.extend(letter.to_lowercase()),
            false => out.extend(letter.to_uppercase()),
        }
        in_word = letter.is_alphabetic();
    }
    out
}

/// Widest field that a text is padded to.
const MAX_WIDTH: usize = 10_000;

fn pad(text: &str, method: &str, arguments: &[Value]) -> Result<Value, Error> {
    let (width, fill): (i64, Option<char>) = from_args(arguments)?;
    let width = usize::try_from(width).unwrap_or(0);
    if width > MAX_WIDTH {
        return Err(refused("a field wider than 10000"));
    }
    let fill = fill.unwrap_or(if method == "zfill" { '0' } else { ' ' });
    let missing = width.saturating_sub(text.chars().count());
    let left = match method {
        "ljust" => 0,
        "center" => missing / 2 + (missing & width & 1),
        _ => missing,
    };
    let fills = |count: usize| String::from_iter(std::iter::repeat_n(fill, count));
    let (sign, digits) = match method == "zfill" && text.starts_with(['+', '-']) {
        true => text.split_at(1),
        false => ("", text),
    };
    Ok(Value::from(format!("{sign}{}{digits}{}", fills(left), fills(missing - left))))
}

fn not_empty(separator: &str) -> Result<&str, Error> {
    match separator.is_empty() {
        true => Err(refused("empty separator")),
        false => Ok(separator),
    }
}

fn immutable(method: &str) -> Error {
    refused(&format!("`{method}` would change a value of the conversation"))
}

fn refused(why: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, why.to_owned())
}
