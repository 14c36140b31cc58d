//! The trace settings: of the server, and what single models have of their own.

use std::collections::{BTreeMap, HashMap};

use engine::{Error, ErrorKind, Result};

use crate::args::TraceMode;

/// A setting's values as the wire has them; none given clears a model's own.
pub(crate) type Values = Vec<String>;

/// All settings in force for a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// Record when each step of a request happened.
    pub has_timestamps: bool,
    /// Record inputs and outputs.
    pub has_tensors: bool,
    /// One request of so many is traced.
    pub rate: u32,
    /// So many are traced; none: no limit.
    pub count: Option<u64>,
    /// A file is closed after so many traces and another begun; 0: never.
    pub log_frequency: u32,
    pub mode: TraceMode,
}

impl Settings {
    /// Returns whether anything is recorded.
    pub(crate) fn is_on(&self) -> bool {
        self.has_timestamps || self.has_tensors
    }

    fn level(&self) -> Values {
        let levels = [(self.has_timestamps, "TIMESTAMPS"), (self.has_tensors, "TENSORS")];
        let on: Values =
            levels.iter().filter(|(is_on, _)| *is_on).map(|(_, name)| (*name).into()).collect();
        if on.is_empty() { vec!["OFF".into()] } else { on }
    }

    /// Returns the settings as the wire has them.
    pub(crate) fn spell(&self, file: &str) -> BTreeMap<String, Values> {
        let count = self.count.map_or("-1".to_owned(), |count| count.to_string());
        let mode = match self.mode {
            TraceMode::Triton => "triton",
            TraceMode::Opentelemetry => "opentelemetry",
        };
        BTreeMap::from([
            ("trace_level".to_owned(), self.level()),
            ("trace_rate".to_owned(), vec![self.rate.to_string()]),
            ("trace_count".to_owned(), vec![count]),
            ("log_frequency".to_owned(), vec![self.log_frequency.to_string()]),
            ("trace_file".to_owned(), vec![file.to_owned()]),
            ("trace_mode".to_owned(), vec![mode.to_owned()]),
        ])
    }

    /// Puts a changed setting in force.
    fn put(&mut self, change: &Change) {
        match change {
            Change::Level { timestamps, tensors } => {
                (self.has_timestamps, self.has_tensors) = (*timestamps, *tensors);
            }
            Change::Rate(rate) => self.rate = *rate,
            Change::Count(count) => self.count = *count,
            Change::LogFrequency(frequency) => self.log_frequency = *frequency,
            Change::Mode(mode) => self.mode = *mode,
        }
    }
}

/// One setting and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Level { timestamps: bool, tensors: bool },
    Rate(u32),
    Count(Option<u64>),
    LogFrequency(u32),
    Mode(TraceMode),
}

/// A model's own settings by name.
pub(crate) type Own = BTreeMap<&'static str, Change>;

/// Returns the server's settings with a model's own put over them.
pub(crate) fn merged(server: &Settings, own: &Own) -> Settings {
    let mut merged = server.clone();
    own.values().for_each(|change| merged.put(change));
    merged
}

