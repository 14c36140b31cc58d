//! The command line, the environment and the configuration file: the one place that reads them.
//!
//! A flag beats its `STATOR_*` variable, which beats a `DYN_*` alias, which beats the file,
//! which beats the default. Every value goes through the flag's own parser, wherever it is from.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{ArgMatches, Args, Command, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::config::{Compression, LogFormat};
use crate::repository::ControlMode;
use crate::trace::TraceMode;

/// Names of the reference's variables that mean one of ours.
const ALIASES: [(&str, &str); 2] = [
    ("DYN_GRPC_INITIAL_CONNECTION_WINDOW_SIZE", "grpc_connection_window_bytes"),
    ("DYN_GRPC_INITIAL_STREAM_WINDOW_SIZE", "grpc_stream_window_bytes"),
];

/// A gRPC-first inference server: KServe v2 with Triton's extensions, for text and tensors.
#[derive(Debug, Parser)]
#[command(name = "stator", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Action,
}

/// What the binary does.
#[derive(Debug, Subcommand)]
pub enum Action {
    /// Serve models; with none given, the default model SmolLM2-135M-Instruct
    Serve(Box<ServeArgs>),
}

/// The flags of `stator serve`.
#[derive(Debug, Args)]
#[command(after_help = "A MODEL is a GGUF file, NAME=FILE, or a Hugging Face id such as \
    ORG/REPO or ORG/REPO:FILE.gguf (also NAME=ORG/REPO:FILE.gguf).\n\
    Every flag can stand in the file of --config, without its dashes: `grpc-port = 9001`.\n\
    A flag beats its variable, which beats the file.")]
pub struct ServeArgs {
    /// Models to serve
    #[arg(value_name = "MODEL", env = "STATOR_MODELS", value_delimiter = ',')]
    pub models: Vec<String>,
    /// Serve no text model when none is given
    #[arg(long, env = "STATOR_NO_DEFAULT_MODEL", help_heading = "Models")]
    pub no_default_model: bool,
    /// Serve a built-in model: [NAME=]KIND[,KEY=VALUE]..., KIND one of identity (datatype, dims
    /// as 2x-1, max_batch_size, delay_ms, echo_parameters), add_sub (datatype, dims,
    /// max_batch_size), repeat_int32, square, sequence (delay_ms, idle_ms), mock (pace_ms,
    /// context_length, reply)
    #[arg(long, value_name = "SPEC", env = "STATOR_BUILTIN", value_delimiter = ';')]
    #[arg(help_heading = "Models")]
    pub builtin: Vec<String>,
    /// Folder of model folders in Triton's layout: NAME/config.pbtxt, NAME/1/...; may be repeated
    #[arg(long, value_name = "DIR", env = "STATOR_MODEL_REPOSITORY", value_delimiter = ',')]
    #[arg(help_heading = "Models")]
    pub model_repository: Vec<PathBuf>,
    /// Who decides what is loaded later: nobody, changes of the repositories, or clients
    #[arg(long, value_name = "MODE", value_enum, default_value_t = ControlMode::None)]
    #[arg(env = "STATOR_MODEL_CONTROL_MODE", help_heading = "Models")]
    pub model_control_mode: ControlMode,
    /// Model of a repository to load at the start in explicit mode, `*` for all; may be repeated
    #[arg(long, value_name = "NAME", env = "STATOR_LOAD_MODEL", value_delimiter = ',')]
    #[arg(help_heading = "Models")]
    pub load_model: Vec<String>,
    /// Seconds between two looks at the repositories in poll mode
    #[arg(long, value_name = "SECONDS", default_value_t = 15, env = "STATOR_REPOSITORY_POLL_SECS")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=86_400), help_heading = "Models")]
    pub repository_poll_secs: u32,
    /// Where downloaded models lie [default: the user's cache folder, stator/models]
    #[arg(long, value_name = "DIR", env = "STATOR_MODEL_DIR", help_heading = "Models")]
    pub model_dir: Option<PathBuf>,
    /// Hub that model ids are fetched from [default: HF_ENDPOINT or Hugging Face]
    #[arg(long, value_name = "URL", env = "STATOR_HUB_URL", help_heading = "Models")]
    pub hub_url: Option<String>,
    #[command(flatten)]
    pub shared_memory: SharedMemoryArgs,
    #[command(flatten)]
    pub grpc: GrpcArgs,
    #[command(flatten)]
    pub http: HttpArgs,
    #[command(flatten)]
    pub engine: EngineArgs,
    #[command(flatten)]
    pub trace: TraceArgs,
    #[command(flatten)]
    pub process: ProcessArgs,
}

