//! Fields of bodies: read with an error that names them.

use engine::{Error, Result, TokenId};
use serde_json::Value as Json;

use super::Body;
use crate::{Input, Inputs};

/// Makes the error for a field.
pub(super) fn wrong(field: &str, why: &str) -> Error {
    Error::invalid(format!("`{field}`: {why}")).with_param(field)
}

/// Brings an error about a field to the name that another API has for it.
pub(super) fn renamed(error: Error, names: &[(&str, &str)]) -> Error {
    let found = names.iter().find(|(name, _)| error.param() == Some(name));
    let Some((name, own)) = found else {
        return error;
    };
    let message = error.message().replace(&format!("`{name}`"), &format!("`{own}`"));
    let renamed = Error::new(error.kind(), message).with_param(*own);
    match error.code() {
        Some(code) => renamed.with_code(code.to_owned()),
        None => renamed,
    }
}

/// Returns a field; null is as good as none.
pub(super) fn get<'a>(body: &'a Body, field: &str) -> Option<&'a Json> {
    body.get(field).filter(|value| !value.is_null())
}

/// Returns a flag.
pub(super) fn flag(body: &Body, field: &str) -> Result<Option<bool>> {
    match get(body, field) {
        None => Ok(None),
        Some(Json::Bool(value)) => Ok(Some(*value)),
        Some(other) => Err(wrong(field, &format!("expected a bool, got {}", kind(other)))),
    }
}

/// Returns a whole number in a range.
pub(super) fn number(
    body: &Body,
    field: &str,
    range: std::ops::RangeInclusive<u64>,
) -> Result<Option<u64>> {
    let Some(value) = get(body, field) else {
        return Ok(None);
    };
    match value.as_u64().filter(|number| range.contains(number)) {
        Some(number) => Ok(Some(number)),
        None => {
            let (least, most) = range.into_inner();
            let got = if value.is_number() { value.to_string() } else { kind(value).to_owned() };
            Err(wrong(field, &format!("expected a whole number from {least} to {most}, got {got}")))
        }
    }
}

/// Returns a text.
pub(super) fn text<'a>(body: &'a Body, field: &str) -> Result<Option<&'a str>> {
    match get(body, field) {
        None => Ok(None),
        Some(Json::String(text)) => Ok(Some(text)),
        Some(other) => Err(wrong(field, &format!("expected a text, got {}", kind(other)))),
    }
}

/// Refuses fields that are known and cannot be honoured.
pub(super) fn refuse(body: &Body, fields: &[(&str, &str)]) -> Result<()> {
    let given = |(field, _): &&(&str, &str)| match get(body, field) {
        None | Some(Json::Bool(false)) => false,
        Some(Json::Array(all)) => !all.is_empty(),
        Some(_) => true,
    };
    match fields.iter().find(given) {
        None => Ok(()),
        Some((field, why)) => Err(wrong(field, &format!("is not supported: {why}"))),
    }
}

/// What a stream of a chat or a completion looks like.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct StreamOptions {
    pub is_streaming: bool,
    /// A last chunk tells the usage.
    pub has_usage: bool,
    /// Every chunk tells the usage so far.
    pub has_usage_always: bool,
}

impl StreamOptions {
    pub(super) fn read(body: &Body) -> Result<Self> {
        let is_streaming = flag(body, "stream")?.unwrap_or(false);
        let options = match get(body, "stream_options") {
            None => return Ok(Self { is_streaming, ..Self::default() }),
            Some(_) if !is_streaming => {
                return Err(wrong("stream_options", "is only allowed when `stream` is true"));
            }
            Some(Json::Object(options)) => options,
            Some(other) => {
                let why = format!("expected an object, got {}", kind(other));
                return Err(wrong("stream_options", &why));
            }
        };
        let flag = |name: &str| match options.get(name) {
            None | Some(Json::Null) => Ok(false),
            Some(Json::Bool(value)) => Ok(*value),
            Some(_) => Err(wrong(&format!("stream_options.{name}"), "expected a bool")),
        };
        Ok(Self {
            is_streaming,
            has_usage: flag("include_usage")?,
            has_usage_always: flag("continuous_usage_stats")?,
        })
    }
}

