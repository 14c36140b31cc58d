//! The command line, the environment and the configuration file: the one folder that reads them.
//!
//! A flag beats its `STATOR_*` variable, which beats a `DYN_*` alias, which beats the file,
//! which beats the default. Every value goes through the flag's own parser, wherever it is from.

mod bench;
mod busy;
mod chat;
mod doctor;
mod dump;
mod engine;
mod fleet;
mod grpc;
mod http;
mod mock;
mod models;
mod names;
mod openai;
mod planes;
mod process;
mod router;
mod security;
mod shared_memory;
mod trace;
mod up;
mod upstream;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{ArgMatches, Args, Command, CommandFactory, FromArgMatches, Parser, Subcommand};

pub use bench::{BenchAction, BenchEngineArgs};
pub use busy::BusyArgs;
pub use chat::ChatArgs;
pub use doctor::DoctorArgs;
pub use engine::EngineArgs;
pub use fleet::{AliasArgs, DiscoveryArgs, FrontendArgs, Part, Repeated, RouteArgs, WorkerArgs};
pub use grpc::{Compression, GrpcArgs};
pub use http::HttpArgs;
pub use mock::MockArgs;
pub use models::{ControlMode, ModelArgs};
pub use names::Note;
pub use openai::{FormatArgs, OpenAiArgs};
pub use planes::{Plane, PlaneArgs, SocketArgs};
pub use process::{LogFormat, ProcessArgs, threads};
pub use router::{RouterArgs, Routing};
pub use security::{SecurityArgs, TlsListener};
pub use shared_memory::SharedMemoryArgs;
pub use trace::{TraceArgs, TraceMode};
pub use up::{Passed, UpArgs, passed, withheld};
pub use upstream::UpstreamArgs;

use names::{Environment, Origins};

/// Flags that say what is done with the configuration, and are no settings of it.
const NO_SETTINGS: [&str; 4] = ["config", "dump_config", "dump_config_to", "help"];

/// What stands below the flags of a role.
const AFTER_HELP: &str = "A MODEL is a GGUF file, a directory of safetensors, NAME=FILE, or a \
    Hugging Face id such as ORG/REPO or ORG/REPO:FILE.gguf (also NAME=ORG/REPO:FILE.gguf).\n\
    Every flag can stand in the file of --config, without its dashes: `grpc-port = 9001`.\n\
    A flag beats its variable, which beats the file.";

/// The commands that serve, and so take a configuration file.
const ROLES: [&str; 4] = ["serve", "up", "worker", "frontend"];

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
    /// Run a fleet on this machine: workers and a frontend, until Ctrl-C
    Up(Box<UpArgs>),
    /// Compute models for the frontends of a fleet
    Worker(Box<WorkerArgs>),
    /// Serve the models of a fleet's workers; needs no files of theirs
    Frontend(Box<FrontendArgs>),
    /// Make an API key: it goes to standard error, and its entry for --api-keys to standard output
    Key(KeyArgs),
    /// Chat in the terminal with a running server
    Chat(ChatArgs),
    /// Measure how fast this machine is
    #[command(subcommand)]
    Bench(BenchAction),
    /// Say what this machine has, what can be reached, and what to do about the rest
    Doctor(DoctorArgs),
    /// Print the OpenAPI document of the HTTP door
    Openapi,
}

/// The flags of `stator key`.
#[derive(Debug, Args)]
pub struct KeyArgs {
    /// Whose key it is, as logs and messages call it
    #[arg(value_name = "NAME")]
    pub name: String,
    /// What it may be used for: inference, metadata, admin, metrics, `*` for all
    #[arg(long, value_name = "SCOPE", default_value = "inference,metadata")]
    #[arg(value_parser = ["inference", "metadata", "admin", "metrics", "*"], value_delimiter = ',')]
    pub scopes: Vec<String>,
    /// Models it may call, `*` in a name stands for anything
    #[arg(long, value_name = "NAME", default_value = "*", value_delimiter = ',')]
    pub models: Vec<String>,
}

/// The flags of `stator serve`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct ServeArgs {
    #[command(flatten)]
    pub models: ModelArgs,
    #[command(flatten)]
    pub shared_memory: SharedMemoryArgs,
    #[command(flatten)]
    pub grpc: GrpcArgs,
    #[command(flatten)]
    pub http: HttpArgs,
    #[command(flatten)]
    pub openai: OpenAiArgs,
    #[command(flatten)]
    pub formats: FormatArgs,
    #[command(flatten)]
    pub security: SecurityArgs,
    #[command(flatten)]
    pub engine: EngineArgs,
    #[command(flatten)]
    pub busy: BusyArgs,
    #[command(flatten)]
    pub trace: TraceArgs,
    #[command(flatten)]
    pub process: ProcessArgs,
}

/// A command line that was read.
#[derive(Debug)]
pub struct Parsed {
    pub action: Action,
    pub given: Given,
}

/// Where the settings of an action are from.
#[derive(Debug)]
pub struct Given {
    /// The matches of the action.
    pub matches: ArgMatches,
    /// What is to be said of names that are not ours.
    pub notes: Vec<Note>,
    /// What gave the settings that are from the file or that a name of others gave, by their ids.
    origins: Origins,
}

/// Reads the command line of this process.
///
/// Errors: clap's, which print usage and know their exit code (0 for `--help`).
pub fn parse() -> Result<Parsed, clap::Error> {
    let text = |(name, value): (OsString, OsString)| {
        (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned())
    };
    parse_from(std::env::args_os(), &std::env::vars_os().map(text).collect())
}

