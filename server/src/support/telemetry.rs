//! Structured logs to standard error, and the switches that a client may turn while it runs. No
//! prompt, no tensor data and no secret is ever logged.
//!
//! A thread of its own writes, so that nothing waits for whoever reads; what does not fit into its
//! queue is dropped and counted.

use std::collections::HashMap;
use std::fmt;
use std::io::{IsTerminal, Write};
use std::panic;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError, mpsc};
use std::time::Duration;

use engine::{Error, ErrorKind, Flood, Result};
use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Level, Metadata};
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::layer::{Context, Filter, SubscriberExt};
use tracing_subscriber::reload::{self, Handle};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt as log};

use crate::args::LogFormat;
use crate::support::invalid::Invalid;

/// Libraries that are not heard. One tells of each attempt to connect and names no server:
/// `cluster::nats` tells what there is to know. The other warns of every odd frame that a client
/// sends.
const QUIET: [&str; 2] = ["async_nats", "h2"];

/// How long the last words of a process may wait for whoever reads them.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_secs(1);

/// Counts the lines that were dropped, since the process began to log.
static DROPPED: OnceLock<ErrorCounter> = OnceLock::new();

/// The panics of the process.
static PANICS: LazyLock<Mutex<Flood>> = LazyLock::new(Mutex::default);

/// The value of a log setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LogValue {
    Bool(bool),
    Number(u32),
    Text(String),
}

/// The logging of the process, which may be changed at any time.
#[derive(Clone, Debug)]
pub struct Logging {
    switches: Arc<Mutex<Switches>>,
    has_short_time: Arc<AtomicBool>,
    /// None in a process whose logging is somebody else's, such as a test.
    filter: Option<Handle<LogFilter, Registry>>,
}

/// What is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Switches {
    error: bool,
    warning: bool,
    info: bool,
    /// 1 logs what helps to find a fault, 2 and more everything.
    verbose: u32,
}

impl Default for Logging {
    fn default() -> Self {
        let switches = Switches { error: true, warning: true, info: true, verbose: 0 };
        let switches = Arc::new(Mutex::new(switches));
        Self { switches, has_short_time: Arc::default(), filter: None }
    }
}

/// Starts logging for the process, with at most so many lines in the queue of the thread that
/// writes. The guard's end waits a moment for what is in the queue.
///
/// Errors: directives that do not parse, or logging that was started before.
pub fn start(
    level: &str,
    format: LogFormat,
    max_lines: usize,
) -> std::result::Result<(Logging, WorkerGuard), Invalid> {
    let filter = directives(level)?;
    let logging = Logging::default();
    let highest = filter.max_level_hint().and_then(|hint| hint.into_level());
    logging.set(Switches {
        error: highest.is_some(),
        warning: highest >= Some(Level::WARN),
        info: highest >= Some(Level::INFO),
        verbose: match highest {
            Some(Level::TRACE) => 2,
            Some(Level::DEBUG) => 1,
            _ => 0,
        },
    });
    let all = Switches { error: true, warning: true, info: true, verbose: 2 };
    let (filter, handle) = reload::Layer::new(LogFilter { switches: all, directives: filter });
    let time = Clock(logging.has_short_time.clone());
    let (writer, guard) = NonBlockingBuilder::default()
        .buffered_lines_limit(max_lines)
        .thread_name("log")
        .finish(std::io::stderr());
    let _ = DROPPED.set(writer.error_counter());
    let builder = log::layer().with_writer(writer).with_timer(time);
    let layer = match format {
        LogFormat::Text => {
            let is_terminal = std::io::stderr().is_terminal();
            builder.with_target(false).with_ansi(is_terminal).boxed()
        }
        LogFormat::Json => builder.json().flatten_event(true).boxed(),
    };
    let started = tracing_subscriber::registry().with(layer.with_filter(filter)).try_init();
    started.map_err(|error| Invalid(format!("cannot start logging: {error}")))?;
    panic::set_hook(Box::new(log_panic));
    Ok((Logging { filter: Some(handle), ..logging }, guard))
}

/// Logs a panic like any other fault: written as usual, it would wait for whoever reads the log.
/// Clients may be able to cause many, so that one is told of now and then.
fn log_panic(panic: &panic::PanicHookInfo<'_>) {
    let admitted = PANICS.lock().unwrap_or_else(PoisonError::into_inner).admit();
    let Some(untold) = admitted else { return };
    let message = unquoted(panic.payload_as_str().unwrap_or("no text"));
    let place = panic.location().map(tracing::field::display);
    let thread = std::thread::current();
    tracing::error!(place, thread = thread.name(), untold, "panicked: {message}");
}

/// Returns what a panic says before it shows a value, which may be of a prompt.
fn unquoted(message: &str) -> &str {
    message.split(['`', '"', '\'', '\n']).next().unwrap_or_default().trim_end()
}

