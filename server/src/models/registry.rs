//! The models that are served, by name and version: the one truth behind readiness, metadata and
//! inference.
//!
//! A model that is replaced or unloaded serves the requests that hold it to their end.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};
use std::time::{Duration, Instant};

use engine::{
    AdapterId, EmbedRequest, EmbedTextRequest, Engine, Error, ErrorKind, GenerateRequest,
    InferRequest, KvEvents, KvStore, Result, TextRequest, WorkerLoad,
};
use openai_bridge::Completion;
use proto::inference as wire;
use tensor::ModelConfig;
use tokio::sync::watch;
use worker::lora::Adapters;

use self::entry::Entry;
use crate::models::definition::Definition;
use crate::models::tables::Tables;
use crate::models::text::TextEngine;
use crate::pipeline::Thresholds;
use crate::support::metrics::Totals;
use crate::support::statistics::Statistics;

mod base;
mod entry;

pub(crate) use base::{AdapterSupport, Base};

/// Reads how busy an engine is; asked often.
pub(crate) type ReadLoad = Arc<dyn Fn() -> WorkerLoad + Send + Sync>;

/// Reads whether an engine takes requests; asked often.
pub(crate) type ReadHealth = Arc<dyn Fn() -> bool + Send + Sync>;

/// The reason that the index shows for a model that was unloaded.
const UNLOADED: &str = "unloaded";

/// A version of a model that can be called.
pub(crate) struct Model {
    /// The name, shared with metric labels.
    pub name: Arc<str>,
    /// The version, as clients write it.
    pub version: Arc<str>,
    /// Its inputs and outputs.
    pub config: ModelConfig,
    /// The configuration in force, as ModelConfig tells it.
    pub declared: wire::ModelConfig,
    /// The labels of the outputs that have a label file.
    pub labels: HashMap<String, Vec<String>>,
    /// What answers its requests.
    pub engine: Arc<dyn Engine<InferRequest>>,
    /// What a text model answers besides tensors.
    pub text: Option<TextModel>,
    /// What adapters are put on.
    pub base: Option<Arc<Base>>,
    /// The base of an adapter.
    pub parent: Option<Arc<str>>,
    /// The number of an adapter.
    pub adapter: Option<AdapterId>,
    /// What an adapter was made of.
    pub origin: Option<Origin>,
    /// Reads the load of a text model's engine.
    pub load: Option<ReadLoad>,
    /// What its scheduler has done, for which a base and its adapters count together; only of text
    /// models.
    pub totals: Option<Arc<Totals>>,
    /// Says whether a text model's engine still takes requests.
    pub health: Option<ReadHealth>,
    /// Its counters.
    pub statistics: Statistics,
    /// Its engines without what stands around them, for workers to hand out.
    pub core: Option<Core>,
    /// Files that live as long as the model, such as those sent with a load request.
    pub files: Option<Arc<tempfile::TempDir>>,
}

/// The engines of a model as a frontend calls them from afar: tokens, tensors or texts in and out,
/// no sequences, no counting.
#[derive(Default)]
pub(crate) struct Core {
    pub generate: Option<Arc<dyn Engine<GenerateRequest>>>,
    pub embed: Option<Arc<dyn Engine<EmbedRequest>>>,
    pub infer: Option<Arc<dyn Engine<InferRequest>>>,
    /// Only of models whose engines have the template and the tokenizer.
    pub text: Option<Arc<dyn Engine<TextRequest>>>,
    pub embed_text: Option<Arc<dyn Engine<EmbedTextRequest>>>,
    /// What becomes of its KV blocks.
    pub events: Option<KvEvents>,
    /// Gives copies of them.
    pub blocks: Option<Arc<dyn KvStore>>,
    /// What a frontend needs to know of a text model.
    pub tables: Option<Arc<Tables>>,
}

