//! Structural tags, as vLLM and SGLang have them: free text in which what follows a trigger is
//! held to a schema.

use engine::Constraint;
use serde_json::Value as Json;

use crate::alternatives::{literal, schema};

/// One tag: what begins it, the schema of its content, what ends it.
struct Tag<'a> {
    begin: &'a str,
    schema: &'a Json,
    end: &'a str,
}

/// Reads structural tags, an object or its text.
///
/// Errors: what is wrong with them.
pub(super) fn constraint(value: &Json) -> Result<Constraint, String> {
    let parsed: Json;
    let value = match value {
        Json::String(text) => {
            parsed = serde_json::from_str(text)
                .map_err(|error| format!("structural tags are not JSON: {error}"))?;
            &parsed
        }
        value => value,
    };
    let body = value.get("format").unwrap_or(value);
    if value.get("format").is_some() && body["type"] != "triggered_tags" {
        return Err("of structural tags, only the format `triggered_tags` is served".to_owned());
    }
    let list = body.get("tags").or_else(|| body.get("structures")).and_then(Json::as_array);
    let list = list.ok_or("structural tags need `structures`, or a `format` with `tags`")?;
    let tags = list.iter().map(tag).collect::<Result<Vec<_>, _>>()?;
    let triggers = body["triggers"].as_array().into_iter().flatten();
    let triggers: Vec<&str> = triggers.filter_map(Json::as_str).collect();
    if tags.is_empty() || triggers.is_empty() {
        return Err("structural tags need at least one tag and one of `triggers`".to_owned());
    }
    grammar(&tags, &triggers).map(Constraint::Grammar)
}

fn tag(tag: &Json) -> Result<Tag<'_>, String> {
    let text = |name: &str| tag[name].as_str().unwrap_or_default();
    let content = &tag["content"];
    let schema = tag.get("schema").or_else(|| content.get("json_schema"));
    let schema = schema.filter(|schema| schema.is_object());
    let schema = schema.ok_or("a structural tag needs a `schema`, or JSON as its `content`")?;
    Ok(Tag { begin: text("begin"), schema, end: text("end") })
}

/// Every text ends free; before, the first trigger that comes decides which tags may follow.
fn grammar(tags: &[Tag<'_>], triggers: &[&str]) -> Result<String, String> {
    let mut rules = String::new();
    let names: Vec<String> = (0..tags.len()).map(|index| format!("tag_{index}")).collect();
    for (index, tag) in tags.iter().enumerate() {
        let begun = triggers.iter().position(|trigger| tag.begin.starts_with(trigger));
        let number = begun.ok_or_else(|| {
            format!("the structural tag that begins with `{}` begins with no trigger", tag.begin)
        })?;
        let rest = &tag.begin[triggers[number].len()..];
        let schema = schema(tag.schema.clone(), false);
        rules += &format!(
            "tag_{index}: trigger_{number} {} body_{index} {}\nbody_{index}: {schema}\n",
            literal(rest),
            literal(tag.end)
        );
    }
    for (number, trigger) in triggers.iter().enumerate() {
        rules += &format!("trigger_{number}[lazy]: FREE {}\n", literal(trigger));
    }
    Ok(format!("start: ({})* FREE\n{rules}FREE: /(?s:.*)/\n", names.join(" | ")))
}
