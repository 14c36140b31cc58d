//! The models that can be served: from the command line and from model repositories, loaded at
//! the start, by polling or on request.
//!
//! A load makes the new model beside the old one and then swaps them; what runs on the old one
//! finishes there.

mod config;
mod overrides;
mod poll;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use engine::{Error, ErrorKind, Result, Tasks};
use tempfile::TempDir;
use tokio::sync::{Mutex as LoadMutex, oneshot};

use crate::args::ControlMode;
use crate::models::definition::{Definition, Fingerprint};
use crate::models::loader::Backends;
use crate::models::registry::{Model, Models, State};
use crate::models::source::AdapterSource;

pub use config::{ModelsConfig, RepositoryConfig};
pub(crate) use overrides::{Overrides, check_unload};

/// The longest name of a model that a client may load.
const MAX_NAME_BYTES: usize = 255;

/// What the model folders looked like, by name.
pub(crate) type Seen = BTreeMap<String, Fingerprint>;

/// A line of RepositoryIndex.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    pub name: String,
    pub version: String,
    pub state: &'static str,
    pub reason: String,
}

/// The models that can be served, and the way to serve them.
#[derive(Debug)]
pub(crate) struct Repository {
    config: RepositoryConfig,
    /// The models of the command line.
    given: BTreeMap<String, Definition>,
    models: Arc<Models>,
    /// None: the models are computed elsewhere.
    backends: Option<Backends>,
    /// The loads under way.
    tasks: Tasks,
    /// One load of a name at a time.
    loading: Mutex<HashMap<String, Arc<LoadMutex<()>>>>,
    /// The folders of files that were sent with load requests.
    sent: Mutex<Vec<Weak<TempDir>>>,
}

impl Repository {
    /// Makes the repository; `given` are the models of the command line.
    ///
    /// Errors: a name that two models have.
    pub(crate) fn new(
        config: RepositoryConfig,
        given: Vec<Definition>,
        models: Arc<Models>,
        backends: Option<Backends>,
        tasks: Tasks,
    ) -> std::result::Result<Self, String> {
        let mut by_name = BTreeMap::new();
        for definition in given {
            let name = definition.name.clone();
            if by_name.insert(name.clone(), definition).is_some() {
                return Err(format!("two models are called `{name}`"));
            }
        }
        let (loading, sent) = (Mutex::default(), Mutex::default());
        Ok(Self { config, given: by_name, models, backends, tasks, loading, sent })
    }

    /// Returns the names to load at the start, those of the command line first.
    ///
    /// Errors: a repository that cannot be read, a name in two places.
    pub(crate) fn initial(&self) -> std::result::Result<Vec<String>, String> {
        let mut names: Vec<String> = self.given.keys().cloned().collect();
        let folders = self.scan()?;
        if let Some(both) = names.iter().find(|name| folders.contains_key(*name)) {
            return Err(format!("model `{both}` is given on the command line and in a repository"));
        }
        let wanted = &self.config.load_models;
        let is_explicit = self.config.mode == ControlMode::Explicit;
        if is_explicit && !wanted.iter().any(|name| name == "*") {
            names.extend(wanted.iter().cloned());
        } else {
            names.extend(folders.keys().cloned());
        }
        // Their bases come first.
        names.sort_by_cached_key(|name| self.is_adapter(name, &folders));
        Ok(names)
    }

    fn is_adapter(&self, name: &str, folders: &BTreeMap<String, PathBuf>) -> bool {
        match (self.given.get(name), folders.get(name)) {
            (Some(given), _) => given.is_adapter(),
            (None, Some(folder)) => {
                Definition::read(name, folder, None).is_ok_and(|read| read.is_adapter())
            }
            (None, None) => false,
        }
    }