/// Memory that clients share.
#[derive(Debug, Args)]
#[command(next_help_heading = "Shared memory")]
pub struct SharedMemoryArgs {
    /// Let clients register shared memory regions: they can then read and write every POSIX shared
    /// memory object that this process may
    #[arg(long, env = "STATOR_ALLOW_CLIENT_SHM")]
    pub allow_client_shm: bool,
    /// What the keys of the objects have to begin with [default: anything]; may be repeated
    #[arg(
        long,
        value_name = "PREFIX",
        env = "STATOR_CLIENT_SHM_KEY_PREFIX",
        value_delimiter = ','
    )]
    pub client_shm_key_prefix: Vec<String>,
}

/// The gRPC door.
#[derive(Debug, Args)]
#[command(next_help_heading = "gRPC")]
pub struct GrpcArgs {
    /// Address to listen on
    #[arg(long, value_name = "HOST", default_value = "0.0.0.0", env = "STATOR_GRPC_HOST")]
    pub grpc_host: String,
    /// Port to listen on; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = 8001, env = "STATOR_GRPC_PORT")]
    pub grpc_port: u16,
    /// HTTP/2 connection window in bytes (also DYN_GRPC_INITIAL_CONNECTION_WINDOW_SIZE)
    #[arg(long, value_name = "BYTES", default_value_t = 8 << 20, value_parser = window())]
    #[arg(env = "STATOR_GRPC_CONNECTION_WINDOW_BYTES")]
    pub grpc_connection_window_bytes: u32,
    /// HTTP/2 stream window in bytes (also DYN_GRPC_INITIAL_STREAM_WINDOW_SIZE)
    #[arg(long, value_name = "BYTES", default_value_t = 4 << 20, value_parser = window())]
    #[arg(env = "STATOR_GRPC_STREAM_WINDOW_BYTES")]
    pub grpc_stream_window_bytes: u32,
    /// Size the windows by the measured bandwidth-delay product, over the two sizes above
    #[arg(long, env = "STATOR_GRPC_ADAPTIVE_WINDOW")]
    pub grpc_adaptive_window: bool,
    /// Largest HTTP/2 frame the server accepts, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 1 << 20)]
    #[arg(value_parser = clap::value_parser!(u32).range(16_384..=16_777_215))]
    #[arg(env = "STATOR_GRPC_MAX_FRAME_BYTES")]
    pub grpc_max_frame_bytes: u32,
    /// Largest request in bytes, after decompression
    #[arg(long, value_name = "BYTES", default_value_t = i32::MAX as u32)]
    #[arg(env = "STATOR_GRPC_MAX_RECEIVE_MESSAGE_BYTES")]
    pub grpc_max_receive_message_bytes: u32,
    /// Largest response in bytes
    #[arg(long, value_name = "BYTES", default_value_t = i32::MAX as u32)]
    #[arg(env = "STATOR_GRPC_MAX_SEND_MESSAGE_BYTES")]
    pub grpc_max_send_message_bytes: u32,
    /// Open calls on one connection
    #[arg(long, value_name = "N", default_value_t = 1024)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    #[arg(env = "STATOR_GRPC_MAX_CONCURRENT_STREAMS")]
    pub grpc_max_concurrent_streams: u32,
    /// Requests in flight on one ModelStreamInfer stream; more wait in the connection
    #[arg(long, value_name = "N", default_value_t = 128)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=65_536))]
    #[arg(env = "STATOR_GRPC_MAX_STREAM_REQUESTS")]
    pub grpc_max_stream_requests: u32,
    /// Open connections; more wait in the listen queue
    #[arg(long, value_name = "N", default_value_t = 4096)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    #[arg(env = "STATOR_GRPC_MAX_CONNECTIONS")]
    pub grpc_max_connections: u32,
    /// Milliseconds of silence after which the server pings a connection; 0 never pings
    #[arg(long, value_name = "MS", default_value_t = 7_200_000)]
    #[arg(env = "STATOR_GRPC_KEEPALIVE_INTERVAL_MS")]
    pub grpc_keepalive_interval_ms: u64,
    /// Milliseconds without an answer to a ping after which a connection is closed
    #[arg(long, value_name = "MS", default_value_t = 20_000)]
    #[arg(env = "STATOR_GRPC_KEEPALIVE_TIMEOUT_MS")]
    pub grpc_keepalive_timeout_ms: u64,
    /// Milliseconds after which a connection is asked to end and reconnect; 0 never
    #[arg(long, value_name = "MS", default_value_t = 0)]
    #[arg(env = "STATOR_GRPC_MAX_CONNECTION_AGE_MS")]
    pub grpc_max_connection_age_ms: u64,
    /// Send small writes at once (TCP_NODELAY)
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    #[arg(env = "STATOR_GRPC_TCP_NODELAY")]
    pub grpc_tcp_nodelay: bool,
    /// Compress responses for clients that accept it; requests may always be gzip, deflate or zstd
    #[arg(long, value_name = "ENCODING", value_enum, default_value_t = Compression::None)]
    #[arg(env = "STATOR_GRPC_RESPONSE_COMPRESSION")]
    pub grpc_response_compression: Compression,
    /// Regular expression of the headers whose values become string parameters of a request
    #[arg(long, value_name = "REGEX", env = "STATOR_GRPC_HEADER_FORWARD_PATTERN")]
    pub grpc_header_forward_pattern: Option<String>,
    /// GROUPS:KEY=VALUE: calls of these groups, comma-separated, need the header
    /// triton-grpc-protocol-KEY with this value. Groups: health, metadata, inference, shared-memory, model-config,
    /// model-repository, statistics, trace, logging; may be repeated
    #[arg(long, value_name = "RULE", env = "STATOR_GRPC_RESTRICTED_PROTOCOL")]
    #[arg(value_delimiter = ';', hide_env_values = true)]
    pub grpc_restricted_protocol: Vec<String>,
    /// The server's name in ServerMetadata; Triton's clients and tools look for `triton`
    #[arg(long, value_name = "NAME", default_value = "triton", env = "STATOR_SERVER_NAME")]
    pub server_name: String,
}

