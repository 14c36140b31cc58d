//! The configuration of models: where they come from, and how they are computed.

use std::path::PathBuf;
use std::time::Duration;

use crate::args::{ControlMode, EngineArgs, FormatArgs, ModelArgs};
use crate::models::loader::EngineConfig;
use crate::models::source::{AdapterSource, Builtin, Source, model_dir};
use crate::pipeline::Limits;
use crate::support::invalid::Invalid;

/// The models of a process, and how they are computed.
#[derive(Clone, Debug)]
pub struct ModelsConfig {
    /// The text models, with where they come from.
    pub models: Vec<Source>,
    /// The adapters.
    pub adapters: Vec<AdapterSource>,
    /// The built-in models.
    pub builtins: Vec<Builtin>,
    /// The model repositories.
    pub repository: RepositoryConfig,
    /// Whether a model that cannot be loaded at the start ends the process.
    pub is_strict: bool,
    /// Where downloaded models lie.
    pub model_dir: PathBuf,
    /// The hub that ids are fetched from; none: the hub library's own choice.
    pub hub_url: Option<String>,
    /// The embedded engine.
    pub engine: EngineConfig,
    /// When text models count as busy, until that is changed.
    pub(crate) limits: Limits,
}

/// Where models come from.
#[derive(Clone, Debug)]
pub struct RepositoryConfig {
    /// Model repositories, each a folder of model folders.
    pub roots: Vec<PathBuf>,
    /// Who decides what is loaded.
    pub mode: ControlMode,
    /// Models of the repositories to load at the start in explicit mode; `*` means all.
    pub load_models: Vec<String>,
    /// How often the repositories are looked at in poll mode.
    pub poll_interval: Duration,
}

impl ModelsConfig {
    /// Checks the arguments and makes the configuration.
    ///
    /// Errors: [`Invalid`], naming the flag.
    pub(crate) fn from_args(
        args: &ModelArgs,
        engine: &EngineArgs,
        formats: &FormatArgs,
    ) -> Result<Self, Invalid> {
        let model_dir = model_dir(args.model_dir.as_deref())?;
        let mut models: Vec<Source> =
            args.models.iter().map(|text| Source::parse(text)).collect::<Result<_, _>>()?;
        let builtins: Vec<Builtin> =
            args.builtin.iter().map(|text| Builtin::parse(text)).collect::<Result<_, _>>()?;
        let repository = RepositoryConfig::from_args(args)?;
        let is_bare = models.is_empty() && builtins.is_empty() && repository.roots.is_empty();
        if is_bare && !args.no_default_model {
            models.push(Source::default_model(&model_dir));
        }
        let keeps_blocks = engine.kv_host_mib > 0 || engine.kv_disk_dir.is_some();
        if engine.no_prefix_cache && keeps_blocks {
            let text = "--no-prefix-cache: then nothing is found again that --kv-host-mib or \
                        --kv-disk-dir keep";
            return Err(Invalid(text.into()));
        }
        if engine.batch_tokens < engine.max_running_sequences {
            return Err(Invalid(format!(
                "--batch-tokens: expected at least --max-running-sequences, which is {}, got {}",
                engine.max_running_sequences, engine.batch_tokens
            )));
        }
        Ok(Self {
            models,
            adapters: (engine.lora_modules.iter())
                .map(|text| AdapterSource::parse(text))
                .collect::<Result<_, _>>()?,
            builtins,
            repository,
            is_strict: args.exit_on_error,
            model_dir,
            hub_url: args.hub_url.clone(),
            engine: EngineConfig::from_args(engine, formats),
            limits: Limits::default(),
        })
    }
}

impl RepositoryConfig {
    fn from_args(args: &ModelArgs) -> Result<Self, Invalid> {
        let config = Self {
            roots: args.model_repository.clone(),
            mode: args.model_control_mode,
            load_models: args.load_model.clone(),
            poll_interval: Duration::from_secs(args.repository_poll_secs.into()),
        };
        if let Some(root) = config.missing_root() {
            return Err(Invalid(format!(
                "--model-repository: `{}` is not a folder",
                root.display()
            )));
        }
        if config.mode != ControlMode::Explicit && !config.load_models.is_empty() {
            let text = "--load-model: works only with --model-control-mode explicit";
            return Err(Invalid(text.into()));
        }
        Ok(config)
    }
}
