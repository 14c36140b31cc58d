//! Structured logs to standard error. No prompt, no tensor data and no secret is ever logged.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;

use crate::config::{Invalid, LogFormat};

/// Starts logging for the process.
///
/// Errors: directives that do not parse, or logging that was started before.
pub fn start(level: &str, format: LogFormat) -> Result<(), Invalid> {
    let filter: EnvFilter =
        level.parse().map_err(|error| Invalid(format!("--log-level `{level}`: {error}")))?;
    let builder = fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let result = match format {
        LogFormat::Text => {
            let is_terminal = std::io::stderr().is_terminal();
            builder.with_target(false).with_ansi(is_terminal).try_init()
        }
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    result.map_err(|error| Invalid(format!("cannot start logging: {error}")))
}