/// Reads texts in any of the forms that the API has: a text, texts, tokens, lists of tokens.
pub(super) fn inputs(body: &Body, field: &str, most: usize) -> Result<Vec<Input>> {
    let value = get(body, field).ok_or_else(|| wrong(field, "is missing"))?;
    let list = match value {
        Json::String(text) => return Ok(vec![Input::Text(text.clone())]),
        Json::Array(list) => list,
        other => {
            let why = format!("expected a text, a list of texts or tokens, got {}", kind(other));
            return Err(wrong(field, &why));
        }
    };
    let inputs: Vec<Input> = match list.first() {
        None => return Err(wrong(field, "expected at least 1 text or token, got an empty list")),
        Some(Json::Number(_)) => vec![Input::Tokens(tokens(list, field)?)],
        Some(_) => {
            let one = |(index, value): (usize, &Json)| {
                let place = format!("{field}[{index}]");
                match value {
                    Json::String(text) => Ok(Input::Text(text.clone())),
                    Json::Array(list) if !list.is_empty() => {
                        Ok(Input::Tokens(tokens(list, &place)?))
                    }
                    Json::Array(_) => Err(wrong(&place, "expected at least 1 token, got 0")),
                    other => Err(wrong(&place, &format!("expected a text, got {}", kind(other)))),
                }
            };
            list.iter().enumerate().map(one).collect::<Result<_>>()?
        }
    };
    match inputs.len() > most {
        true => Err(wrong(field, &format!("expected at most {most} texts, got {}", inputs.len()))),
        false => Ok(inputs),
    }
}

/// Reads how many tokens of a text are taken; -1 are as many as the model takes, as in vLLM.
pub(super) fn truncation(body: &Body) -> Result<Option<usize>> {
    const FIELD: &str = "truncate_prompt_tokens";
    if get(body, FIELD).and_then(Json::as_i64) == Some(-1) {
        return Ok(Some(usize::MAX));
    }
    Ok(number(body, FIELD, 1..=1 << 31)?.map(|count| count as usize))
}

/// Reads token ids.
pub(super) fn tokens(list: &[Json], field: &str) -> Result<Vec<TokenId>> {
    let id = |(index, value): (usize, &Json)| {
        let id = value.as_u64().and_then(|id| TokenId::try_from(id).ok());
        id.ok_or_else(|| wrong(&format!("{field}[{index}]"), &format!("{value} is no token id")))
    };
    list.iter().enumerate().map(id).collect()
}

impl Inputs {
    /// Cuts a vector to the dimensions that are wanted and scales it to length 1 again.
    ///
    /// Errors: more dimensions than it has.
    pub fn cut(&self, mut vector: Vec<f32>) -> Result<Vec<f32>> {
        let Some(dimensions) = self.dimensions else {
            return Ok(vector);
        };
        if dimensions > vector.len() {
            let why = format!("the model's vectors have {}, got {dimensions}", vector.len());
            return Err(wrong("dimensions", &why));
        }
        vector.truncate(dimensions);
        let length = vector.iter().map(|value| value * value).sum::<f32>().sqrt();
        if length > 0.0 {
            vector.iter_mut().for_each(|value| *value /= length);
        }
        Ok(vector)
    }
}

/// Returns what a value is, for messages.
pub(super) fn kind(value: &Json) -> &'static str {
    match value {
        Json::Null => "null",
        Json::Bool(_) => "a bool",
        Json::Number(_) => "a number",
        Json::String(_) => "a text",
        Json::Array(_) => "a list",
        Json::Object(_) => "an object",
    }
}
