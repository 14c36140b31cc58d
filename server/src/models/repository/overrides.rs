//! What a load request says beside the name: its parameters, read and checked.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use engine::{Error, Result};
use proto::inference::ModelRepositoryParameter;
use proto::inference::model_repository_parameter::ParameterChoice;

use super::Definition;

/// The beginning of the parameters that hold files.
const FILE: &str = "file:";

/// What replaces the declared model.
#[derive(Clone, Debug, Default)]
pub(crate) struct Overrides {
    /// The configuration as JSON, in the place of the declared one.
    pub config: Option<String>,
    /// Files by path, in the place of the model's folder.
    pub files: BTreeMap<String, Bytes>,
    /// A whole definition, in the place of a declared one.
    pub definition: Option<Box<Definition>>,
}

impl Overrides {
    /// Reads the parameters of a load request.
    ///
    /// Errors: an unknown parameter, a value of another type.
    pub(crate) fn read(
        model: &str,
        parameters: HashMap<String, ModelRepositoryParameter>,
    ) -> Result<Self> {
        let mut overrides = Self::default();
        for (key, parameter) in parameters {
            let mistyped = |expected: &str| {
                Error::invalid(format!(
                    "invalid value type for load parameter '{}', expected {expected}.",
                    shown(&key)
                ))
            };
            match (key.strip_prefix(FILE), parameter.parameter_choice) {
                (Some(path), Some(ParameterChoice::BytesParam(content))) => {
                    overrides.files.insert(path.to_owned(), content);
                }
                (Some(_), _) => return Err(mistyped("bytes_param")),
                (None, Some(ParameterChoice::StringParam(json))) if key == "config" => {
                    overrides.config = Some(json);
                }
                (None, _) if key == "config" => return Err(mistyped("string_param")),
                (None, _) => {
                    return Err(Error::invalid(format!(
                        "unrecognized load parameter '{}' for model '{model}'; \
                         there are 'config' and 'file:<path>'",
                        shown(&key)
                    )));
                }
            }
        }
        Ok(overrides)
    }
}

/// Checks the parameters of an unload request. `unload_dependents` has nothing to add: no model
/// depends on another.
///
/// Errors: an unknown parameter, a value of another type.
pub(crate) fn check_unload(parameters: &HashMap<String, ModelRepositoryParameter>) -> Result<()> {
    for (key, parameter) in parameters {
        match (key.as_str(), &parameter.parameter_choice) {
            ("unload_dependents", Some(ParameterChoice::BoolParam(_))) => {}
            ("unload_dependents", _) => {
                return Err(Error::invalid(
                    "invalid value type for 'unload_dependents' parameter, expected bool_param.",
                ));
            }
            _ => {
                return Err(Error::invalid(format!(
                    "unrecognized unload parameter '{}'; there is 'unload_dependents'",
                    shown(key)
                )));
            }
        }
    }
    Ok(())
}

fn shown(key: &str) -> String {
    key.chars().take(100).collect()
}