/// The HTTP door.
#[derive(Debug, Args)]
#[command(next_help_heading = "HTTP")]
pub struct HttpArgs {
    /// Address to listen on
    #[arg(long, value_name = "HOST", default_value = "0.0.0.0", env = "STATOR_HTTP_HOST")]
    pub http_host: String,
    /// Port of KServe's REST; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = 8000, env = "STATOR_HTTP_PORT")]
    pub http_port: u16,
    /// Do not serve HTTP
    #[arg(long, env = "STATOR_NO_HTTP")]
    pub no_http: bool,
    /// Largest body in bytes, before and after decompression
    #[arg(long, value_name = "BYTES", default_value_t = 64 << 20)]
    #[arg(env = "STATOR_HTTP_MAX_INPUT_BYTES", alias = "http-max-input-size")]
    pub http_max_input_bytes: u32,
    /// Open connections; more wait in the listen queue
    #[arg(long, value_name = "N", default_value_t = 4096)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    #[arg(env = "STATOR_HTTP_MAX_CONNECTIONS")]
    pub http_max_connections: u32,
    /// Regular expression of the headers whose values become string parameters of a request
    #[arg(long, value_name = "REGEX", env = "STATOR_HTTP_HEADER_FORWARD_PATTERN")]
    pub http_header_forward_pattern: Option<String>,
    /// GROUPS:KEY=VALUE: routes of these groups, comma-separated, need the header KEY with this
    /// value; the groups are those of --grpc-restricted-protocol; may be repeated
    #[arg(long, value_name = "RULE", env = "STATOR_HTTP_RESTRICTED_API")]
    #[arg(value_delimiter = ';', hide_env_values = true)]
    pub http_restricted_api: Vec<String>,
}

/// The embedded engine.
#[derive(Debug, Args)]
#[command(next_help_heading = "Engine")]
pub struct EngineArgs {
    /// Compute threads of each text model; 0 takes one a core
    #[arg(long, value_name = "N", default_value_t = 0, env = "STATOR_THREADS")]
    #[arg(value_parser = clap::value_parser!(u32).range(0..=1024))]
    pub threads: u32,
    /// Most tokens of one sequence [default: the model's own]
    #[arg(long, value_name = "TOKENS", env = "STATOR_CONTEXT_LENGTH")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    pub context_length: Option<u32>,
    /// Memory of each model's KV cache in MiB
    #[arg(long, value_name = "MIB", default_value_t = 512, env = "STATOR_KV_CACHE_MIB")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    pub kv_cache_mib: u32,
    /// Tokens of one forward pass, shared by decoding sequences and prompt chunks
    #[arg(long, value_name = "TOKENS", default_value_t = 512, env = "STATOR_BATCH_TOKENS")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub batch_tokens: u32,
    /// Sequences in the running batch
    #[arg(long, value_name = "N", default_value_t = 256, env = "STATOR_MAX_RUNNING_SEQUENCES")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub max_running_sequences: u32,
    /// Requests waiting for a place in the batch; more are refused with UNAVAILABLE
    #[arg(long, value_name = "N", default_value_t = 1024, env = "STATOR_MAX_WAITING_REQUESTS")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub max_waiting_requests: u32,
}

