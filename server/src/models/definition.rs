//! What a model is before it is loaded: its declared configuration, its versions, its files.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use proto::inference as wire;
use tempfile::TempDir;
use wire::model_version_policy::PolicyChoice;

use super::declaration;
use crate::models::source::{
    AdapterSource, Builtin, CONFIG_FILE as MODEL_CONFIG_FILE, Place, Source,
};

/// The parameter of an adapter's configuration that names its base.
pub(crate) const BASE_MODEL: &str = "base_model";

/// The file of a model folder that declares its configuration.
const CONFIG_FILE: &str = "config.pbtxt";

/// The file of a text model's weights in a version folder, unless the configuration names one.
pub(crate) const WEIGHTS_FILE: &str = "model.gguf";

/// The backend of adapters.
const ADAPTER_BACKEND: &str = "lora";

/// Largest configuration or label file, in bytes.
const MAX_TEXT_BYTES: u64 = 16 << 20;

/// How deep a model's folder is looked into; links may lead in circles.
const MAX_WATCHED_DEPTH: usize = 8;

/// Files looked at to see whether a model changed; more are not looked at.
const MAX_WATCHED_FILES: usize = 10_000;

/// A model as it was asked for.
#[derive(Clone, Debug)]
pub(crate) struct Definition {
    pub name: String,
    /// The configuration as declared, with the name filled in.
    pub declared: wire::ModelConfig,
    /// The versions that its policy chooses, lowest first.
    pub versions: Vec<u64>,
    /// The folder with the version folders.
    pub folder: Option<PathBuf>,
    /// Where the weights are, for a model of the command line.
    pub source: Option<Source>,
    /// Files sent with the load request.
    pub files: Option<Arc<TempDir>>,
}

impl Definition {
    /// A text model of the command line.
    pub(crate) fn of_source(source: &Source) -> Self {
        let backend = "text".to_owned();
        let name = source.name.clone();
        let declared = wire::ModelConfig { name: name.clone(), backend, ..Default::default() };
        let source = Some(source.clone());
        Self { name, declared, versions: vec![1], folder: None, source, files: None }
    }

    /// An adapter of the command line, or of a client.
    pub(crate) fn of_adapter(adapter: &AdapterSource) -> Self {
        let AdapterSource { name, folder, base } = adapter.clone();
        let mut declared = wire::ModelConfig {
            name: name.clone(),
            backend: ADAPTER_BACKEND.to_owned(),
            ..Default::default()
        };
        if let Some(base) = base {
            let base = wire::ModelParameter { string_value: base };
            declared.parameters.insert(BASE_MODEL.to_owned(), base);
        }
        let source = Some(Source { name: name.clone(), place: Place::File(folder) });
        Self { name, declared, versions: vec![1], folder: None, source, files: None }
    }

    /// Returns whether it is an adapter, which needs its base before it.
    pub(crate) fn is_adapter(&self) -> bool {
        self.declared.backend == ADAPTER_BACKEND
    }

    /// A built-in model of the command line.
    pub(crate) fn of_builtin(builtin: &Builtin) -> Self {
        let (name, declared) = (builtin.name.clone(), builtin.declared.clone());
        Self { name, declared, versions: vec![1], folder: None, source: None, files: None }
    }

    /// Makes the definitions of a mock's adapters, which are names without weights.
    pub(crate) fn of_mock_adapters(builtin: &Builtin) -> Vec<Self> {
        let names = builtin.declared.parameters.get("loras");
        let names = names.into_iter().flat_map(|names| names.string_value.split('+'));
        let adapter = |name: &str| {
            let base = wire::ModelParameter { string_value: builtin.name.clone() };
            let declared = wire::ModelConfig {
                name: name.to_owned(),
                backend: ADAPTER_BACKEND.to_owned(),
                parameters: [(BASE_MODEL.to_owned(), base)].into(),
                ..Default::default()
            };
            let name = name.to_owned();
            Self { name, declared, versions: vec![1], folder: None, source: None, files: None }
        };
        names.filter(|name| !name.is_empty()).map(adapter).collect()
    }

