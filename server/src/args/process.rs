//! The flags of the process: metrics, threads, logs, the configuration file.

use std::path::PathBuf;

use clap::Args;

/// The process.
#[derive(Debug, Args)]
#[command(next_help_heading = "Process")]
pub struct ProcessArgs {
    /// Address of the metrics listener
    #[arg(long, value_name = "HOST", default_value = "0.0.0.0", env = "STATOR_METRICS_HOST")]
    pub metrics_host: String,
    /// Port of /metrics, /health and /live; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = 8002, env = "STATOR_METRICS_PORT")]
    pub metrics_port: u16,
    /// What the names of metrics begin with; those of Triton keep their own
    #[arg(long, value_name = "PREFIX", default_value = "stator", env = "STATOR_METRICS_PREFIX")]
    #[arg(value_parser = metrics_prefix)]
    pub metrics_prefix: String,
    /// Do not serve metrics
    #[arg(long, env = "STATOR_NO_METRICS")]
    pub no_metrics: bool,
    /// Threads of the network runtime; 0 takes one a core
    #[arg(long, value_name = "N", default_value_t = 0, env = "STATOR_RUNTIME_THREADS")]
    #[arg(value_parser = clap::value_parser!(u32).range(0..=1024))]
    pub runtime_threads: u32,
    /// Microseconds for which to look for the next request before sleeping, where one came within
    /// twice that of the one before, at most 100000; 0 sleeps at once, as several mock workers in a
    /// process do. 200 shortens a hop and takes up to twice the CPU
    #[arg(long, value_name = "US", default_value_t = 0, env = "STATOR_BUSY_POLL_US")]
    #[arg(value_parser = clap::value_parser!(u64).range(0..=100_000))]
    pub busy_poll_us: u64,
    /// Milliseconds that requests under way get to finish after SIGTERM or SIGINT
    #[arg(long, value_name = "MS", default_value_t = 30_000, env = "STATOR_SHUTDOWN_GRACE_MS")]
    pub shutdown_grace_ms: u64,
    /// End as after SIGTERM when standard input is closed: the end of whoever started this process
    #[arg(long, env = "STATOR_END_WITH_STDIN")]
    pub end_with_stdin: bool,
    /// What to log: error, warn, info, debug, trace, or directives such as `info,server=debug`
    #[arg(long, value_name = "LEVEL", default_value = "info", env = "STATOR_LOG_LEVEL")]
    pub log_level: String,
    /// How to log
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = LogFormat::Text)]
    #[arg(env = "STATOR_LOG_FORMAT")]
    pub log_format: LogFormat,
    /// Lines that wait for whoever reads the log; more are dropped and counted
    #[arg(long, value_name = "N", default_value_t = 16_384, env = "STATOR_LOG_BUFFERED_LINES")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    pub log_buffered_lines: u32,
    /// TOML file with any of these flags as keys
    #[arg(long, value_name = "FILE", env = "STATOR_CONFIG")]
    pub config: Option<PathBuf>,
    /// Print the configuration in force, with where each value is from, and end
    #[arg(long)]
    pub dump_config: bool,
    /// Write the configuration in force to a file, as --dump-config prints it, and go on
    #[arg(long, value_name = "FILE", env = "STATOR_DUMP_CONFIG_TO")]
    pub dump_config_to: Option<PathBuf>,
}

/// Reads what names of metrics may begin with.
fn metrics_prefix(text: &str) -> Result<String, String> {
    let is_start = |c: char| c.is_ascii_alphabetic() || c == '_';
    let is_name =
        text.starts_with(is_start) && text.chars().all(|c| is_start(c) || c.is_ascii_digit());
    match is_name {
        true => Ok(text.to_owned()),
        false => Err("expected letters, digits and `_`, and no digit first".to_owned()),
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Returns the number of threads asked for, where 0 means one a core.
pub fn threads(asked: u32) -> usize {
    match asked {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        n => n as usize,
    }
}