    /// Returns the model folders by name.
    fn scan(&self) -> std::result::Result<BTreeMap<String, PathBuf>, String> {
        let mut found = BTreeMap::new();
        for root in &self.config.roots {
            let entries = std::fs::read_dir(root)
                .map_err(|error| format!("model repository `{}`: {error}", root.display()))?;
            for entry in entries {
                let entry = entry
                    .map_err(|error| format!("model repository `{}`: {error}", root.display()))?;
                let Ok(name) = entry.file_name().into_string() else { continue };
                if name.starts_with('.') || !is_folder(&entry.path())? {
                    continue;
                }
                if let Some(other) = found.insert(name.clone(), entry.path()) {
                    return Err(format!(
                        "model `{name}` is in two repositories: `{}` and `{}`",
                        other.display(),
                        entry.path().display()
                    ));
                }
            }
        }
        Ok(found)
    }

    /// Loads a model of the start. One that fails stays in the index with its reason, also if no
    /// repository has it: the operator asked for it.
    ///
    /// Errors: what is wrong with the model.
    pub(crate) async fn load_initial(
        self: &Arc<Self>,
        name: &str,
    ) -> std::result::Result<(), String> {
        let loaded = self.load_declared(name).await;
        loaded.inspect_err(|why| self.models.fail(name, why))
    }

    /// Loads a model as it was declared, with no leave asked; for the start and for polling.
    ///
    /// Errors: what is wrong with the model.
    pub(crate) async fn load_declared(
        self: &Arc<Self>,
        name: &str,
    ) -> std::result::Result<(), String> {
        self.load_with(name, Overrides::default()).await
    }

    /// Loads a model, or loads it anew, for a client.
    ///
    /// Errors: Triton's, when models are not the clients' to load or the load fails.
    pub(crate) async fn load(self: &Arc<Self>, name: &str, overrides: Overrides) -> Result<()> {
        self.allow(name)?;
        if !overrides.files.is_empty() && overrides.config.is_none() {
            return Err(Error::internal(format!(
                "failed to load '{name}', the override of files needs the parameter 'config'"
            )));
        }
        self.load_with(name, overrides).await.map_err(|why| {
            tracing::warn!(model = name, why, "a model could not be loaded");
            Error::internal(format!("failed to load '{name}', {why}"))
        })?;
        self.renew_adapters(name).await;
        Ok(())
    }

    /// Puts the adapters that stand on what a base was before on what it is now. One that does not
    /// fit stays where it is.
    async fn renew_adapters(self: &Arc<Self>, base: &str) {
        let stands = |model: &Arc<Model>| model.parent.as_deref() == Some(base);
        let mut adapters = BTreeMap::new();
        for model in self.models.ready().iter().filter(|model| stands(model)) {
            if let Some(origin) = &model.origin {
                adapters.insert(model.name.clone(), origin.definition.clone());
            }
        }
        for (name, definition) in adapters {
            // It may have been unloaded in the meantime.
            if !self.models.get(&name, "").is_ok_and(|model| stands(&model)) {
                continue;
            }
            let definition = Some(Box::new(definition));
            let overrides = Overrides { definition, ..Overrides::default() };
            if let Err(why) = self.load_with(&name, overrides).await {
                let name = &*name;
                tracing::warn!(model = name, base, why, "an adapter stays on its old base");
            }
        }
    }

    /// Loads an adapter from a folder for a client; `replaces` says whether one of its name may be
    /// there.
    ///
    /// Errors: models are not the clients' to load; a name that is taken; what is wrong with it.
    pub(crate) async fn load_adapter(
        self: &Arc<Self>,
        adapter: &AdapterSource,
        replaces: bool,
    ) -> Result<()> {
        let name = &adapter.name;
        self.allow(name)?;
        let is_adapter = |model: &Arc<Model>| model.parent.is_some();
        match self.models.get(name, "") {
            Ok(model) if !is_adapter(&model) => {
                let text = format!("a model that is no adapter is called `{name}`");
                return Err(Error::new(ErrorKind::AlreadyExists, text).with_param("lora_name"));
            }
            Ok(_) if !replaces => {
                let text = format!("the adapter `{name}` is loaded already");
                return Err(Error::new(ErrorKind::AlreadyExists, text).with_param("lora_name"));
            }
            _ => {}
        }
        let definition = Some(Box::new(Definition::of_adapter(adapter)));
        let overrides = Overrides { definition, ..Overrides::default() };
        self.load_with(name, overrides).await.map_err(|why| {
            tracing::warn!(model = name, why, "an adapter could not be loaded");
            Error::invalid(format!("the adapter `{name}` cannot be loaded: {why}"))
        })
    }

