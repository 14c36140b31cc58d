//! The `stator` binary: arguments, configuration, logs, runtime, then the role until its end.

use std::io::Write;
use std::process::ExitCode;

use server::args::{
    self, Action, BenchAction, DoctorArgs, Given, Note, Parsed, ProcessArgs, threads,
};
use server::cli::{bench, chat, doctor};
use server::roles::serve::{self, ServeError};
use server::roles::up::{self, UpConfig};
use server::roles::worker::{self, WorkerConfig};
use server::roles::{Config, computed, shutdown};
use server::security::{self, Minted};
use server::support::telemetry;
use server::surfaces::pages;

/// Messages of a mebibyte come and go: the system's allocator would map and unmap each of them,
/// and keep what a burst of them left behind. `.cargo/config.toml` says how this one is built.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let Parsed { action, given } = match args::parse() {
        Ok(parsed) => parsed,
        Err(error) => error.exit(),
    };
    let done = match &action {
        Action::Serve(args) => match args.process.dump_config {
            true => print(&given.dump("serve", &computed())),
            false => Config::from_args(args).map_err(Into::into).and_then(|config| {
                write_dump("serve", &args.process, &given)?;
                start(&args.process, &given.notes, |log| serve::run(config, log))
            }),
        },
        Action::Up(args) => match args.process.dump_config {
            true => print(&given.dump("up", &computed())),
            false => {
                UpConfig::from_args(args, &given.matches).map_err(Into::into).and_then(|config| {
                    write_dump("up", &args.process, &given)?;
                    start(&args.process, &given.notes, |_| up::run(config))
                })
            }
        },
        Action::Worker(args) => match args.process.dump_config {
            true => print(&given.dump("worker", &computed())),
            false => WorkerConfig::from_args(args).map_err(Into::into).and_then(|config| {
                write_dump("worker", &args.process, &given)?;
                start(&args.process, &given.notes, |_| worker::work(config))
            }),
        },
        Action::Frontend(args) => match args.process.dump_config {
            true => print(&given.dump("frontend", &computed())),
            false => Config::of_frontend(args).map_err(Into::into).and_then(|config| {
                write_dump("frontend", &args.process, &given)?;
                start(&args.process, &given.notes, |log| serve::run(config, log))
            }),
        },
        Action::Key(key) => security::mint(&key.name, &key.scopes, &key.models)
            .map_err(Into::into)
            .and_then(|minted| hand_over(&minted)),
        Action::Bench(BenchAction::Engine(args)) => {
            bench::engine(args).and_then(|text| print(&text))
        }
        Action::Doctor(args) => return consult(args),
        Action::Openapi => print(&format!("{:#}\n", pages::document())),
        Action::Chat(args) => return chat::run(args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&*error),
    }
}

/// Prints what `stator doctor` found; a thing that does not work is a failure.
fn consult(args: &DoctorArgs) -> ExitCode {
    let report = match doctor::examine(args) {
        Ok(report) => report,
        Err(error) => return failed(&error),
    };
    match print(&report.to_string()) {
        Ok(()) if report.is_healthy() => ExitCode::SUCCESS,
        Ok(()) => ExitCode::FAILURE,
        Err(error) => failed(&*error),
    }
}

fn failed(error: &dyn std::error::Error) -> ExitCode {
    telemetry::last_words(format!("stator: {error}\n"));
    ExitCode::FAILURE
}

/// The entry can be redirected to a file; the key is for the eyes alone.
fn hand_over(minted: &Minted) -> Result<(), Box<dyn std::error::Error>> {
    writeln!(std::io::stderr(), "The key, which is shown this once: {}", minted.key)?;
    print(&minted.entry)
}

fn print(text: &str) -> Result<(), Box<dyn std::error::Error>> {
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}

/// Writes the configuration in force to the file of `--dump-config-to`, if there is one.
fn write_dump(
    role: &str,
    process: &ProcessArgs,
    given: &Given,
) -> Result<(), Box<dyn std::error::Error>> {
    let Some(path) = &process.dump_config_to else { return Ok(()) };
    std::fs::write(path, given.dump(role, &computed()))
        .map_err(|error| format!("--dump-config-to: cannot write `{}`: {error}", path.display()))?;
    Ok(())
}

/// Starts logs and the runtime, and plays a role in it to its end.
fn start<F>(
    process: &ProcessArgs,
    notes: &[Note],
    role: impl FnOnce(telemetry::Logging) -> F,
) -> Result<(), Box<dyn std::error::Error>>
where
    F: Future<Output = Result<(), ServeError>>,
{
    let most = process.log_buffered_lines as usize;
    let (logging, _writer) = telemetry::start(&process.log_level, process.log_format, most)?;
    for note in notes {
        match note.is_warning {
            true => tracing::warn!("{}", note.text),
            false => tracing::info!("{}", note.text),
        }
    }
    if process.end_with_stdin {
        std::thread::Builder::new().name("stdin".to_owned()).spawn(|| {
            let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
            shutdown::ask();
        })?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads(process.runtime_threads))
        .thread_name("stator-io")
        .enable_all()
        .build()?;
    runtime.block_on(role(logging))?;
    runtime.shutdown_background();
    Ok(())
}