/// Traces of single requests; clients may change all but the file and the endpoint.
#[derive(Debug, Args)]
#[command(next_help_heading = "Traces")]
pub struct TraceArgs {
    /// What is traced: OFF, or TIMESTAMPS and TENSORS (tensors tell what clients sent)
    #[arg(long, value_name = "LEVEL", default_value = "OFF", env = "STATOR_TRACE_LEVEL")]
    #[arg(value_delimiter = ',', value_parser = ["OFF", "TIMESTAMPS", "TENSORS"])]
    pub trace_level: Vec<String>,
    /// One request of so many is traced
    #[arg(long, value_name = "N", default_value_t = 1000, env = "STATOR_TRACE_RATE")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    pub trace_rate: u32,
    /// So many requests are traced; -1: no limit
    #[arg(long, value_name = "N", default_value_t = -1, env = "STATOR_TRACE_COUNT")]
    #[arg(allow_negative_numbers = true)]
    pub trace_count: i64,
    /// A trace file is closed after so many traces and another begun; 0: never
    #[arg(long, value_name = "N", default_value_t = 0, env = "STATOR_TRACE_LOG_FREQUENCY")]
    pub trace_log_frequency: u32,
    /// Where traces go: to a file as Triton writes it, or as spans over OTLP
    #[arg(long, value_name = "MODE", value_enum, default_value_t = TraceMode::Triton)]
    #[arg(env = "STATOR_TRACE_MODE")]
    pub trace_mode: TraceMode,
    /// File of mode triton
    #[arg(long, value_name = "FILE", env = "STATOR_TRACE_FILE")]
    pub trace_file: Option<PathBuf>,
    /// Collector of mode opentelemetry, OTLP over gRPC
    #[arg(long, value_name = "URL", default_value = "http://localhost:4317")]
    #[arg(env = "STATOR_TRACE_OTLP_ENDPOINT")]
    pub trace_otlp_endpoint: String,
}

/// The process.
#[derive(Debug, Args)]
#[command(next_help_heading = "Process")]
pub struct ProcessArgs {
    /// Address of the metrics listener
    #[arg(long, value_name = "HOST", default_value = "0.0.0.0", env = "STATOR_METRICS_HOST")]
    pub metrics_host: String,
    /// Port of /metrics; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = 8002, env = "STATOR_METRICS_PORT")]
    pub metrics_port: u16,
    /// Do not serve metrics
    #[arg(long, env = "STATOR_NO_METRICS")]
    pub no_metrics: bool,
    /// Threads of the network runtime; 0 takes one a core
    #[arg(long, value_name = "N", default_value_t = 0, env = "STATOR_RUNTIME_THREADS")]
    #[arg(value_parser = clap::value_parser!(u32).range(0..=1024))]
    pub runtime_threads: u32,
    /// Milliseconds that requests under way get to finish after SIGTERM or SIGINT
    #[arg(long, value_name = "MS", default_value_t = 30_000, env = "STATOR_SHUTDOWN_GRACE_MS")]
    pub shutdown_grace_ms: u64,
    /// What to log: error, warn, info, debug, trace, or directives such as `info,server=debug`
    #[arg(long, value_name = "LEVEL", default_value = "info", env = "STATOR_LOG_LEVEL")]
    pub log_level: String,
    /// How to log
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = LogFormat::Text)]
    #[arg(env = "STATOR_LOG_FORMAT")]
    pub log_format: LogFormat,
    /// TOML file with any of these flags as keys
    #[arg(long, value_name = "FILE", env = "STATOR_CONFIG")]
    pub config: Option<PathBuf>,
    /// Print the configuration in force, with where each value is from, and end
    #[arg(long)]
    pub dump_config: bool,
}

/// HTTP/2 allows windows up to 2^31 - 1 and this server none under the protocol's default.
fn window() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(65_535..=i64::from(i32::MAX))
}

/// Reads the command line of this process.
///
/// Errors: clap's, which print usage and know their exit code (0 for `--help`).
pub fn parse() -> Result<(ServeArgs, ArgMatches), clap::Error> {
    parse_from(std::env::args_os(), |name| std::env::var_os(name))
}

