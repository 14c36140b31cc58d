//! The flags of `stator up`, and what of them its processes are given.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Args};

use super::{
    AFTER_HELP, AliasArgs, BusyArgs, EngineArgs, FormatArgs, GrpcArgs, HttpArgs, ModelArgs,
    OpenAiArgs, ProcessArgs, RouteArgs, RouterArgs, SecurityArgs, SharedMemoryArgs, SocketArgs,
    TraceArgs,
};

/// The flags of `stator up`: its own, those of workers and those of frontends.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct UpArgs {
    #[command(flatten)]
    pub models: ModelArgs,
    #[command(flatten)]
    pub aliases: AliasArgs,
    /// Worker processes; they share the compute threads if --threads does not say [default: 2, or
    /// none beside those of the two flags below]
    #[arg(long, value_name = "N", env = "STATOR_WORKERS")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1024), help_heading = "Fleet")]
    pub workers: Option<u32>,
    /// Worker processes that compute prompts
    #[arg(long, value_name = "N", env = "STATOR_PREFILL_WORKERS", requires = "decode_workers")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1024), help_heading = "Fleet")]
    pub prefill_workers: Option<u32>,
    /// Worker processes that continue prompts which those have computed
    #[arg(long, value_name = "N", env = "STATOR_DECODE_WORKERS", requires = "prefill_workers")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1024), help_heading = "Fleet")]
    pub decode_workers: Option<u32>,
    /// Folder of the logs, a file for each process; what is there of an earlier fleet is
    /// overwritten [default: a folder of the user's state, stator/logs]
    #[arg(long, value_name = "DIR", env = "STATOR_LOG_DIR", help_heading = "Fleet")]
    pub log_dir: Option<PathBuf>,
    #[command(flatten)]
    pub sockets: SocketArgs,
    #[command(flatten)]
    pub router: RouterArgs,
    #[command(flatten)]
    pub route: RouteArgs,
    #[command(flatten)]
    pub busy: BusyArgs,
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
    pub trace: TraceArgs,
    #[command(flatten)]
    pub process: ProcessArgs,
}

/// What a process of a role is given of the settings of another one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// Its flags.
    pub flags: Vec<String>,
    /// Its variables, for secrets: command lines can be read by everybody on the machine.
    pub variables: Vec<(String, String)>,
}

/// Returns the variables of a role's settings that `up` has no flag for, and of those in `own`: its
/// processes are not to take them from `up`'s own environment.
pub fn withheld(role: &str, own: &[&str]) -> Vec<OsString> {
    let command = super::command();
    let up = command.find_subcommand("up");
    let is_shared = |arg: &Arg| {
        up.is_some_and(|up| up.get_arguments().any(|other| other.get_id() == arg.get_id()))
            && !own.contains(&arg.get_id().as_str())
    };
    let of_role = command.find_subcommand(role).into_iter().flat_map(|role| role.get_arguments());
    let foreign = of_role.filter(|arg| !is_shared(arg));
    let own = foreign.filter_map(|arg| arg.get_env()).map(OsString::from);
    // What Dynamo's variables stand for is passed on as flags.
    let of_others = std::env::vars_os().map(|(name, _)| name);
    own.chain(of_others.filter(|name| name.to_string_lossy().starts_with("DYN_"))).collect()
}

/// Returns the settings that a role shares with `up`, whose matches these are, and that differ from the
/// defaults, but those of the names in `own`. Variables are inherited, so they are not passed on.
pub fn passed(role: &str, matches: &ArgMatches, own: &[&str]) -> Passed {
    let command = super::command();
    let origin = command.find_subcommand("up");
    let of_origin = |id: &str| origin?.get_arguments().find(|arg| arg.get_id() == id);
    let (mut passed, mut positional) = (Passed::default(), Vec::new());
    for arg in command.find_subcommand(role).into_iter().flat_map(|role| role.get_arguments()) {
        let id = arg.get_id().as_str();
        if own.contains(&id) || super::NO_SETTINGS.contains(&id) {
            continue;
        }
        let Ok(Some(values)) = matches.try_get_raw(id) else { continue };
        let values: Vec<String> = values.map(|value| value.to_string_lossy().into()).collect();
        let is_given = match matches.value_source(id) {
            Some(ValueSource::CommandLine) => true,
            Some(ValueSource::EnvVariable) | None => false,
            Some(_) => of_origin(id).is_some_and(|arg| super::dump::is_changed(arg, &values)),
        };
        if !is_given {
            continue;
        }
        match (arg.get_long(), arg.get_env()) {
            (None, _) => positional.extend(values),
            (Some(_), Some(name)) if arg.is_hide_env_values_set() => {
                let delimiter = arg.get_value_delimiter().unwrap_or(';').to_string();
                let name = name.to_string_lossy().into_owned();
                passed.variables.push((name, values.join(&delimiter)));
            }
            (Some(long), _) if matches!(arg.get_action(), ArgAction::SetTrue) => {
                passed.flags.extend((values == ["true"]).then(|| format!("--{long}")));
            }
            (Some(long), _) => {
                passed.flags.extend(values.iter().map(|value| format!("--{long}={value}")));
            }
        }
    }
    if !positional.is_empty() {
        passed.flags.push("--".to_owned());
        passed.flags.extend(positional);
    }
    passed
}