/// Puts the changes of a request in force for the server.
pub(crate) fn put_all(server: &mut Settings, changes: &[(&'static str, Option<Change>)]) {
    changes.iter().filter_map(|(_, change)| change.as_ref()).for_each(|change| server.put(change));
}

/// Reads the settings of a request: by name, the new value, or none to go back to the default.
///
/// Errors: an unknown setting, one that cannot be set, a value that it cannot have.
pub(crate) fn read(
    settings: HashMap<String, Values>,
) -> Result<Vec<(&'static str, Option<Change>)>> {
    settings.into_iter().map(|(key, values)| read_one(&key, &values)).collect()
}

fn read_one(key: &str, values: &[String]) -> Result<(&'static str, Option<Change>)> {
    let known = ["trace_level", "trace_rate", "trace_count", "log_frequency", "trace_mode"];
    let Some(name) = known.into_iter().find(|name| *name == key) else {
        if key == "trace_file" {
            return Err(Error::new(
                ErrorKind::Unimplemented,
                "trace file location can not be updated through network protocol",
            ));
        }
        let shown: String = key.chars().take(100).collect();
        return Err(Error::invalid(format!("unknown trace setting '{shown}'")));
    };
    if values.is_empty() {
        return Ok((name, None));
    }
    if name == "trace_level" {
        return Ok((name, Some(level(values)?)));
    }
    let [value] = values else {
        return Err(Error::invalid(format!(
            "expect only 1 value for '{name}', got {} values",
            values.len()
        )));
    };
    let change = match name {
        "trace_rate" => Change::Rate(number(name, value, 1, u32::MAX.into())? as u32),
        "trace_count" if value == "-1" => Change::Count(None),
        "trace_count" => Change::Count(Some(number(name, value, -1, u64::MAX)?)),
        "log_frequency" => Change::LogFrequency(number(name, value, 0, u32::MAX.into())? as u32),
        _ => Change::Mode(match value.as_str() {
            "triton" => TraceMode::Triton,
            "opentelemetry" => TraceMode::Opentelemetry,
            _ => {
                let shown: String = value.chars().take(100).collect();
                return Err(Error::invalid(format!(
                    "Unable to parse '{name}', got: {shown}, expected triton or opentelemetry"
                )));
            }
        }),
    };
    Ok((name, Some(change)))
}

/// Reads a number; the errors are Triton's.
fn number(name: &str, value: &str, least: i64, most: u64) -> Result<u64> {
    let shown: String = value.chars().take(100).collect();
    let is_digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let is_negative = value.strip_prefix('-').is_some_and(is_digits);
    let why = match value.parse::<u64>() {
        Ok(number) if number <= most && i128::from(number) >= i128::from(least) => {
            return Ok(number);
        }
        Ok(number) if number <= most => format!("'{name}'. Expecting value >= {least}"),
        Err(_) if is_negative => format!("'{name}'. Expecting value >= {least}"),
        Err(_) if !is_digits(value) => format!("'{name}'"),
        _ => format!("'{name}', value is out of range [ {least}, {most} ]"),
    };
    Err(Error::invalid(format!("Unable to parse {why}, got: {shown}")))
}

/// Reads levels: OFF alone, or any of the others.
pub(crate) fn level(values: &[String]) -> Result<Change> {
    let (mut timestamps, mut tensors, mut is_off) = (false, false, false);
    for value in values {
        match value.as_str() {
            "OFF" => is_off = true,
            "TIMESTAMPS" => timestamps = true,
            "TENSORS" => tensors = true,
            other => {
                let shown: String = other.chars().take(100).collect();
                return Err(Error::invalid(format!(
                    "unknown trace level '{shown}', expected OFF, TIMESTAMPS or TENSORS"
                )));
            }
        }
    }
    match is_off && (timestamps || tensors) {
        true => Err(Error::invalid("Expect only one trace level 'OFF' is specified")),
        false => Ok(Change::Level { timestamps, tensors }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(key: &str, values: &[&str]) -> Result<Option<Change>> {
        let values: Values = values.iter().map(|value| (*value).to_owned()).collect();
        read_one(key, &values).map(|(_, change)| change)
    }

    #[test]
    fn settings_are_read_or_refused() {
        let both = Change::Level { timestamps: true, tensors: true };
        assert_eq!(one("trace_level", &["TIMESTAMPS", "TENSORS"]).unwrap(), Some(both));
        assert_eq!(one("trace_rate", &["5"]).unwrap(), Some(Change::Rate(5)));
        assert_eq!(one("trace_count", &["-1"]).unwrap(), Some(Change::Count(None)));
        assert_eq!(one("trace_rate", &[]).unwrap(), None);
        let table: [(&str, &[&str], ErrorKind); 8] = [
            ("trace_level", &["LOUD"], ErrorKind::InvalidRequest),
            ("trace_level", &["OFF", "TENSORS"], ErrorKind::InvalidRequest),
            ("trace_rate", &["0"], ErrorKind::InvalidRequest),
            ("trace_rate", &["1", "2"], ErrorKind::InvalidRequest),
            ("trace_count", &["-2"], ErrorKind::InvalidRequest),
            ("trace_mode", &["loud"], ErrorKind::InvalidRequest),
            ("trace_file", &["x"], ErrorKind::Unimplemented),
            ("trace_speed", &["1"], ErrorKind::InvalidRequest),
        ];
        for (key, values, kind) in table {
            assert_eq!(one(key, values).unwrap_err().kind(), kind, "{key} {values:?}");
        }
    }
}
