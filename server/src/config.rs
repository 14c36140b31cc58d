//! The validated configuration: what every other file of this room is given.

mod doors;

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::Duration;

use openai_bridge::TextRules;

use crate::args::{
    BusyArgs, EngineArgs, FormatArgs, FrontendArgs, ModelArgs, ProcessArgs, ServeArgs,
    SharedMemoryArgs, TraceArgs, cache_dir,
};
use crate::fleet::FleetConfig;
use crate::openai::OpenAiConfig;
use crate::pipeline::Limits;
use crate::repository::{ControlMode, RepositoryConfig};
use crate::security::SecurityConfig;
use crate::shared_memory::SharedMemoryConfig;
use crate::source::{AdapterSource, Builtin, Source};
use crate::trace::{TraceConfig, TraceMode};

pub use doors::{Compression, GrpcConfig, HttpConfig};

/// A configuration that cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(pub String);

/// Everything a server is started with.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where its models are computed.
    pub origin: Origin,
    /// What clients may share of their memory.
    pub shared_memory: SharedMemoryConfig,
    /// What is traced at the start.
    pub trace: TraceConfig,
    /// The gRPC door.
    pub grpc: GrpcConfig,
    /// The HTTP door; none is not opened.
    pub http: Option<HttpConfig>,
    /// The OpenAI door, which is part of the HTTP door.
    pub openai: OpenAiConfig,
    /// Certificates, keys and origins.
    pub security: SecurityConfig,
    /// Where metrics are served.
    pub metrics: Option<SocketAddr>,
    /// What the names of metrics begin with.
    pub metrics_prefix: String,
    /// What requests under way get to finish at shutdown.
    pub shutdown_grace: Duration,
    /// How long threads look for the next request before they sleep.
    pub busy_poll: Duration,
}

/// Where the models of a server are computed.
#[derive(Clone, Debug)]
pub enum Origin {
    /// In this process.
    Own(Box<ModelsConfig>),
    /// By the workers of a fleet.
    Fleet(Box<FleetConfig>),
}

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