/// Reads a command line with the given environment for the aliases.
fn parse_from(
    args: impl IntoIterator<Item = OsString>,
    variable: impl Fn(&str) -> Option<OsString>,
) -> Result<(ServeArgs, ArgMatches), clap::Error> {
    let args: Vec<OsString> = args.into_iter().collect();
    let first = Cli::command().try_get_matches_from(&args)?;
    let mut command = Cli::command();
    if let Some(path) = first.subcommand().and_then(|(_, m)| m.get_one::<PathBuf>("config")) {
        command = with_file(command, path)?;
    }
    for (alias, id) in ALIASES {
        if let Some(value) = variable(alias) {
            let value = value.to_string_lossy().into_owned();
            command = with_default(command, id, vec![value]);
        }
    }
    let matches = command.try_get_matches_from(&args)?;
    let Action::Serve(serve) = Cli::from_arg_matches(&matches)?.command;
    let matches = matches.subcommand().map(|(_, m)| m.clone()).unwrap_or_default();
    Ok((*serve, matches))
}

/// Makes the values of a TOML file the defaults of their flags.
fn with_file(mut command: Command, path: &Path) -> Result<Command, clap::Error> {
    let fail = |command: &mut Command, message: String| {
        command.error(clap::error::ErrorKind::ValueValidation, message)
    };
    let shown = path.display().to_string();
    let text = std::fs::read_to_string(path)
        .map_err(|error| fail(&mut command, format!("cannot read `{shown}`: {error}")))?;
    let table: toml::Table = text
        .parse()
        .map_err(|error| fail(&mut command, format!("`{shown}` is not TOML: {error}")))?;
    for (key, value) in table {
        let id = key.replace('-', "_");
        let is_known = command
            .find_subcommand("serve")
            .is_some_and(|serve| serve.get_arguments().any(|arg| arg.get_id() == id.as_str()));
        if !is_known || matches!(id.as_str(), "config" | "dump_config" | "help") {
            return Err(fail(&mut command, format!("`{shown}`: no setting is called `{key}`")));
        }
        let values = match value {
            toml::Value::Array(values) => values.into_iter().map(plain).collect(),
            value => vec![plain(value)],
        };
        command = with_default(command, &id, values);
    }
    Ok(command)
}

fn plain(value: toml::Value) -> String {
    match value {
        toml::Value::String(text) => text,
        other => other.to_string(),
    }
}

fn with_default(command: Command, id: &str, values: Vec<String>) -> Command {
    let id = id.to_owned();
    command.mut_subcommand("serve", |serve| serve.mut_arg(id, |arg| arg.default_values(values)))
}

/// Returns the configuration in force as a TOML file, with the origin of each value.
pub fn dump(matches: &ArgMatches) -> String {
    let serve = Cli::command();
    let Some(serve) = serve.find_subcommand("serve") else {
        return String::new();
    };
    let mut out = String::new();
    for arg in serve.get_arguments() {
        let id = arg.get_id().as_str();
        if matches!(id, "config" | "dump_config" | "help") {
            continue;
        }
        let Ok(Some(values)) = matches.try_get_raw(id) else {
            continue;
        };
        if arg.is_hide_env_values_set() {
            out.push_str(&format!("# {} is set; it holds a secret\n", id.replace('_', "-")));
            continue;
        }
        let values: Vec<String> = values.map(|value| value.to_string_lossy().into()).collect();
        let origin = match matches.value_source(id) {
            Some(ValueSource::CommandLine) => "flag",
            Some(ValueSource::EnvVariable) => "environment",
            _ if is_changed(arg, &values) => "file or alias",
            _ => "default",
        };
        let is_list = arg.get_num_args().is_some_and(|n| n.max_values() > 1)
            || matches!(arg.get_action(), clap::ArgAction::Append);
        let shown = if is_list {
            toml::Value::Array(values.into_iter().map(toml::Value::String).collect())
        } else {
            typed(values.into_iter().next().unwrap_or_default())
        };
        out.push_str(&format!("{} = {shown} # {origin}\n", id.replace('_', "-")));
    }
    out
}

fn is_changed(arg: &clap::Arg, values: &[String]) -> bool {
    let defaults: Vec<_> = arg.get_default_values().iter().map(|v| v.to_string_lossy()).collect();
    let is_flag = arg.get_default_values().is_empty();
    !(defaults == values || (is_flag && values == ["false"]))
}

fn typed(value: String) -> toml::Value {
    match (value.parse::<i64>(), value.parse::<bool>()) {
        (Ok(number), _) => toml::Value::Integer(number),
        (_, Ok(flag)) => toml::Value::Boolean(flag),
        _ => toml::Value::String(value),
    }
}

/// Returns the user's cache folder by the XDG convention, if it can be known.
pub fn cache_dir() -> Option<PathBuf> {
    std::env::var_os("XDG_CACHE_HOME")
        .filter(|dir| !dir.is_empty())
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))
}

#[cfg(test)]
mod tests;