    /// Unloads an adapter for a client.
    ///
    /// Errors: models are not the clients' to unload; no adapter has the name.
    pub(crate) async fn unload_adapter(&self, name: &str) -> Result<()> {
        self.allow(name)?;
        match self.models.get(name, "") {
            Ok(model) if model.parent.is_some() => self.unload(name).await,
            _ => {
                Err(Error::not_found(format!("no adapter is called `{name}`"))
                    .with_param("lora_name"))
            }
        }
    }

    /// Unloads a model for a client; one that is not loaded is fine. It may go on answering what
    /// it has accepted after this returns.
    pub(crate) async fn unload(&self, name: &str) -> Result<()> {
        self.allow(name)?;
        let lock = self.lock(name);
        let _turn = lock.lock().await;
        let is_loaded = |(known, _, state): &(String, u64, State)| {
            known == name && matches!(state, State::Ready(_))
        };
        if self.models.list().iter().any(is_loaded) {
            self.models.unload(name);
            tracing::info!(model = name, "model unloaded");
        }
        Ok(())
    }

    /// Refuses control that is not the clients', and names that are none.
    fn allow(&self, name: &str) -> Result<()> {
        if self.config.mode != ControlMode::Explicit {
            return Err(Error::new(
                ErrorKind::Unavailable,
                "explicit model load / unload is not allowed; \
                 the server needs --model-control-mode explicit",
            ));
        }
        // Triton's sentences.
        if name.trim().is_empty() {
            return Err(Error::invalid("Model name cannot be empty"));
        }
        if name.contains(['/', '\\']) || name == "." || name == ".." {
            let text = format!("Model name '{name}' must not contain path traversal characters");
            return Err(Error::invalid(text));
        }
        match name.len() > MAX_NAME_BYTES || name.chars().any(char::is_control) {
            true => Err(Error::invalid(format!(
                "Model name must not contain control characters or have more than \
                 {MAX_NAME_BYTES} bytes"
            ))),
            false => Ok(()),
        }
    }

    /// Loads on a task of its own: a client that leaves leaves no load half done.
    async fn load_with(
        self: &Arc<Self>,
        name: &str,
        overrides: Overrides,
    ) -> std::result::Result<(), String> {
        let (done, is_done) = oneshot::channel();
        let (repository, name) = (self.clone(), name.to_owned());
        self.tasks.spawn("load", async move {
            let _ = done.send(repository.load_now(name, overrides).await);
        });
        is_done.await.unwrap_or_else(|_| Err("the server is shutting down".into()))
    }

    async fn load_now(
        self: Arc<Self>,
        name: String,
        overrides: Overrides,
    ) -> std::result::Result<(), String> {
        let lock = self.lock(&name);
        let _turn = lock.lock().await;
        let (repository, named) = (self.clone(), name.clone());
        let make = move || {
            repository.make(&named, overrides).map_err(|why| (why, repository.is_known(&named)))
        };
        let made = tokio::task::spawn_blocking(make).await;
        match made.unwrap_or_else(|error| Err((format!("the loader failed: {error}"), true))) {
            Ok(models) => {
                let versions: Vec<u64> = models.iter().map(|(version, _)| *version).collect();
                self.models.replace(&name, models);
                tracing::info!(model = name, ?versions, "model ready");
                Ok(())
            }
            Err((why, is_known)) => {
                match is_known {
                    true => self.models.fail(&name, &why),
                    false => self.models.retract(&name),
                }
                Err(why)
            }
        }
    }

    /// Returns whether the command line or a repository has a model of this name; reads folders.
    fn is_known(&self, name: &str) -> bool {
        self.given.contains_key(name) || self.scan().is_ok_and(|found| found.contains_key(name))
    }

