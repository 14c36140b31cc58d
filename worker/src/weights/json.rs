//! JSON files beside the weights, read with every field's file and name in the errors.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::{Map, Value};

use crate::Error;

/// The most bytes of a JSON file; tokenizers of 300,000 tokens have some 40 MB.
const MAX_BYTES: u64 = 64 << 20;

/// A JSON object and what messages call it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Json {
    name: String,
    fields: Map<String, Value>,
}

impl Json {
    /// Reads a file that has to be there.
    ///
    /// Errors: unreadable, too large, or no JSON object; the text names the file.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let name = path.file_name().map_or_else(Default::default, |name| name.to_string_lossy());
        let text = text(path)?;
        Self::parse(&name, text.as_bytes()).map_err(|why| Error::Model(format!("`{name}`: {why}")))
    }

    /// Reads a file that may be missing.
    ///
    /// Errors: as [`read`](Self::read), but none for a file that is not there.
    pub fn read_optional(path: &Path) -> Result<Option<Self>, Error> {
        if path.exists() { Self::read(path).map(Some) } else { Ok(None) }
    }

    /// Parses an object; `name` is what messages call it. A key that comes twice is refused, since
    /// readers differ in which of both they take.
    pub fn parse(name: &str, bytes: &[u8]) -> Result<Self, String> {
        let Object(fields) = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        Ok(Self { name: name.to_owned(), fields })
    }

    /// Returns an object within this one, called by its path; none if it is missing or null.
    ///
    /// Errors: it is no object.
    pub fn object(&self, key: &str) -> Result<Option<Self>, Error> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(fields)) => {
                let name = format!("{}: {key}", self.name);
                Ok(Some(Self { name, fields: fields.clone() }))
            }
            Some(other) => Err(self.wrong(key, "an object", other)),
        }
    }

    /// Returns all fields.
    pub fn fields(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.fields.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// Returns a field; null is as good as missing.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.fields.get(key).filter(|value| !value.is_null())
    }

    /// Returns a whole number that may be missing.
    pub fn optional_number(&self, key: &str) -> Result<Option<u64>, Error> {
        self.read_as(key, "a whole number", Value::as_u64)
    }

    /// Returns a whole number that has to be there.
    pub fn number(&self, key: &str) -> Result<u64, Error> {
        self.optional_number(key)?.ok_or_else(|| self.refusal(key, "is missing"))
    }

    /// Returns a number that may be missing.
    pub fn optional_float(&self, key: &str) -> Result<Option<f64>, Error> {
        self.read_as(key, "a number", Value::as_f64)
    }

    /// Returns a flag that may be missing.
    pub fn optional_bool(&self, key: &str) -> Result<Option<bool>, Error> {
        self.read_as(key, "true or false", Value::as_bool)
    }

    /// Returns a string that may be missing.
    pub fn optional_string(&self, key: &str) -> Result<Option<&str>, Error> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(key, "a string", other)),
        }
    }

    /// Returns a list that may be missing.
    pub fn optional_list(&self, key: &str) -> Result<Option<&[Value]>, Error> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(values)) => Ok(Some(values)),
            Some(other) => Err(self.wrong(key, "a list", other)),
        }
    }

    /// Returns what messages call a field.
    pub fn label(&self, key: &str) -> String {
        format!("`{}`: `{key}`", self.name)
    }

    /// Returns the error of a field.
    pub fn refusal(&self, key: &str, why: &str) -> Error {
        Error::Model(format!("{}: {why}", self.label(key)))
    }

    fn read_as<T>(
        &self,
        key: &str,
        expected: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        read(value).map(Some).ok_or_else(|| self.wrong(key, expected, value))
    }

    fn wrong(&self, key: &str, expected: &str, got: &Value) -> Error {
        // A value may be as long as the file.
        let got = match got {
            Value::Array(values) => format!("a list of {}", values.len()),
            Value::Object(_) => "an object".to_owned(),
            Value::String(_) => "a string".to_owned(),
            other => other.to_string(),
        };
        self.refusal(key, &format!("expected {expected}, got {got}"))
    }
}

/// Reads a text file of a bounded size.
///
/// Errors: unreadable, no regular file, too large, or not UTF-8; the text names the file.
pub(crate) fn text(path: &Path) -> Result<String, Error> {
    let unreadable = |source| Error::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    let broken = |why: String| Error::Model(format!("`{}`: {why}", path.display()));
    if !metadata.is_file() {
        return Err(broken("is no file".into()));
    }
    if metadata.len() > MAX_BYTES {
        let got = metadata.len();
        return Err(broken(format!("expected at most {MAX_BYTES} bytes, got {got}")));
    }
    let mut text = String::new();
    // A file may grow between the look and the reading.
    file.take(MAX_BYTES).read_to_string(&mut text).map_err(unreadable)?;
    Ok(text)
}

/// A JSON object whose keys all differ; values are read as the library does.
struct Object(Map<String, Value>);

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ObjectVisitor)
    }
}

struct ObjectVisitor;

impl<'de> Visitor<'de> for ObjectVisitor {
    type Value = Object;

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Object, A::Error> {
        let mut fields = Map::new();
        while let Some((key, value)) = access.next_entry::<String, Value>()? {
            if fields.contains_key(&key) {
                return Err(A::Error::custom(format!("`{key}` comes twice")));
            }
            fields.insert(key, value);
        }
        Ok(Object(fields))
    }
}