/// Reads a command line with the given environment for the names of others.
fn parse_from(
    args: impl IntoIterator<Item = OsString>,
    environment: &Environment,
) -> Result<Parsed, clap::Error> {
    let mut args: Vec<OsString> = args.into_iter().collect();
    let mut command = command();
    let (mut notes, mut origins) = (Vec::new(), Origins::new());
    if let Some(role) = role(&args) {
        let flags = names::read_flags(args, &command, (&role, environment));
        let flags = flags.map_err(|why| refusal(&command, &role, why))?;
        (args, notes) = (flags.args, flags.notes);
        let first = self::command().try_get_matches_from(&args)?;
        let matches = first.subcommand().map(|(_, matches)| matches);
        if let Some(path) = matches.and_then(|matches| matches.get_one::<PathBuf>("config")) {
            for (id, values) in settings(&command, &role, path)? {
                command = with_default(command, &role, &id, values);
                origins.insert(id, "file".to_owned());
            }
        }
        let variables = names::read_variables(&command, (&role, environment));
        let variables = variables.map_err(|why| refusal(&command, &role, why))?;
        for (id, values) in variables.settings {
            command = with_default(command, &role, &id, values);
        }
        notes.extend(variables.notes);
        origins.extend(variables.origins);
        origins.extend(flags.origins);
    }
    let matches = command.try_get_matches_from(&args)?;
    let action = Cli::from_arg_matches(&matches)?.command;
    let matches = matches.subcommand().map(|(_, m)| m.clone()).unwrap_or_default();
    Ok(Parsed { action, given: Given { matches, notes, origins } })
}

/// Makes the error for a command line or file of a role, with the role's usage.
fn refusal(command: &Command, role: &str, why: String) -> clap::Error {
    let mut command = command.clone();
    command.build();
    let command = match command.find_subcommand_mut(role) {
        Some(role) => role,
        None => &mut command,
    };
    command.error(clap::error::ErrorKind::ValueValidation, why)
}

/// Returns the role that a command line starts.
fn role(args: &[OsString]) -> Option<String> {
    let first = args.get(1)?.to_str()?;
    ROLES.contains(&first).then(|| first.to_owned())
}

/// Returns the command line's grammar. Workers share a machine with one another, so that they take
/// free ports where nobody says which.
fn command() -> Command {
    Cli::command().mut_subcommand("worker", |worker| {
        worker.mut_arg("metrics_port", |port| port.default_value("0"))
    })
}

/// Reads the settings of a TOML file.
///
/// Errors: it cannot be read, is not TOML, or has what is no setting of the role.
fn settings(
    command: &Command,
    role: &str,
    path: &Path,
) -> Result<Vec<(String, Vec<String>)>, clap::Error> {
    let shown = path.display();
    let fail = |why: String| refusal(command, role, why);
    let text = std::fs::read_to_string(path)
        .map_err(|error| fail(format!("cannot read `{shown}`: {error}")))?;
    let table: toml::Table =
        text.parse().map_err(|error| fail(format!("`{shown}` is not TOML: {error}")))?;
    let setting = |(key, value): (String, toml::Value)| {
        let id = key.replace('-', "_");
        if !has(command, role, &id) || NO_SETTINGS.contains(&id.as_str()) {
            return Err(fail(format!("`{shown}`: no setting is called `{key}`")));
        }
        let values = match value {
            toml::Value::Array(values) => values.into_iter().map(plain).collect(),
            value => vec![plain(value)],
        };
        Ok((id, values))
    };
    table.into_iter().map(setting).collect()
}

fn plain(value: toml::Value) -> String {
    match value {
        toml::Value::String(text) => text,
        other => other.to_string(),
    }
}

fn has(command: &Command, role: &str, id: &str) -> bool {
    let role = command.find_subcommand(role);
    role.is_some_and(|role| role.get_arguments().any(|arg| arg.get_id() == id))
}

/// Gives a flag other defaults, if the role has it.
fn with_default(command: Command, role: &str, id: &str, values: Vec<String>) -> Command {
    if !has(&command, role, id) {
        return command;
    }
    let id = id.to_owned();
    command.mut_subcommand(role, |role| role.mut_arg(id, |arg| arg.default_values(values)))
}

/// Returns the user's cache folder by the XDG convention, if it can be known.
pub fn cache_dir() -> Option<PathBuf> {
    std::env::var_os("XDG_CACHE_HOME")
        .filter(|dir| !dir.is_empty())
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))
}

/// Returns the user's state folder by the XDG convention, if it can be known.
pub fn state_dir() -> Option<PathBuf> {
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/state"));
    std::env::var_os("XDG_STATE_HOME")
        .filter(|dir| !dir.is_empty())
        .map(PathBuf::from)
        .or_else(home)
}

/// Returns the folder of the user's sockets.
pub fn socket_dir() -> PathBuf {
    let user = rustix::process::geteuid().as_raw();
    std::env::var_os("XDG_RUNTIME_DIR")
        .filter(|dir| !dir.is_empty())
        .map(|dir| PathBuf::from(dir).join("stator"))
        .unwrap_or_else(|| std::env::temp_dir().join(format!("stator-{user}")))
}

/// Returns the one seed that simulations are to run instead of all, which `STATOR_SEED` names.
#[cfg(test)]
pub(crate) fn replayed_seed() -> Option<u64> {
    let text = std::env::var_os("STATOR_SEED")?;
    Some(text.to_str().and_then(|text| text.parse().ok()).expect("STATOR_SEED is a number"))
}

#[cfg(test)]
mod tests;