/// Writes why the process ends, and waits a moment for whoever should read it.
pub fn last_words(text: String) {
    let (done, is_done) = mpsc::sync_channel(1);
    let write = move || {
        let _ = std::io::stderr().write_all(text.as_bytes());
        let _ = done.send(());
    };
    if std::thread::Builder::new().name("last words".into()).spawn(write).is_ok() {
        let _ = is_done.recv_timeout(LAST_WORDS_TIMEOUT);
    }
}

/// Returns how many lines were dropped because nobody took them.
pub(crate) fn dropped_lines() -> u64 {
    DROPPED.get().map_or(0, |counter| counter.dropped_lines() as u64)
}

/// Reads the directives of --log-level.
fn directives(level: &str) -> std::result::Result<EnvFilter, Invalid> {
    let wrong = |error: &dyn fmt::Display| Invalid(format!("--log-level `{level}`: {error}"));
    let filter: EnvFilter = level.parse().map_err(|error| wrong(&error))?;
    // What is asked for by name is shown.
    QUIET.iter().filter(|library| !level.contains(*library)).try_fold(filter, |filter, library| {
        let quiet = format!("{library}=off").parse().map_err(|error| wrong(&error))?;
        Ok(filter.add_directive(quiet))
    })
}

impl Logging {
    fn switches(&self) -> Switches {
        *self.switches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, switches: Switches) {
        *self.switches.lock().unwrap_or_else(PoisonError::into_inner) = switches;
    }

    /// Returns the settings in force, by Triton's names.
    pub(crate) fn settings(&self) -> Vec<(&'static str, LogValue)> {
        let Switches { error, warning, info, verbose } = self.switches();
        let format = if self.has_short_time.load(Relaxed) { "ISO8601" } else { "default" };
        vec![
            ("log_file", LogValue::Text(String::new())),
            ("log_info", LogValue::Bool(info)),
            ("log_warning", LogValue::Bool(warning)),
            ("log_error", LogValue::Bool(error)),
            ("log_verbose_level", LogValue::Number(verbose)),
            ("log_format", LogValue::Text(format.to_owned())),
        ]
    }

    /// Changes settings at once; none of a request with an error is changed.
    ///
    /// Errors: an unknown setting, a value of a wrong type, the file, which cannot be set.
    pub(crate) fn change(&self, changes: HashMap<String, Option<LogValue>>) -> Result<()> {
        let mut in_force = self.switches.lock().unwrap_or_else(PoisonError::into_inner);
        let mut switches = *in_force;
        let mut has_short_time = self.has_short_time.load(Relaxed);
        for (key, value) in changes {
            let wrong = |kind: &str| Error::invalid(format!("expect {kind} for '{key}'"));
            match (key.as_str(), value) {
                ("log_info", Some(LogValue::Bool(value))) => switches.info = value,
                ("log_warning", Some(LogValue::Bool(value))) => switches.warning = value,
                ("log_error", Some(LogValue::Bool(value))) => switches.error = value,
                ("log_info" | "log_warning" | "log_error", _) => return Err(wrong("boolean")),
                ("log_verbose_level", Some(LogValue::Number(value))) => switches.verbose = value,
                ("log_verbose_level", _) => return Err(wrong("int32")),
                ("log_format", Some(LogValue::Text(value))) => match value.as_str() {
                    "default" => has_short_time = false,
                    "ISO8601" => has_short_time = true,
                    other => {
                        let shown: String = other.chars().take(100).collect();
                        return Err(Error::invalid(format!(
                            "invalid argument for log_format, got: {shown}, expected 'default' or \
                             'ISO8601'"
                        )));
                    }
                },
                ("log_format", _) => return Err(wrong("string")),
                ("log_file", _) => {
                    return Err(Error::new(
                        ErrorKind::Unimplemented,
                        "log file location can not be updated through network protocol",
                    ));
                }
                _ => {
                    let shown: String = key.chars().take(100).collect();
                    return Err(Error::invalid(format!("unknown log setting '{shown}'")));
                }
            }
        }
        self.has_short_time.store(has_short_time, Relaxed);
        // The directives of --log-level stay until a level is switched.
        let is_switched = std::mem::replace(&mut *in_force, switches) != switches;
        match &self.filter {
            Some(filter) if is_switched => filter
                .reload(switches.filter())
                .map_err(|error| Error::internal("the log cannot be changed").with_source(error)),
            _ => Ok(()),
        }
    }
}

impl Switches {
    /// Returns whether lines of a level are switched on.
    fn has(self, level: Level) -> bool {
        match level {
            Level::ERROR => self.error,
            Level::WARN => self.warning,
            Level::INFO => self.info,
            Level::DEBUG => self.verbose >= 1,
            Level::TRACE => self.verbose >= 2,
        }
    }