/// The embedded engine's limits.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Compute threads, which all text models share.
    pub threads: usize,
    /// Whether each of them keeps to a core of its own.
    pub pin_threads: bool,
    /// Most tokens of one sequence; none: the model's own.
    pub context_length: Option<usize>,
    /// Bytes of each model's KV cache.
    pub kv_cache_bytes: usize,
    /// Tokens of one forward pass.
    pub batch_tokens: usize,
    /// Sequences in the running batch.
    pub max_running_sequences: usize,
    /// Requests waiting for a place in the batch.
    pub max_waiting_requests: usize,
    /// What adapters may be loaded on each text model.
    pub adapters: worker::lora::Limits,
    /// Most tokens of prompts in a forward pass that others draw from.
    pub mixed_prompt_tokens: usize,
    /// How many times as long as one without prompts such a pass may take.
    pub mixed_pass_stretch: f32,
    /// Tokens guessed ahead of a text.
    pub draft_tokens: usize,
    /// Whether blocks of the KV cache are kept to be found again.
    pub has_prefix_cache: bool,
    /// Share of the blocks that a request leaves free when it joins others.
    pub kv_watermark: f32,
    /// Bytes of host memory for blocks.
    pub kv_host_bytes: usize,
    /// Folder for blocks on disk, and their bytes.
    pub kv_disk: Option<(PathBuf, usize)>,
    /// The format of tool calls; none: what a model's template shows.
    pub tool_call_parser: Option<String>,
    /// The format of reasoning; none: what a model's template shows.
    pub reasoning_parser: Option<String>,
    /// What all texts keep to.
    pub text_rules: TextRules,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Config {
    /// Checks the arguments and makes the configuration.
    ///
    /// Errors: [`Invalid`], naming the flag.
    pub fn from_args(args: &ServeArgs) -> Result<Self, Invalid> {
        let mut models = ModelsConfig::from_args(&args.models, &args.engine, &args.formats)?;
        models.limits = limits(&args.busy);
        models.engine.text_rules = args.openai.text_rules();
        Ok(Self {
            origin: Origin::Own(Box::new(models)),
            trace: TraceConfig::from_args(&args.trace)?,
            shared_memory: shared_memory(&args.shared_memory),
            grpc: GrpcConfig::from_args(&args.grpc)?,
            http: (!args.http.no_http).then(|| HttpConfig::from_args(&args.http)).transpose()?,
            openai: OpenAiConfig::from_args(&args.openai)?,
            security: SecurityConfig::from_args(&args.security)?,
            metrics: metrics(&args.process)?,
            metrics_prefix: args.process.metrics_prefix.clone(),
            shutdown_grace: Duration::from_millis(args.process.shutdown_grace_ms),
            busy_poll: Duration::from_micros(args.process.busy_poll_us),
        })
    }

    /// Checks the arguments of a frontend and makes its configuration.
    ///
    /// Errors: [`Invalid`], naming the flag.
    pub fn of_frontend(args: &FrontendArgs) -> Result<Self, Invalid> {
        Ok(Self {
            origin: Origin::Fleet(Box::new(FleetConfig::from_args(args)?)),
            trace: TraceConfig::from_args(&args.trace)?,
            shared_memory: shared_memory(&args.shared_memory),
            grpc: GrpcConfig::from_args(&args.grpc)?,
            http: (!args.http.no_http).then(|| HttpConfig::from_args(&args.http)).transpose()?,
            openai: OpenAiConfig::from_args(&args.openai)?,
            security: SecurityConfig::from_args(&args.security)?,
            metrics: metrics(&args.process)?,
            metrics_prefix: args.process.metrics_prefix.clone(),
            shutdown_grace: Duration::from_millis(args.process.shutdown_grace_ms),
            busy_poll: Duration::from_micros(args.process.busy_poll_us),
        })
    }
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
        let repository = repository(args)?;
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

/// Returns where metrics are served, if they are.
pub(crate) fn metrics(args: &ProcessArgs) -> Result<Option<SocketAddr>, Invalid> {
    let address = || resolve("--metrics-host", &args.metrics_host, args.metrics_port);
    (!args.no_metrics).then(address).transpose()
}

/// Returns when text models count as busy at the start.
pub(crate) fn limits(args: &BusyArgs) -> Limits {
    Limits {
        blocks: args.busy_kv_share,
        prefill_tokens: args.busy_prefill_tokens,
        waiting_requests: args.busy_waiting_requests,
    }
}

fn shared_memory(args: &SharedMemoryArgs) -> SharedMemoryConfig {
    let key_prefixes = args.client_shm_key_prefix.clone();
    SharedMemoryConfig { is_allowed: args.allow_client_shm, key_prefixes }
}

impl EngineConfig {
    fn from_args(args: &EngineArgs, formats: &FormatArgs) -> Self {
        Self {
            threads: threads(args.threads),
            pin_threads: args.pin_threads,
            context_length: args.context_length.map(|tokens| tokens as usize),
            kv_cache_bytes: args.kv_cache_mib as usize * (1 << 20),
            batch_tokens: args.batch_tokens as usize,
            max_running_sequences: args.max_running_sequences as usize,
            max_waiting_requests: args.max_waiting_requests as usize,
            adapters: worker::lora::Limits {
                max_adapters: args.max_loras as usize,
                max_rank: args.max_lora_rank as usize,
            },
            mixed_prompt_tokens: args.mixed_prompt_tokens as usize,
            mixed_pass_stretch: args.mixed_pass_stretch,
            draft_tokens: args.draft_tokens as usize,
            has_prefix_cache: !args.no_prefix_cache,
            kv_watermark: args.kv_watermark_percent as f32 / 100.0,
            kv_host_bytes: args.kv_host_mib as usize * (1 << 20),
            kv_disk: args.kv_disk_dir.clone().zip(Some(args.kv_disk_mib as usize * (1 << 20))),
            tool_call_parser: formats.tool_call_parser.clone(),
            reasoning_parser: formats.reasoning_parser.clone(),
            text_rules: TextRules::default(),
        }
    }
}

impl TraceConfig {
    fn from_args(args: &TraceArgs) -> Result<Self, Invalid> {
        let count = match args.trace_count {
            -1 => None,
            count => Some(u64::try_from(count).map_err(|_| {
                Invalid(format!("--trace-count: expected -1 or at least 0, got {count}"))
            })?),
        };
        let is_on = args.trace_level.iter().any(|level| level != "OFF");
        if is_on && args.trace_mode == TraceMode::Triton && args.trace_file.is_none() {
            return Err(Invalid("--trace-level: mode `triton` needs --trace-file".into()));
        }
        Ok(Self {
            level: args.trace_level.clone(),
            rate: args.trace_rate,
            count,
            log_frequency: args.trace_log_frequency,
            mode: args.trace_mode,
            file: args.trace_file.clone(),
            otlp_endpoint: args.trace_otlp_endpoint.clone(),
        })
    }
}

fn repository(args: &ModelArgs) -> Result<RepositoryConfig, Invalid> {
    let config = RepositoryConfig {
        roots: args.model_repository.clone(),
        mode: args.model_control_mode,
        load_models: args.load_model.clone(),
        poll_interval: Duration::from_secs(args.repository_poll_secs.into()),
    };
    if let Some(root) = config.missing_root() {
        return Err(Invalid(format!("--model-repository: `{}` is not a folder", root.display())));
    }
    if config.mode != ControlMode::Explicit && !config.load_models.is_empty() {
        let text = "--load-model: works only with --model-control-mode explicit";
        return Err(Invalid(text.into()));
    }
    Ok(config)
}

/// Returns the folder of models: the one that is asked for, or one of the user's cache.
///
/// Errors: none is asked for, and there is no cache folder.
pub(crate) fn model_dir(asked: Option<&Path>) -> Result<PathBuf, Invalid> {
    let cached = || cache_dir().map(|cache| cache.join("stator").join("models"));
    let found = asked.map(Path::to_owned).or_else(cached);
    found.ok_or_else(|| Invalid("--model-dir: no cache folder is known".into()))
}

/// Returns the number of threads asked for, where 0 means one a core.
pub fn threads(asked: u32) -> usize {
    match asked {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        n => n as usize,
    }
}

pub(crate) fn resolve(flag: &str, host: &str, port: u16) -> Result<SocketAddr, Invalid> {
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(SocketAddr::new(ip, port));
    }
    (host, port)
        .to_socket_addrs()
        .ok()
        .and_then(|mut addresses| addresses.next())
        .ok_or_else(|| Invalid(format!("{flag}: `{host}` is not an address of this machine")))
}
