//! The models that are served, by name: the one truth behind readiness, metadata and inference.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use engine::{Engine, Error, ErrorKind, InferRequest, Result, WorkerLoad};
use openai_bridge::TextBridge;
use tensor::ModelConfig;

use crate::statistics::Statistics;

/// The version of every model: files carry none.
pub(crate) const VERSION: &str = "1";

/// A model that can be called.
pub(crate) struct Model {
    /// The name, shared with metric labels.
    pub name: Arc<str>,
    /// Its inputs and outputs.
    pub config: ModelConfig,
    /// What answers its requests.
    pub engine: Arc<dyn Engine<InferRequest>>,
    /// The bridge of a text model.
    pub text: Option<Arc<TextBridge>>,
    /// Reads the load of a text model's engine.
    pub load: Option<Box<dyn Fn() -> WorkerLoad + Send + Sync>>,
    /// Says whether a text model's engine still takes requests.
    pub health: Option<Box<dyn Fn() -> bool + Send + Sync>>,
    /// Its counters.
    pub statistics: Statistics,
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Model").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Model {
    /// Returns whether a request would be taken now.
    pub(crate) fn is_ready(&self) -> bool {
        self.health.as_ref().is_none_or(|is_healthy| is_healthy())
    }

    /// Returns whether one unary call can hold the whole answer. A text model's answer folds into
    /// one response; another decoupled model's does not.
    pub(crate) fn is_foldable(&self) -> bool {
        !self.config.decoupled || self.text.is_some()
    }
}

/// Where a model is in its life.
#[derive(Clone, Debug)]
pub(crate) enum State {
    /// Being read; not callable yet.
    Loading,
    /// Callable.
    Ready(Arc<Model>),
}

/// The models of this server.
#[derive(Debug, Default)]
pub(crate) struct Models {
    by_name: RwLock<BTreeMap<String, State>>,
}

impl Models {
    /// Announces a model that is being loaded.
    pub(crate) fn announce(&self, name: &str) {
        self.write().insert(name.to_owned(), State::Loading);
    }

    /// Makes a loaded model callable.
    pub(crate) fn insert(&self, model: Arc<Model>) {
        self.write().insert(model.name.to_string(), State::Ready(model));
    }

    /// Returns the callable model of this name and version; an empty version means the latest.
    ///
    /// Errors: not found, invalid version, or unavailable while it loads; Triton's texts.
    pub(crate) fn get(&self, name: &str, version: &str) -> Result<Arc<Model>> {
        let number = parse_version(version)?;
        let guard = self.by_name.read().unwrap_or_else(PoisonError::into_inner);
        let state = guard.get(name).ok_or_else(|| {
            Error::not_found(format!("Request for unknown model: '{name}' is not found"))
        })?;
        if let Some(number) = number.filter(|number| *number != 1) {
            let text = format!("Request for unknown model: '{name}' version {number} is not found");
            return Err(Error::not_found(text));
        }
        match state {
            State::Ready(model) => Ok(model.clone()),
            State::Loading => {
                let text = format!(
                    "Request for unknown model: '{name}' version {VERSION} is not at ready state"
                );
                Err(Error::new(ErrorKind::Unavailable, text))
            }
        }
    }

    /// Returns all models in the order of their names.
    pub(crate) fn list(&self) -> Vec<(String, State)> {
        let guard = self.by_name.read().unwrap_or_else(PoisonError::into_inner);
        guard.iter().map(|(name, state)| (name.clone(), state.clone())).collect()
    }

    /// Returns whether every model is callable.
    pub(crate) fn are_ready(&self) -> bool {
        let guard = self.by_name.read().unwrap_or_else(PoisonError::into_inner);
        guard.values().all(|state| matches!(state, State::Ready(model) if model.is_ready()))
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, BTreeMap<String, State>> {
        self.by_name.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads a version as Triton does, but refuses trailing letters (`1abc`), which Triton ignores.
fn parse_version(version: &str) -> Result<Option<u64>> {
    if version.is_empty() {
        return Ok(None);
    }
    let is_number = version.bytes().all(|byte| byte.is_ascii_digit());
    match version.parse() {
        Ok(number) if is_number => Ok(Some(number)),
        _ => Err(Error::invalid(format!(
            "failed to get model version from specified version string '{version}' \
             (details: invalid model version specified), version should be an integral value > 0"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_empty_or_a_plain_number() {
        let table = [
            ("", Some(None)),
            ("1", Some(Some(1))),
            ("0", Some(Some(0))),
            ("-1", None),
            ("+1", None),
            ("abc", None),
            ("1abc", None),
            ("99999999999999999999", None),
        ];
        for (text, expected) in table {
            assert_eq!(parse_version(text).ok(), expected, "{text}");
        }
    }

    #[test]
    fn a_model_that_loads_is_known_and_not_ready() {
        let models = Models::default();
        assert!(models.are_ready(), "a server without models is ready");
        models.announce("m");
        assert!(!models.are_ready());
        let kind = |name, version| models.get(name, version).unwrap_err().kind();
        assert_eq!(kind("m", ""), ErrorKind::Unavailable);
        assert_eq!(kind("m", "7"), ErrorKind::NotFound);
        assert_eq!(kind("n", ""), ErrorKind::NotFound);
        assert_eq!(kind("m", "x"), ErrorKind::InvalidRequest);
    }
}