/// The faces of a text model that speak no tensors.
#[derive(Clone)]
pub(crate) struct TextModel {
    /// Answers completions.
    pub engine: Arc<dyn Engine<Completion>>,
    /// Embeds, ranks and counts texts.
    pub texts: Arc<TextEngine>,
    /// When it counts as busy.
    pub thresholds: Arc<Thresholds>,
}

/// What an adapter was made of.
pub(crate) struct Origin {
    /// What was asked for.
    pub definition: Definition,
    /// Where it is loaded: its base's adapters, which it does not keep.
    pub adapters: Weak<Adapters>,
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

/// Where a version of a model is in its life.
#[derive(Clone, Debug)]
pub(crate) enum State {
    /// Being read; not callable yet.
    Loading,
    /// Callable.
    Ready(Arc<Model>),
    /// Taken away; requests that hold it run to their end.
    Unloading(Weak<Model>),
    /// Not callable, for this reason.
    Unavailable(String),
}

impl State {
    /// Returns the state as RepositoryIndex spells it, with its reason.
    pub(crate) fn spell(&self) -> (&'static str, &str) {
        match self {
            Self::Loading => ("LOADING", ""),
            Self::Ready(model) if model.is_ready() => ("READY", ""),
            Self::Ready(_) => ("UNAVAILABLE", "its engine failed"),
            Self::Unloading(model) if model.strong_count() > 0 => ("UNLOADING", ""),
            Self::Unloading(_) => ("UNAVAILABLE", UNLOADED),
            Self::Unavailable(reason) => ("UNAVAILABLE", reason),
        }
    }
}

/// Most names whose workers left that are remembered.
const MAX_LEFT: usize = 1000;

/// The models of this server.
#[derive(Debug)]
pub(crate) struct Models {
    by_name: RwLock<BTreeMap<String, Entry>>,
    changes: watch::Sender<()>,
    readiness: Readiness,
    /// Names whose workers left, and until when they may be expected to come again.
    left: RwLock<BTreeMap<String, Instant>>,
}

/// When a server as a whole is ready.
#[derive(Clone, Copy, Debug)]
enum Readiness {
    /// When no model loads and all that are loaded take requests.
    All,
    /// When some model takes requests: others have workers of their own that may be away.
    Any,
}

impl Default for Models {
    fn default() -> Self {
        Self {
            by_name: RwLock::default(),
            changes: watch::Sender::new(()),
            readiness: Readiness::All,
            left: RwLock::default(),
        }
    }
}

impl Models {
    /// Makes the models of a fleet: none, until workers come.
    pub(crate) fn of_fleet() -> Self {
        Self { readiness: Readiness::Any, ..Self::default() }
    }

    /// Says which versions of a name are being loaded. Those that are callable stay so until they
    /// are replaced.
    pub(crate) fn announce(&self, name: &str, loading: &[u64]) {
        let mut guard = self.write();
        let versions = &mut guard.entry(name.to_owned()).or_default().versions;
        versions.retain(|_, state| !matches!(state, State::Loading));
        for version in loading {
            if !matches!(versions.get(version), Some(State::Ready(_))) {
                versions.insert(*version, State::Loading);
            }
        }
        drop(guard);
        self.changes.send_replace(());
    }

    /// Says that one more version of a name is being loaded.
    pub(crate) fn announce_version(&self, name: &str, version: u64) {
        let mut guard = self.write();
        let versions = &mut guard.entry(name.to_owned()).or_default().versions;
        if !matches!(versions.get(&version), Some(State::Ready(_))) {
            versions.insert(version, State::Loading);
        }
        drop(guard);
        self.changes.send_replace(());
    }

    /// Makes these the versions of a name, in one step. A version without a model keeps its state,
    /// and a new one is being loaded. Callable versions stay until one of these has a model.
    pub(crate) fn serve(&self, name: &str, versions: BTreeMap<u64, Option<Arc<Model>>>) {
        let mut guard = self.write();
        let Some(gone) = guard.entry(name.to_owned()).or_default().serve(versions) else { return };
        drop(guard);
        self.changes.send_replace(());
        tokio::task::spawn_blocking(move || drop(gone));
    }

