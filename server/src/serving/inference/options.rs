//! The request parameters that the protocol reserves, taken out of a request's own.

use engine::{Error, Result, Sequence, SequenceId, SequenceState};
use tensor::{Parameter, Parameters};

/// The request parameters that the protocol reserves.
#[derive(Clone, Debug, Default)]
pub(super) struct Options {
    /// 0 is the default; else lower is more urgent.
    pub priority: u64,
    /// The client wants an empty last response of a decoupled model.
    pub wants_empty_final: bool,
    /// The request's place in a sequence.
    pub sequence: Option<Sequence>,
}

impl Options {
    /// Takes the reserved parameters out of a request's.
    pub(super) fn take(parameters: &mut Parameters) -> Result<Self> {
        let mut options = Self::default();
        if let Some(value) = parameters.remove("triton_enable_empty_final_response") {
            options.wants_empty_final = boolean("triton_enable_empty_final_response", &value)?;
        }
        if let Some(value) = parameters.remove("priority") {
            options.priority = unsigned("priority", &value, "int64_param or uint64_param")?;
        }
        // The queue timeout binds only models with a queue policy that allows it, and no model
        // has one: it is checked, then dropped.
        if let Some(value) = parameters.remove("timeout") {
            unsigned("timeout", &value, "int64_param")?;
        }
        options.sequence = sequence(parameters)?;
        match parameters.keys().find(|key| key.starts_with("triton_")) {
            None => Ok(options),
            Some(key) => Err(Error::invalid(format!(
                "parameter keys starting with 'triton_' are reserved for Triton usage. Only the \
                 following keys starting with 'triton_' are allowed: \
                 triton_enable_empty_final_response; got '{key}'"
            ))),
        }
    }
}

/// Takes the parameters of a sequence; id 0 and the empty id are none.
fn sequence(parameters: &mut Parameters) -> Result<Option<Sequence>> {
    let mut flag = |key| parameters.remove(key).map_or(Ok(false), |value| boolean(key, &value));
    let (start, end) = (flag("sequence_start")?, flag("sequence_end")?);
    let id = match parameters.remove("sequence_id") {
        None => return Ok(None),
        Some(Parameter::String(text)) if text.is_empty() => return Ok(None),
        Some(Parameter::String(text)) => SequenceId::Text(text),
        Some(value) => match unsigned("sequence_id", &value, "int64_param or string_param")? {
            0 => return Ok(None),
            number => SequenceId::Number(number),
        },
    };
    Ok(Some(Sequence { id, start, end, state: SequenceState::default() }))
}

fn boolean(key: &str, value: &Parameter) -> Result<bool> {
    match value {
        Parameter::Bool(value) => Ok(*value),
        _ => Err(Error::invalid(format!(
            "invalid value type for '{key}' parameter, expected bool_param."
        ))),
    }
}

fn unsigned(key: &str, value: &Parameter, expected: &str) -> Result<u64> {
    match value {
        Parameter::Uint64(value) => Ok(*value),
        Parameter::Int64(value) => u64::try_from(*value).map_err(|_| {
            Error::invalid(format!("invalid value for '{key}', expected value >= 0."))
        }),
        _ => Err(Error::invalid(format!(
            "invalid value type for '{key}' parameter, expected {expected}."
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_parameters_are_taken_and_checked() {
        let mut parameters = Parameters::from([
            ("priority".to_owned(), Parameter::Uint64(3)),
            ("timeout".to_owned(), Parameter::Int64(1000)),
            ("sequence_id".to_owned(), Parameter::String("s".into())),
            ("triton_enable_empty_final_response".to_owned(), Parameter::Bool(true)),
            ("mine".to_owned(), Parameter::Double(0.5)),
        ]);
        let options = Options::take(&mut parameters).unwrap();
        assert_eq!((options.priority, options.wants_empty_final), (3, true));
        assert_eq!(options.sequence.unwrap().id, SequenceId::Text("s".into()));
        assert_eq!(parameters.keys().collect::<Vec<_>>(), ["mine"]);

        let table = [
            ("priority", Parameter::String("high".into()), "invalid value type for 'priority'"),
            ("timeout", Parameter::Int64(-1), "invalid value for 'timeout', expected value >= 0"),
            ("sequence_start", Parameter::Int64(1), "invalid value type for 'sequence_start'"),
            ("triton_mine", Parameter::Bool(true), "starting with 'triton_' are reserved"),
        ];
        for (key, value, expected) in table {
            let mut parameters = Parameters::from([(key.to_owned(), value)]);
            let error = Options::take(&mut parameters).unwrap_err();
            assert!(error.message().contains(expected), "{key}: {error}");
        }
    }
}