    /// Reads a model folder: `config.pbtxt`, unless `config` is given as JSON in its place, and
    /// the numbered version folders. Errors name the file.
    pub(crate) fn read(name: &str, folder: &Path, config: Option<&str>) -> Result<Self, String> {
        let path = folder.join(CONFIG_FILE);
        let mut declared = match config {
            Some(json) => {
                declaration::from_json(json).map_err(|why| format!("parameter 'config': {why}"))?
            }
            None => read_config(&path)?,
        };
        if !declared.name.is_empty() && declared.name != name {
            return Err(format!(
                "{}: unexpected name `{}`, the folder is called `{name}`",
                path.display(),
                declared.name
            ));
        }
        name.clone_into(&mut declared.name);
        if config.is_some() && declared.backend.is_empty() && declared.platform.is_empty() {
            // What computes the model is not what a client wants to change.
            let own = read_config(&path)?;
            (declared.backend, declared.platform) = (own.backend, own.platform);
        }
        let found = versions(folder)?;
        if declared.backend.is_empty() && declared.platform.is_empty() {
            let of = |version: &u64| folder.join(version.to_string());
            let is_text = |folder: PathBuf| {
                folder.join(WEIGHTS_FILE).is_file() || folder.join(MODEL_CONFIG_FILE).is_file()
            };
            let is_adapter = |folder: PathBuf| folder.join("adapter_config.json").is_file();
            if found.iter().map(of).any(is_adapter) {
                declared.backend = ADAPTER_BACKEND.to_owned();
            } else if found.iter().map(of).any(is_text) {
                declared.backend = "text".to_owned();
            }
        }
        let versions = chosen(&declared, &found)
            .map_err(|why| format!("model folder `{}`: {why}", folder.display()))?;
        let folder = Some(folder.to_owned());
        Ok(Self { name: name.to_owned(), declared, versions, folder, source: None, files: None })
    }

    /// Makes a definition of files sent with a load request, which stand for the whole folder.
    ///
    /// Errors: a path that is not inside the folder, or files that cannot be written.
    pub(crate) fn of_files(
        name: &str,
        config: &str,
        files: &BTreeMap<String, Bytes>,
    ) -> Result<Self, String> {
        let folder = tempfile::Builder::new().prefix("stator-model-").tempdir();
        let folder = folder.map_err(|error| format!("cannot make a folder: {error}"))?;
        for (path, content) in files {
            let relative = Path::new(path);
            let is_inside = relative.components().all(|part| matches!(part, Component::Normal(_)));
            if !is_inside || path.is_empty() || path.len() > 1024 {
                let shown: String = path.chars().take(100).collect();
                return Err(format!("'file:{shown}' is not a path inside the model's folder"));
            }
            let target = folder.path().join(relative);
            let parent = target.parent().unwrap_or(folder.path());
            std::fs::create_dir_all(parent)
                .and_then(|()| std::fs::write(&target, content))
                .map_err(|error| format!("'file:{path}' cannot be written: {error}"))?;
        }
        let definition = Self::read(name, folder.path(), Some(config))?;
        Ok(Self { files: Some(Arc::new(folder)), ..definition })
    }

    /// Puts another declared configuration in the place of the command line's.
    pub(crate) fn with_config(mut self, json: &str) -> Result<Self, String> {
        let mut declared =
            declaration::from_json(json).map_err(|why| format!("parameter 'config': {why}"))?;
        if declared.backend.is_empty() {
            declared.backend.clone_from(&self.declared.backend);
        }
        if declared.parameters.is_empty() {
            declared.parameters.clone_from(&self.declared.parameters);
        }
        declared.name.clone_from(&self.name);
        self.declared = declared;
        Ok(self)
    }

    /// Returns a custom parameter of the configuration.
    pub(crate) fn parameter(&self, key: &str) -> Option<&str> {
        self.declared.parameters.get(key).map(|value| value.string_value.as_str())
    }