    /// Makes these the callable versions of a name; others of the name are unloaded.
    pub(crate) fn replace(&self, name: &str, models: Vec<(u64, Arc<Model>)>) {
        let mut replaced = Vec::new();
        let mut guard = self.write();
        let entry = guard.entry(name.to_owned()).or_default();
        let old = std::mem::take(&mut entry.versions);
        for (version, state) in old {
            let left = match state {
                State::Ready(model) => {
                    let left = State::Unloading(Arc::downgrade(&model));
                    replaced.push(model);
                    left
                }
                State::Loading => continue,
                // A failed load may have guessed the version.
                State::Unavailable(_) if !models.is_empty() => continue,
                state => state,
            };
            entry.versions.insert(version, left);
        }
        entry.versions.extend(models.into_iter().map(|(v, model)| (v, State::Ready(model))));
        replaced.extend(entry.latest.take());
        entry.settle();
        drop(guard);
        self.changes.send_replace(());
        // A model may be large, and takes its files along.
        tokio::task::spawn_blocking(move || drop(replaced));
    }

    /// Says that a name could not be loaded; versions that are callable stay so.
    pub(crate) fn fail(&self, name: &str, reason: &str) {
        let mut guard = self.write();
        let versions = &mut guard.entry(name.to_owned()).or_default().versions;
        if versions.is_empty() {
            versions.insert(1, State::Loading);
        }
        for state in versions.values_mut().filter(|state| matches!(state, State::Loading)) {
            *state = State::Unavailable(reason.to_owned());
        }
        drop(guard);
        self.changes.send_replace(());
    }

    /// Says that one version of a name could not be loaded; if it is callable, it stays so.
    pub(crate) fn fail_version(&self, name: &str, version: u64, reason: &str) {
        let mut guard = self.write();
        let state = guard.get_mut(name).and_then(|entry| entry.versions.get_mut(&version));
        if let Some(state) = state.filter(|state| !matches!(state, State::Ready(_))) {
            *state = State::Unavailable(reason.to_owned());
        }
        drop(guard);
        self.changes.send_replace(());
    }

    /// Forgets what a failed load announced of a name that nothing serves, so that a client's
    /// failed loads leave nothing behind.
    pub(crate) fn retract(&self, name: &str) {
        let mut guard = self.write();
        if let Some(entry) = guard.get_mut(name) {
            entry.versions.retain(|_, state| !matches!(state, State::Loading));
            if entry.versions.is_empty() {
                guard.remove(name);
            }
        }
        drop(guard);
        self.changes.send_replace(());
    }

    /// Takes every version of a name away.
    pub(crate) fn unload(&self, name: &str) {
        self.replace(name, Vec::new());
    }

    /// Takes a name away and forgets that it was there.
    pub(crate) fn forget(&self, name: &str) {
        let forgotten = self.write().remove(name);
        self.changes.send_replace(());
        tokio::task::spawn_blocking(move || drop(forgotten));
    }

    /// Forgets a name whose last worker left, and expects another one for some time.
    pub(crate) fn leave(&self, name: &str, grace: Duration) {
        let (now, mut left) = (Instant::now(), self.left.write());
        if let Ok(left) = &mut left {
            left.retain(|_, until| *until > now);
            if left.len() < MAX_LEFT && !grace.is_zero() {
                left.insert(name.to_owned(), now + grace);
            }
        }
        drop(left);
        self.forget(name);
    }

    /// Returns whether the last worker of a name left so lately that another is expected.
    pub(crate) fn is_expected(&self, name: &str) -> bool {
        let left = self.left.read();
        left.is_ok_and(|left| left.get(name).is_some_and(|until| *until > Instant::now()))
    }

    /// Says that what makes models ready may have changed.
    pub(crate) fn touch(&self) {
        self.changes.send_replace(());
    }

