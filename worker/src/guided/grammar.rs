//! From a client's constraint to the parser's own language, with the bounds of its size.

use engine::{Constraint, Error, Result};
use llguidance::JsonCompileOptions;
use llguidance::api::{GrammarWithLexer, TopLevelGrammar};
use serde_json::{Value, json};

/// The largest constraint, in bytes of its text.
const MAX_TEXT_BYTES: usize = 256 << 10;

/// The most lines of a grammar: terminals that stand in each other cost the cube of their number.
const MAX_GRAMMAR_LINES: usize = 500;

/// The most texts of a choice.
const MAX_CHOICES: usize = 10_000;

/// Makes the grammar of a constraint.
///
/// Errors: the constraint is too large or cannot be read; the text says where.
pub(super) fn grammar(constraint: &Constraint) -> Result<TopLevelGrammar> {
    let size_bytes = match constraint {
        Constraint::JsonObject => 0,
        Constraint::JsonSchema(text) | Constraint::Regex(text) | Constraint::Grammar(text) => {
            text.len()
        }
        Constraint::Choice(texts) => texts.iter().map(String::len).sum(),
    };
    if size_bytes > MAX_TEXT_BYTES {
        return Err(Error::invalid(format!(
            "the constraint: expected at most {MAX_TEXT_BYTES} bytes, got {size_bytes}"
        )));
    }
    let grammar = match constraint {
        Constraint::JsonObject => schema(json!({"type": "object"})),
        Constraint::JsonSchema(text) => schema(read(text)?),
        Constraint::Regex(pattern) => regex(whole(pattern)?),
        Constraint::Grammar(text) if text.trim().is_empty() => {
            return Err(Error::invalid("the grammar is empty"));
        }
        Constraint::Grammar(text) if text.lines().count() > MAX_GRAMMAR_LINES => {
            return Err(Error::invalid(format!(
                "the grammar: expected at most {MAX_GRAMMAR_LINES} lines, got {}",
                text.lines().count()
            )));
        }
        Constraint::Grammar(text) => GrammarWithLexer::from_lark(text.clone()),
        Constraint::Choice(texts) => choice(texts)?,
    };
    Ok(TopLevelGrammar::from_grammar(grammar))
}

/// Reads a schema; its depth is bounded by the reader.
fn read(text: &str) -> Result<Value> {
    let schema: Value = serde_json::from_str(text)
        .map_err(|error| Error::invalid(format!("the JSON Schema is not JSON: {error}")))?;
    match schema {
        Value::Object(_) => Ok(schema),
        Value::Bool(true) => Ok(json!({})),
        Value::Bool(false) => Err(Error::invalid("the JSON Schema `false` allows nothing")),
        _ => Err(Error::invalid("the JSON Schema: expected an object")),
    }
}

/// Makes the grammar of a schema. Between tokens of JSON stands at most one space, so that a
/// small model cannot go on with blanks for ever; the client has no say in these options.
fn schema(mut schema: Value) -> GrammarWithLexer {
    let options = JsonCompileOptions {
        item_separator: ", ?".into(),
        key_separator: ": ?".into(),
        whitespace_flexible: false,
        ..JsonCompileOptions::default()
    };
    options.apply_to(&mut schema);
    GrammarWithLexer::from_json_schema(schema)
}

/// Takes away the anchors of a pattern: the whole text has to match it anyway.
fn whole(pattern: &str) -> Result<&str> {
    let pattern = pattern.strip_prefix('^').unwrap_or(pattern);
    let escapes = |text: &str| text.bytes().rev().take_while(|&byte| byte == b'\\').count();
    let pattern = match pattern.strip_suffix('$') {
        Some(rest) if escapes(rest).is_multiple_of(2) => rest,
        _ => pattern,
    };
    match pattern {
        "" => Err(Error::invalid("the regular expression matches only the empty text")),
        pattern => Ok(pattern),
    }
}

fn regex(pattern: &str) -> GrammarWithLexer {
    GrammarWithLexer::from_regex(pattern)
}

/// Makes the grammar of some literal texts.
fn choice(texts: &[String]) -> Result<GrammarWithLexer> {
    if texts.len() > MAX_CHOICES {
        return Err(Error::invalid(format!(
            "the choice: expected at most {MAX_CHOICES} texts, got {}",
            texts.len()
        )));
    }
    if texts.iter().all(String::is_empty) {
        return Err(Error::invalid("the choice has no text"));
    }
    let mut pattern = String::from("(?:");
    for (index, text) in texts.iter().enumerate() {
        if index > 0 {
            pattern.push('|');
        }
        for letter in text.chars() {
            if r"\.+*?()|[]{}^$#&-~".contains(letter) {
                pattern.push('\\');
            }
            pattern.push(letter);
        }
    }
    pattern.push(')');
    Ok(regex(&pattern))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anchors_are_taken_away_and_escaped_ones_stay() {
        let table =
            [("^a+$", "a+"), ("a+", "a+"), (r"a\$", r"a\$"), (r"a\\$", r"a\\"), ("^a|b$", "a|b")];
        for (pattern, expected) in table {
            assert_eq!(whole(pattern).unwrap(), expected);
        }
        assert!(whole("^$").is_err());
    }

    #[test]
    fn what_cannot_be_read_is_refused_with_the_reason() {
        let large = "x".repeat(MAX_TEXT_BYTES + 1);
        let deep = "[".repeat(1000);
        let many = vec!["x".to_owned(); MAX_CHOICES + 1];
        let table = [
            (Constraint::JsonSchema("{".into()), "is not JSON"),
            (Constraint::JsonSchema("3".into()), "expected an object"),
            (Constraint::JsonSchema("false".into()), "allows nothing"),
            (Constraint::JsonSchema(deep), "recursion limit"),
            (Constraint::Regex(large), "expected at most 262144 bytes, got 262145"),
            (Constraint::Regex("^$".into()), "only the empty text"),
            (Constraint::Grammar(" \n".into()), "is empty"),
            (Constraint::Choice(vec![]), "has no text"),
            (Constraint::Choice(many), "expected at most 10000 texts"),
        ];
        for (constraint, expected) in table {
            let error = grammar(&constraint).expect_err("it had to be refused");
            assert!(error.message().contains(expected), "{error}");
        }
    }
}
