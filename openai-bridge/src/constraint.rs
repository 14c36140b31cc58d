//! What a text has to look like: `response_format` and vLLM's `guided_*`, as one constraint.

use engine::{Constraint, Result};
use serde_json::Value as Json;

use crate::settings::Settings;

/// Reads the constraint that a request names, if it names one, with the setting that it is from.
///
/// Errors: two of them, or one that is malformed, by name. Whether a schema or a grammar can be
/// kept is the engine's to say.
pub(crate) fn read(settings: &Settings) -> Result<Option<(&'static str, Constraint)>> {
    let mut found: Option<(&'static str, Constraint)> = None;
    let mut add = |name: &'static str, constraint: Option<Constraint>| match (&found, constraint) {
        (_, None) => Ok(()),
        (None, Some(constraint)) => {
            found = Some((name, constraint));
            Ok(())
        }
        (Some((other, _)), Some(_)) => {
            Err(settings.wrong(name, &format!("expected it or `{other}`, got both")))
        }
    };
    add("response_format", response_format(settings)?)?;
    add("guided_json", settings.structure("guided_json").map(schema))?;
    let word = |name| settings.word(name).map(str::to_owned);
    add("guided_regex", word("guided_regex").map(Constraint::Regex))?;
    add("guided_grammar", word("guided_grammar").map(Constraint::Grammar))?;
    let choices = settings.texts("guided_choice");
    add("guided_choice", (!choices.is_empty()).then_some(Constraint::Choice(choices)))?;
    Ok(found)
}

/// vLLM takes a schema also as its JSON text.
fn schema(schema: &Json) -> Constraint {
    match schema {
        Json::String(text) => Constraint::JsonSchema(text.clone()),
        schema => Constraint::JsonSchema(schema.to_string()),
    }
}

fn response_format(settings: &Settings) -> Result<Option<Constraint>> {
    let Some(format) = settings.structure("response_format") else {
        return Ok(None);
    };
    let wrong = |why: &str| settings.wrong("response_format", why);
    let kind = match format {
        Json::String(kind) => kind.as_str(),
        format => format.get("type").and_then(Json::as_str).ok_or_else(|| {
            wrong("expected an object with a `type`: text, json_object, json_schema, regex or grammar")
        })?,
    };
    let text = |name: &str| {
        let text = format.get(name).and_then(Json::as_str).map(str::to_owned);
        text.ok_or_else(|| wrong(&format!("type `{kind}` needs `{name}`, a text")))
    };
    Ok(match kind {
        "text" => None,
        "json_object" => Some(Constraint::JsonObject),
        "json_schema" => {
            let described = format.get("json_schema");
            // The Responses API has the schema beside the type.
            let found = described.and_then(|all| all.get("schema")).or(format.get("schema"));
            match found {
                Some(found) if found.is_object() || found.is_boolean() => Some(schema(found)),
                // OpenAI takes a description without a schema for any object.
                None if described.is_some_and(Json::is_object) => Some(Constraint::JsonObject),
                _ => {
                    return Err(wrong(
                        "type `json_schema` needs `json_schema`: {\"name\", \"schema\"}",
                    ));
                }
            }
        }
        "regex" => Some(Constraint::Regex(text(match format.get("pattern") {
            Some(_) => "pattern",
            None => "regex",
        })?)),
        "grammar" => Some(Constraint::Grammar(text("grammar")?)),
        other => {
            return Err(wrong(&format!(
                "type `{other}` is not known; known are text, json_object, json_schema, regex, \
                 grammar"
            )));
        }
    })
}