    /// Returns the filter that lets through what is switched on.
    fn filter(self) -> LogFilter {
        LogFilter { switches: self, directives: self.directives() }
    }

    fn directives(self) -> EnvFilter {
        let level = match self {
            Self { verbose: 2.., .. } => "trace",
            Self { verbose: 1, .. } => "debug",
            Self { info: true, .. } => "info",
            Self { warning: true, .. } => "warn",
            Self { error: true, .. } => "error",
            _ => "off",
        };
        // Libraries' own details would drown ours.
        let mut directives = match level {
            "trace" | "debug" => format!("info,server={level},worker={level},engine={level}"),
            level => level.to_owned(),
        };
        for library in QUIET {
            directives.push_str(&format!(",{library}=off"));
        }
        EnvFilter::new(directives)
    }
}

/// What may be logged: what the directives let through, of the levels that are switched on.
#[derive(Debug)]
struct LogFilter {
    switches: Switches,
    directives: EnvFilter,
}

impl<S> Filter<S> for LogFilter {
    fn enabled(&self, metadata: &Metadata<'_>, context: &Context<'_, S>) -> bool {
        self.switches.has(*metadata.level()) && Filter::enabled(&self.directives, metadata, context)
    }

    fn callsite_enabled(&self, metadata: &'static Metadata<'static>) -> Interest {
        match self.switches.has(*metadata.level()) {
            true => Filter::<S>::callsite_enabled(&self.directives, metadata),
            false => Interest::never(),
        }
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Filter::<S>::max_level_hint(&self.directives)
    }
}

/// The time of a log line: with microseconds, or in whole seconds (`ISO8601`).
struct Clock(Arc<AtomicBool>);

impl FormatTime for Clock {
    fn format_time(&self, w: &mut Writer<'_>) -> fmt::Result {
        if !self.0.load(Relaxed) {
            return SystemTime.format_time(w);
        }
        let mut text = String::new();
        SystemTime.format_time(&mut Writer::new(&mut text))?;
        let seconds = text.split('.').next().unwrap_or_default();
        write!(w, "{seconds}Z")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(logging: &Logging, key: &str, value: LogValue) -> Result<()> {
        logging.change(HashMap::from([(key.to_owned(), Some(value))]))
    }

    #[test]
    fn a_panic_shows_no_values() {
        let table = [
            ("index out of bounds: the len is 1 but the index is 2", None),
            (
                "start byte index 1 is not a char boundary; it is inside 'é' of `a secret`",
                Some("start byte index 1 is not a char boundary; it is inside"),
            ),
            ("called `Option::unwrap()` on a `None` value", Some("called")),
            ("no such key \"a secret\"", Some("no such key")),
            ("`a secret`", Some("")),
        ];
        for (message, shown) in table {
            assert_eq!(unquoted(message), shown.unwrap_or(message));
        }
    }

    #[test]
    fn settings_change_or_say_why_not() {
        let logging = Logging::default();
        change(&logging, "log_verbose_level", LogValue::Number(1)).unwrap();
        change(&logging, "log_format", LogValue::Text("ISO8601".into())).unwrap();
        assert!(logging.settings().contains(&("log_verbose_level", LogValue::Number(1))));
        assert!(logging.settings().contains(&("log_format", LogValue::Text("ISO8601".into()))));
        let table = [
            ("log_info", LogValue::Number(1), ErrorKind::InvalidRequest),
            ("log_verbose_level", LogValue::Bool(true), ErrorKind::InvalidRequest),
            ("log_format", LogValue::Text("loud".into()), ErrorKind::InvalidRequest),
            ("log_colour", LogValue::Bool(true), ErrorKind::InvalidRequest),
            ("log_file", LogValue::Text("/tmp/x".into()), ErrorKind::Unimplemented),
        ];
        for (key, value, kind) in table {
            assert_eq!(change(&logging, key, value).unwrap_err().kind(), kind, "{key}");
        }
    }

    #[test]
    fn the_filter_follows_the_switches() {
        let all = Switches { error: true, warning: true, info: true, verbose: 0 };
        let level = |switches: Switches| switches.directives().to_string();
        assert_eq!(level(all), "async_nats=off,h2=off,info");
        assert_eq!(level(Switches { info: false, ..all }), "async_nats=off,h2=off,warn");
        assert!(level(Switches { verbose: 1, ..all }).contains("server=debug"));
        let none = Switches { error: false, warning: false, info: false, verbose: 0 };
        assert_eq!(level(none), "async_nats=off,h2=off,off");
    }

    #[test]
    fn a_loud_library_is_heard_by_its_name_alone() {
        let read = |level: &str| directives(level).unwrap().to_string();
        assert_eq!(read("debug"), "async_nats=off,h2=off,debug");
        assert_eq!(read("info,async_nats=info"), "async_nats=info,h2=off,info");
        assert!(directives("server=loud").unwrap_err().to_string().contains("--log-level"));
    }
}