    /// Returns the lines of a label file; the configuration names it from the model's folder.
    pub(crate) fn labels(&self, file: &str) -> Result<Vec<String>, String> {
        let is_inside =
            Path::new(file).components().all(|part| matches!(part, Component::Normal(_)));
        let Some(folder) = self.folder.as_ref().filter(|_| is_inside) else {
            return Err(format!("`label_filename`: `{file}` is not in the model's folder"));
        };
        Ok(read_text(&folder.join(file))?.lines().map(str::to_owned).collect())
    }
}

/// Reads a declared configuration; one that is not there declares nothing.
fn read_config(path: &Path) -> Result<wire::ModelConfig, String> {
    if !path.is_file() {
        return Ok(wire::ModelConfig::default());
    }
    declaration::from_text(&read_text(path)?).map_err(|why| format!("{}:{why}", path.display()))
}

fn read_text(path: &Path) -> Result<String, String> {
    let shown = path.display();
    let size = path.metadata().map_err(|error| format!("cannot read `{shown}`: {error}"))?.len();
    if size > MAX_TEXT_BYTES {
        return Err(format!("`{shown}` has {size} bytes, more than {MAX_TEXT_BYTES}"));
    }
    std::fs::read_to_string(path).map_err(|error| format!("cannot read `{shown}`: {error}"))
}

/// Returns the numbered folders, lowest first. Others are ignored, as Triton does.
fn versions(folder: &Path) -> Result<Vec<u64>, String> {
    let entries = std::fs::read_dir(folder)
        .map_err(|error| format!("cannot read `{}`: {error}", folder.display()))?;
    let mut versions: Vec<u64> = entries
        .filter_map(|entry| entry.ok().filter(|entry| entry.path().is_dir()))
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let is_number = !name.starts_with('0') && name.bytes().all(|b| b.is_ascii_digit());
            name.parse().ok().filter(|_| is_number)
        })
        .collect();
    versions.sort_unstable();
    Ok(versions)
}

/// Chooses among the versions by the configuration's policy; the default is the latest one.
fn chosen(declared: &wire::ModelConfig, found: &[u64]) -> Result<Vec<u64>, String> {
    let policy = declared.version_policy.as_ref().and_then(|p| p.policy_choice.as_ref());
    let latest = |count: u32| {
        let count = (count.max(1) as usize).min(found.len());
        found[found.len() - count..].to_vec()
    };
    let versions = match policy {
        None => latest(1),
        Some(PolicyChoice::Latest(policy)) => latest(policy.num_versions),
        Some(PolicyChoice::All(_)) => found.to_vec(),
        Some(PolicyChoice::Specific(policy)) => {
            let wanted = policy.versions.iter().filter_map(|&version| u64::try_from(version).ok());
            let mut wanted: Vec<u64> = wanted.collect();
            wanted.sort_unstable();
            wanted.dedup();
            if let Some(missing) = wanted.iter().find(|version| !found.contains(version)) {
                return Err(format!("version {missing} of its version policy is not there"));
            }
            wanted
        }
    };
    match versions.is_empty() {
        true => Err("at least one version must be available under the version policy".into()),
        false => Ok(versions),
    }
}

/// What is compared to see whether a model folder changed: paths, sizes and times.
pub(crate) type Fingerprint = Vec<(PathBuf, u64, Option<SystemTime>)>;

/// Takes the fingerprint of a folder.
pub(crate) fn fingerprint(folder: &Path) -> Fingerprint {
    let mut found = Vec::new();
    let mut folders = vec![(folder.to_owned(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            // Of what a link leads to: a mounted configuration is a link that is changed.
            let Ok(metadata) = std::fs::metadata(entry.path()) else { continue };
            if found.len() >= MAX_WATCHED_FILES {
                break;
            }
            if metadata.is_dir() && depth < MAX_WATCHED_DEPTH {
                folders.push((entry.path(), depth + 1));
            }
            found.push((entry.path(), metadata.len(), metadata.modified().ok()));
        }
    }
    found.sort();
    found
}
