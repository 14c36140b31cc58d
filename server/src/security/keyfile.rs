//! The file of API keys: who has one, by its SHA-256, and what it is good for.

use std::collections::HashSet;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::scope::Scope;

/// Most keys of a file.
const MAX_KEYS: usize = 10_000;

/// One key, as the file has it and after checks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub name: String,
    pub digest: [u8; 32],
    pub scopes: Vec<Scope>,
    /// Names of models, in which `*` stands for anything.
    pub models: Vec<String>,
    pub requests_per_minute: Option<u64>,
    pub tokens_per_minute: Option<u64>,
    /// Seconds since 1970 at which it ends.
    pub expires: Option<i64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    keys: Vec<Written>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    name: String,
    sha256: String,
    #[serde(default = "usual_scopes")]
    scopes: Vec<Scope>,
    #[serde(default = "all_models")]
    models: Vec<String>,
    requests_per_minute: Option<u64>,
    tokens_per_minute: Option<u64>,
    expires: Option<String>,
}

fn usual_scopes() -> Vec<Scope> {
    vec![Scope::Inference, Scope::Metadata]
}

fn all_models() -> Vec<String> {
    vec!["*".to_owned()]
}

/// Reads the keys of a file; `path` tells JSON (`.json`) from TOML.
///
/// Errors: what is wrong, and with which key.
pub(super) fn parse(path: &Path, bytes: &[u8]) -> Result<Vec<Entry>, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "it is not UTF-8".to_owned())?;
    let is_json = path.extension().is_some_and(|extension| extension == "json");
    let value = match is_json {
        true => serde_json::from_str(text).map_err(|error| format!("it is not JSON: {error}"))?,
        false => {
            let table: toml::Table = text
                .parse()
                .map_err(|error: toml::de::Error| format!("it is not TOML: {}", error.message()))?;
            json(toml::Value::Table(table))
        }
    };
    // In JSON the list may stand alone.
    let value = match value {
        Value::Array(keys) => serde_json::json!({ "keys": keys }),
        other => other,
    };
    let file: File = serde_json::from_value(value).map_err(|error| error.to_string())?;
    if file.keys.len() > MAX_KEYS {
        return Err(format!("it has {} keys, more than {MAX_KEYS}", file.keys.len()));
    }
    let (mut names, mut digests) = (HashSet::new(), HashSet::new());
    let mut entries = Vec::with_capacity(file.keys.len());
    for written in file.keys {
        let name = written.name.clone();
        let entry = check(written).map_err(|why| format!("key `{name}`: {why}"))?;
        if !names.insert(name.clone()) {
            return Err(format!("key `{name}`: the name stands twice"));
        }
        if !digests.insert(entry.digest) {
            return Err(format!("key `{name}`: another key has the same `sha256`"));
        }
        entries.push(entry);
    }
    Ok(entries)
}

fn check(written: Written) -> Result<Entry, String> {
    if written.name.is_empty() {
        return Err("`name` is empty".to_owned());
    }
    for (field, value) in [
        ("requests_per_minute", written.requests_per_minute),
        ("tokens_per_minute", written.tokens_per_minute),
    ] {
        if value == Some(0) {
            return Err(format!("`{field}`: expected at least 1, got 0"));
        }
    }
    Ok(Entry {
        digest: digest(&written.sha256)?,
        expires: written.expires.as_deref().map(seconds).transpose()?,
        name: written.name,
        scopes: written.scopes,
        models: written.models,
        requests_per_minute: written.requests_per_minute,
        tokens_per_minute: written.tokens_per_minute,
    })
}

/// The text may be a key that was put there by mistake, so no message repeats it.
fn digest(hex: &str) -> Result<[u8; 32], String> {
    let wrong = || "`sha256`: expected 64 hexadecimal digits".to_owned();
    if hex.len() != 64 || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(wrong());
    }
    let mut digest = [0; 32];
    for (at, byte) in digest.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).map_err(|_| wrong())?;
    }
    Ok(digest)
}