    /// Makes the models of a name; blocks.
    fn make(
        &self,
        name: &str,
        overrides: Overrides,
    ) -> std::result::Result<Vec<(u64, Arc<Model>)>, String> {
        let backends = self.backends.as_ref().ok_or("models are loaded by workers, not here")?;
        let definition = self.define(name, overrides)?;
        self.models.announce(name, &definition.versions);
        let make = |&version: &u64| {
            backends.make(&definition, version).map(|model| (version, Arc::new(model)))
        };
        definition.versions.iter().map(make).collect()
    }

    /// Removes the files that were sent with load requests: models that are still in use when the
    /// process ends are not dropped.
    pub(crate) fn remove_sent(&self) {
        let sent = std::mem::take(&mut *self.sent.lock().unwrap_or_else(PoisonError::into_inner));
        for folder in sent.iter().filter_map(Weak::upgrade) {
            if let Err(error) = std::fs::remove_dir_all(folder.path()) {
                tracing::warn!(%error, folder = %folder.path().display(), "cannot be removed");
            }
        }
    }

    fn define(&self, name: &str, overrides: Overrides) -> std::result::Result<Definition, String> {
        let Overrides { config, files, definition } = overrides;
        if let Some(definition) = definition {
            return Ok(*definition);
        }
        if let (Some(config), false) = (&config, files.is_empty()) {
            let definition = Definition::of_files(name, config, &files)?;
            let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
            sent.retain(|folder| folder.strong_count() > 0);
            sent.extend(definition.files.as_ref().map(Arc::downgrade));
            return Ok(definition);
        }
        if let Some(given) = self.given.get(name) {
            return match config {
                Some(json) => given.clone().with_config(&json),
                None => Ok(given.clone()),
            };
        }
        let folders = self.scan()?;
        let folder = folders
            .get(name)
            .ok_or("failed to poll from model repository: it has no such model")?;
        Definition::read(name, folder, config.as_deref())
    }

    fn lock(&self, name: &str) -> Arc<LoadMutex<()>> {
        let mut loading = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
        // Locks that nobody holds are forgotten, so that names cannot pile up.
        loading.retain(|_, lock| Arc::strong_count(lock) > 1);
        loading.entry(name.to_owned()).or_default().clone()
    }

    /// Returns the index: every version that was ever asked for, and the names that were not.
    pub(crate) fn index(&self, ready_only: bool) -> Vec<Listed> {
        let mut listed: Vec<Listed> = self.models.list().into_iter().map(listed).collect();
        if ready_only {
            listed.retain(|line| line.state == "READY");
            return listed;
        }
        let mut names: Vec<String> = self.given.keys().cloned().collect();
        names.extend(self.scan().unwrap_or_default().into_keys());
        names.retain(|name| !listed.iter().any(|line| line.name == *name));
        listed.extend(names.into_iter().map(|name| Listed {
            name,
            version: String::new(),
            state: "",
            reason: String::new(),
        }));
        listed.sort_by(|a, b| a.name.cmp(&b.name));
        listed
    }
}

/// Returns whether there is a folder; a link may lead to one, or to nothing.
///
/// Errors: the system does not say; a folder that cannot be looked at is not one that has left.
fn is_folder(path: &Path) -> std::result::Result<bool, String> {
    match std::fs::metadata(path) {
        Ok(metadata) => Ok(metadata.is_dir()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(format!("model folder `{}`: {error}", path.display())),
    }
}

fn listed((name, version, state): (String, u64, State)) -> Listed {
    let (state, reason) = state.spell();
    Listed { name, version: version.to_string(), state, reason: reason.to_owned() }
}

impl RepositoryConfig {
    /// Returns the first root that is not a folder.
    pub(crate) fn missing_root(&self) -> Option<&Path> {
        self.roots.iter().map(PathBuf::as_path).find(|root| !root.is_dir())
    }
}

#[cfg(test)]
mod tests;
