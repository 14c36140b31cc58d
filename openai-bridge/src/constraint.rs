//! What a text has to look like: `response_format`, vLLM's `structured_outputs` and its older
//! `guided_*`, as one constraint.

mod tags;

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
    add("structured_outputs", structured_outputs(settings)?)?;
    add("guided_json", settings.structure("guided_json").map(schema))?;
    let word = |name| settings.word(name).map(str::to_owned);
    add("guided_regex", word("guided_regex").map(Constraint::Regex))?;
    add("guided_grammar", word("guided_grammar").map(Constraint::Grammar))?;
    let choices = settings.texts("guided_choice");
    add("guided_choice", (!choices.is_empty()).then_some(Constraint::Choice(choices)))?;
    Ok(found)
}

/// Reads vLLM's field. What it says of white space and of backends has no effect.
fn structured_outputs(settings: &Settings) -> Result<Option<Constraint>> {
    const NAME: &str = "structured_outputs";
    const KINDS: [&str; 6] =
        ["json", "regex", "choice", "grammar", "json_object", "structural_tag"];
    let wrong = |why: &str| settings.wrong(NAME, why);
    let fields = match settings.structure(NAME) {
        None => return Ok(None),
        Some(Json::Object(fields)) => fields,
        Some(_) => return Err(wrong("expected an object")),
    };
    let is_given = |kind: &&&str| {
        fields.get(**kind).is_some_and(|value| !value.is_null() && *value != Json::Bool(false))
    };
    let mut given = KINDS.iter().filter(is_given);
    let (Some(kind), None) = (given.next(), given.next()) else {
        return Err(wrong(&format!("expected exactly one of {}", KINDS.join(", "))));
    };
    let value = &fields[*kind];
    let text = || {
        let text = value.as_str().map(str::to_owned);
        text.ok_or_else(|| wrong(&format!("`{kind}`: expected a text")))
    };
    Ok(Some(match *kind {
        "json" => schema(value),
        "json_object" => Constraint::JsonObject,
        "regex" => Constraint::Regex(text()?),
        "grammar" => Constraint::Grammar(text()?),
        "structural_tag" => tags::constraint(value).map_err(|why| wrong(&why))?,
        _ => {
            let texts = value.as_array().map(|all| all.iter().map(Json::as_str));
            let texts = texts.and_then(|all| all.map(|text| text.map(str::to_owned)).collect());
            let texts: Option<Vec<String>> = texts;
            let texts = texts.filter(|texts| !texts.is_empty());
            Constraint::Choice(texts.ok_or_else(|| wrong("`choice`: expected a list of texts"))?)
        }
    }))
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
        "structural_tag" => Some(tags::constraint(format).map_err(|why| wrong(&why))?),
        other => {
            return Err(wrong(&format!(
                "type `{other}` is not known; known are text, json_object, json_schema, regex, \
                 grammar, structural_tag"
            )));
        }
    })
}