/// Returns a moment of RFC 3339, or the start of a day, in seconds since 1970; without an offset
/// it is UTC.
fn seconds(text: &str) -> Result<i64, String> {
    let wrong =
        || format!("`expires`: expected a time such as `2030-12-31T00:00:00Z`, got `{text}`");
    let read: toml::value::Datetime = text.parse().map_err(|_| wrong())?;
    let date = read.date.ok_or_else(wrong)?;
    let days = days(i64::from(date.year), i64::from(date.month), i64::from(date.day));
    let time = read.time.map_or(0, |time| {
        let minutes = i64::from(time.hour) * 60 + i64::from(time.minute);
        minutes * 60 + i64::from(time.second.unwrap_or(0))
    });
    let offset = match read.offset {
        Some(toml::value::Offset::Custom { minutes }) => i64::from(minutes) * 60,
        _ => 0,
    };
    Ok(days * 86_400 + time - offset)
}

/// Returns the days from 1970-01-01 to a date of the Gregorian calendar. A year begins in March
/// here, so that a leap day is the last of it.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// Makes JSON of TOML; its times become text.
fn json(value: toml::Value) -> Value {
    match value {
        toml::Value::String(text) => Value::String(text),
        toml::Value::Integer(number) => Value::from(number),
        toml::Value::Float(number) => Value::from(number),
        toml::Value::Boolean(flag) => Value::Bool(flag),
        toml::Value::Datetime(time) => Value::String(time.to_string()),
        toml::Value::Array(all) => Value::Array(all.into_iter().map(json).collect()),
        toml::Value::Table(table) => {
            Value::Object(table.into_iter().map(|(key, value)| (key, json(value))).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn toml(text: &str) -> Result<Vec<Entry>, String> {
        parse(Path::new("keys.toml"), text.as_bytes())
    }

    fn key(rest: &str) -> String {
        format!("[[keys]]\nname = \"a\"\nsha256 = \"{}\"\n{rest}\n", "0f".repeat(32))
    }

    #[test]
    fn both_notations_give_the_same_keys() {
        let in_toml = key("scopes = [\"admin\", \"*\"]\nmodels = [\"m-*\"]\nexpires = 2030-01-02");
        let in_json = format!(
            r#"[{{"name": "a", "sha256": "{}", "scopes": ["admin", "*"], "models": ["m-*"],
                "expires": "2030-01-02T02:00:00+02:00"}}]"#,
            "0F".repeat(32)
        );
        let of_json = parse(Path::new("keys.json"), in_json.as_bytes()).unwrap();
        assert_eq!(toml(&in_toml).unwrap(), of_json);
        assert_eq!(of_json[0].digest, [0x0f; 32]);
        assert_eq!(of_json[0].expires, Some(1_893_542_400));
    }

    #[test]
    fn a_key_is_for_inference_and_metadata_of_all_models_unless_it_says() {
        let entry = &toml(&key("")).unwrap()[0];
        assert_eq!(entry.scopes, [Scope::Inference, Scope::Metadata]);
        assert_eq!((entry.models.as_slice(), entry.expires), (&["*".to_owned()][..], None));
        assert_eq!(toml("keys = []").unwrap(), []);
    }

    #[test]
    fn a_file_says_what_is_wrong_with_it() {
        let twice = key("") + &key("");
        let table = [
            (key("scope = [\"admin\"]"), "unknown field `scope`"),
            (key("scopes = [\"root\"]"), "unknown variant `root`"),
            (key("requests_per_minute = 0"), "key `a`: `requests_per_minute`"),
            (key("requests_per_minute = -1"), "invalid value"),
            (key("expires = \"soon\""), "key `a`: `expires`"),
            (key("expires = 12:00:00"), "key `a`: `expires`"),
            (twice, "stands twice"),
            (key("").replace("0f0f", "sk-s"), "64 hexadecimal digits"),
            (key("").replace("0f0f", "0f"), "64 hexadecimal digits"),
            (String::new(), "missing field `keys`"),
            ("x".to_owned(), "not TOML"),
        ];
        for (text, expected) in table {
            let error = toml(&text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
            assert!(!error.contains("sk-s0f"), "{error}");
        }
    }

    #[test]
    fn days_are_counted_from_1970() {
        let table = [((1970, 1, 1), 0), ((2000, 2, 29), 11_016), ((2024, 3, 1), 19_783)];
        for ((year, month, day), expected) in table {
            assert_eq!(days(year, month, day), expected);
        }
    }
}