    /// Returns the callable model of this name and version; an empty version means the latest.
    ///
    /// Errors: not found, invalid version, or unavailable while it loads; Triton's texts.
    pub(crate) fn get(&self, name: &str, version: &str) -> Result<Arc<Model>> {
        let number = parse_version(version)?;
        let guard = self.read();
        let unknown = |why: String| format!("Request for unknown model: '{name}' {why}");
        let entry = guard.get(name).ok_or_else(|| Error::not_found(unknown("is not found".into())));
        let entry = entry?;
        let loading = |number: u64| {
            let text = unknown(format!("version {number} is not at ready state"));
            Err(Error::new(ErrorKind::Unavailable, text))
        };
        let Some(number) = number else {
            let is_loading = |(number, state): (&u64, &State)| {
                matches!(state, State::Loading).then_some(*number)
            };
            return match (&entry.latest, entry.versions.iter().find_map(is_loading)) {
                (Some(model), _) => Ok(model.clone()),
                (None, Some(number)) => loading(number),
                (None, None) => Err(Error::not_found(unknown("has no available versions".into()))),
            };
        };
        match entry.versions.get(&number) {
            Some(State::Ready(model)) => Ok(model.clone()),
            Some(_) => loading(number),
            None => Err(Error::not_found(unknown(format!("version {number} is not found")))),
        }
    }

    /// Returns whether this model can be called by this name.
    pub(crate) fn has(&self, name: &str, model: &Arc<Model>) -> bool {
        let is_it =
            |state: &State| matches!(state, State::Ready(ready) if Arc::ptr_eq(ready, model));
        self.read().get(name).is_some_and(|entry| entry.versions.values().any(is_it))
    }

    /// Returns the callable versions of a name: the one given, or all.
    ///
    /// Errors: as [`get`](Self::get).
    pub(crate) fn matching(&self, name: &str, version: &str) -> Result<Vec<Arc<Model>>> {
        let one = self.get(name, version)?;
        if !version.is_empty() {
            return Ok(vec![one]);
        }
        Ok(self.ready().into_iter().filter(|model| *model.name == *name).collect())
    }

    /// Returns all versions in the order of their names and numbers.
    pub(crate) fn list(&self) -> Vec<(String, u64, State)> {
        let all = |(name, entry): (&String, &Entry)| {
            let versions = entry.versions.iter();
            let named = versions.map(|(number, state)| (name.clone(), *number, state.clone()));
            named.collect::<Vec<_>>()
        };
        self.read().iter().flat_map(all).collect()
    }

    /// Returns every callable model.
    pub(crate) fn ready(&self) -> Vec<Arc<Model>> {
        let ready = |(_, _, state)| match state {
            State::Ready(model) => Some(model),
            _ => None,
        };
        self.list().into_iter().filter_map(ready).collect()
    }

    /// Returns whether the server is ready: no model is loading and every engine takes requests,
    /// or in a frontend of a fleet, some model has workers.
    pub(crate) fn are_ready(&self) -> bool {
        if matches!(self.readiness, Readiness::Any) {
            return self.ready().iter().any(|model| model.is_ready());
        }
        let is_fine = |state: &State| match state {
            State::Loading => false,
            State::Ready(model) => model.is_ready(),
            State::Unloading(_) | State::Unavailable(_) => true,
        };
        self.read().values().all(|entry| entry.versions.values().all(is_fine))
    }

    /// Returns whether there are models, and each takes requests or cannot be served.
    pub(crate) fn are_settled(&self) -> bool {
        let is_settled = |state: &State| match state {
            State::Loading => false,
            State::Ready(model) => model.is_ready(),
            State::Unloading(_) | State::Unavailable(_) => true,
        };
        let models = self.read();
        !models.is_empty() && models.values().all(|entry| entry.versions.values().all(is_settled))
    }

    /// Returns whether models come and go with workers.
    pub(crate) fn are_of_fleet(&self) -> bool {
        matches!(self.readiness, Readiness::Any)
    }

    /// Returns a receiver that is told of every change.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<String, Entry>> {
        self.by_name.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<String, Entry>> {
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
mod tests;
