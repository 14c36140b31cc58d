//! The settings of a request, from wherever they came: tensors, `sampling_parameters`, parameters.
//!
//! A tensor wins over `sampling_parameters`, which wins over a request parameter. A known name
//! with a value of the wrong type or out of range is an error that names it and its source. An
//! unknown key of `sampling_parameters` is an error; unknown request parameters are ignored, as
//! Triton hands them to backends that may not know them.

mod value;

use std::collections::BTreeMap;

use engine::{Error, InferRequest, Result, TokenId};
use serde_json::{Map, Value as Json};
use tensor::Parameter;

use crate::profile::{self, Field, Kind};

use value::{Value, as_bool, as_integer, as_real, elements, json_scalar, said, scalar};

pub(crate) use value::texts;

/// Where a value came from, as messages tell it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Source {
    Parameter,
    Json,
    Input,
    /// The JSON body of an OpenAI request.
    Body,
}

impl Source {
    fn spell(self, name: &str) -> String {
        match self {
            Self::Input => format!("input `{name}`"),
            Self::Json => format!("`sampling_parameters`: key `{name}`"),
            Self::Parameter => format!("parameter `{name}`"),
            Self::Body => format!("`{name}`"),
        }
    }
}

#[derive(Clone, Debug)]
struct Setting {
    field: &'static Field,
    source: Source,
    /// One for all rows, one a row, or the elements of a list.
    values: Vec<Value>,
}

/// The settings of a request, by meaning.
#[derive(Clone, Debug, Default)]
pub(crate) struct Settings {
    by_meaning: BTreeMap<&'static str, Setting>,
}

impl Settings {
    /// Collects the settings of a request.
    pub(crate) fn collect(request: &InferRequest) -> Result<Self> {
        let mut settings = Self::default();
        let mut json = None;
        for (name, parameter) in &request.parameters {
            let Some(field) = profile::find(name) else {
                continue;
            };
            match (field.kind, parameter) {
                (Kind::Prompt, _) => {}
                (Kind::Json, Parameter::String(text)) => json = Some(text.clone()),
                _ => settings.add(field, Source::Parameter, vec![scalar(parameter)])?,
            }
        }
        let mut tensors = Vec::new();
        for input in &request.inputs {
            match profile::find(&input.name) {
                Some(Field { kind: Kind::Json, .. }) => json = texts(input)?.pop(),
                Some(Field { kind: Kind::Prompt, .. }) | None => {}
                Some(field) => tensors.push((field, elements(input)?)),
            }
        }
        if let Some(text) = json {
            settings.add_json(&text)?;
        }
        for (field, values) in tensors {
            settings.add(field, Source::Input, values)?;
        }
        Ok(settings)
    }

    /// Collects the settings of an OpenAI request's body; other keys are not for this.
    pub(crate) fn of_body(body: &Map<String, Json>) -> Result<Self> {
        let mut settings = Self::default();
        for (key, value) in body {
            let is_setting = |field: &&Field| !matches!(field.kind, Kind::Prompt | Kind::Json);
            if let Some(field) = profile::find(key).filter(is_setting) {
                settings.add_value(field, Source::Body, value)?;
            }
        }
        Ok(settings)
    }

    fn add_json(&mut self, text: &str) -> Result<()> {
        let wrong = |why: String| Error::invalid(format!("`sampling_parameters`: {why}"));
        let parsed: Json = serde_json::from_str(text).map_err(|error| wrong(error.to_string()))?;
        let Json::Object(object) = parsed else {
            return Err(wrong("expected a JSON object".into()));
        };
        for (key, value) in object {
            let is_setting = |field: &&Field| !matches!(field.kind, Kind::Prompt | Kind::Json);
            let field = profile::find(&key).filter(is_setting);
            let field = field.ok_or_else(|| wrong(format!("key `{key}` is not known")))?;
            self.add_value(field, Source::Json, &value)?;
        }
        Ok(())
    }

    /// Adds a JSON value; null is unset, as vLLM and OpenAI's clients write it.
    fn add_value(&mut self, field: &'static Field, source: Source, value: &Json) -> Result<()> {
        let values = match value {
            Json::Null => return Ok(()),
            value if field.kind == Kind::Structure => vec![Value::Json(value.clone())],
            Json::Array(values) if source != Source::Body || is_list(field.kind) => {
                values.iter().map(json_scalar).collect()
            }
            // The OpenAI API has signed seeds.
            Json::Number(seed) if source == Source::Body && field.meaning == "seed" => {
                vec![seed.as_i64().map_or_else(
                    || json_scalar(value),
                    |seed| Value::Integer((seed as u64).into()),
                )]
            }
            value => vec![json_scalar(value)],
        };
        self.add(field, source, values)
    }

    /// Adds a setting after the sources that it wins over.
    fn add(&mut self, field: &'static Field, source: Source, mut values: Vec<Value>) -> Result<()> {
        if field.kind == Kind::Structure {
            values.iter_mut().try_for_each(|value| structure(field, source, value))?;
        }
        let setting = Setting { field, source, values };
        if let Some(other) = self.by_meaning.get(field.meaning)
            && other.source == source
            && other.values != setting.values
        {
            return Err(Error::invalid(format!(
                "{} and {} mean the same and differ",
                source.spell(other.field.name),
                source.spell(field.name)
            )));
        }
        self.by_meaning.insert(field.meaning, setting);
        Ok(())
    }

    /// Checks that every setting fits the number of rows and its declared kind.
    pub(crate) fn check(&self, rows: usize) -> Result<()> {
        for setting in self.by_meaning.values() {
            let is_list = is_list(setting.field.kind);
            let count = setting.values.len();
            if !is_list && count != 1 && count != rows {
                let expected = match rows {
                    1 => "1 element".to_owned(),
                    _ => format!("1 element or one for each of the {rows} prompts"),
                };
                return Err(setting.wrong(&expected, &format!("{count}")));
            }
            for value in &setting.values {
                setting.check(value)?;
            }
        }
        Ok(())
    }

    fn get(&self, meaning: &str, row: usize) -> Option<&Value> {
        let values = &self.by_meaning.get(meaning)?.values;
        values.get(row).or(values.first())
    }

    /// Returns a flag.
    pub(crate) fn flag(&self, meaning: &str) -> Option<bool> {
        self.get(meaning, 0).and_then(as_bool)
    }

    /// Returns a whole number of a row, inside its declared range.
    pub(crate) fn integer(&self, meaning: &str, row: usize) -> Option<i128> {
        self.get(meaning, row).and_then(as_integer)
    }

    /// Returns a number of a row, inside its declared range.
    pub(crate) fn real(&self, meaning: &str, row: usize) -> Option<f32> {
        self.get(meaning, row).and_then(as_real).map(|value| value as f32)
    }

    /// Returns a list of texts.
    pub(crate) fn texts(&self, meaning: &str) -> Vec<String> {
        let setting = self.by_meaning.get(meaning);
        let values = setting.map_or(&[][..], |setting| &setting.values);
        values
            .iter()
            .filter_map(|value| match value {
                Value::Text(text) => Some(text.clone()),
                _ => None,
            })
            .collect()
    }

    /// Returns a list of token ids.
    pub(crate) fn tokens(&self, meaning: &str) -> Vec<TokenId> {
        let setting = self.by_meaning.get(meaning);
        let values = setting.map_or(&[][..], |setting| &setting.values);
        values.iter().filter_map(as_integer).map(|id| id as TokenId).collect()
    }

    /// Returns a text for the whole request.
    pub(crate) fn word(&self, meaning: &str) -> Option<&str> {
        match self.get(meaning, 0) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// Returns a JSON value for the whole request.
    pub(crate) fn structure(&self, meaning: &str) -> Option<&Json> {
        match self.get(meaning, 0) {
            Some(Value::Json(value)) => Some(value),
            _ => None,
        }
    }

    /// Returns what was said of a setting, for a row, as JSON has it; none: nothing was said.
    pub(crate) fn said(&self, meaning: &str, row: usize) -> Option<Json> {
        let setting = self.by_meaning.get(meaning)?;
        match is_list(setting.field.kind) {
            true => setting.values.iter().map(|value| said(setting.field.kind, value)).collect(),
            false => said(setting.field.kind, self.get(meaning, row)?),
        }
    }

    /// Makes the error for a setting, which is named with its source.
    pub(crate) fn wrong(&self, meaning: &str, why: &str) -> Error {
        Error::invalid(format!("{}: {why}", self.spell(meaning))).with_param(meaning)
    }

    /// Returns how messages call a setting.
    pub(crate) fn spell(&self, meaning: &str) -> String {
        match self.by_meaning.get(meaning) {
            Some(setting) => setting.source.spell(setting.field.name),
            None => format!("`{meaning}`"),
        }
    }
}

impl Setting {
    fn check(&self, value: &Value) -> Result<()> {
        // Tensors and parameters may spell numbers and flags; a body has types of its own.
        let is_spelled = self.source == Source::Body && matches!(value, Value::Text(_));
        let (is_right, expected) = match self.field.kind {
            Kind::Flag => (as_bool(value).is_some(), "a bool".to_owned()),
            Kind::Integer { least, most } => (
                as_integer(value).is_some_and(|value| (least..=most).contains(&value)),
                format!("a whole number from {least} to {most}"),
            ),
            Kind::Real { range } => (
                as_real(value).is_some_and(|value| range.contains(value)),
                match range.is_least_open {
                    true => format!("a number above {} and up to {}", range.least, range.most),
                    false => format!("a number from {} to {}", range.least, range.most),
                },
            ),
            Kind::Texts | Kind::Json | Kind::Prompt | Kind::Word => {
                let is_right = matches!(value, Value::Text(_));
                return self.judge(is_right, "a text", value);
            }
            Kind::Structure => (matches!(value, Value::Json(_)), "a JSON value".to_owned()),
            Kind::Tokens => (
                as_integer(value).is_some_and(|id| (0..=i128::from(u32::MAX)).contains(&id)),
                "a token id".to_owned(),
            ),
        };
        self.judge(is_right && !is_spelled, &expected, value)
    }

    fn judge(&self, is_right: bool, expected: &str, got: &Value) -> Result<()> {
        if is_right { Ok(()) } else { Err(self.wrong(expected, &got.to_string())) }
    }

    fn wrong(&self, expected: &str, got: &str) -> Error {
        let name = self.source.spell(self.field.name);
        Error::invalid(format!("{name}: expected {expected}, got {got}"))
            .with_param(self.field.name)
    }
}

/// Returns whether a setting of a kind has any number of values.
fn is_list(kind: Kind) -> bool {
    matches!(kind, Kind::Texts | Kind::Tokens)
}

/// Reads the text of a JSON value; a bare word, such as `auto`, stands for itself.
fn structure(field: &Field, source: Source, value: &mut Value) -> Result<()> {
    let Value::Text(text) = value else {
        return Ok(());
    };
    let is_word = !text.trim_start().starts_with(['{', '[', '"']);
    let parsed = match serde_json::from_str(text) {
        Err(_) if is_word => Json::String(std::mem::take(text)),
        Ok(parsed) => parsed,
        Err(error) => {
            let name = source.spell(field.name);
            return Err(Error::invalid(format!("{name}: {error}")).with_param(field.name));
        }
    };
    *value = Value::Json(parsed);
    Ok(())
}
