//! The `stator` binary: arguments, configuration, logs, runtime, then the role until its end.

use std::io::Write;
use std::process::ExitCode;

use server::args::{self, Action, BenchAction, ServeArgs};
use server::config::{Config, threads};
use server::security::{self, Minted};
use server::{bench, chat, pages, serve, telemetry};

/// Messages of a mebibyte come and go: the system's allocator would map and unmap each of them,
/// and keep what a burst of them left behind. `.cargo/config.toml` says how this one is built.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let (action, matches) = match args::parse() {
        Ok(parsed) => parsed,
        Err(error) => error.exit(),
    };
    let done = match &action {
        Action::Serve(args) if args.process.dump_config => print(&args::dump(&matches)),
        Action::Serve(args) => start(args),
        Action::Key(key) => security::mint(&key.name, &key.scopes, &key.models)
            .map_err(Into::into)
            .and_then(|minted| hand_over(&minted)),
        Action::Bench(BenchAction::Engine(args)) => {
            bench::engine(args).and_then(|text| print(&text))
        }
        Action::Openapi => print(&format!("{:#}\n", pages::document())),
        Action::Chat(args) => return chat::run(args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "stator: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The entry can be redirected to a file; the key is for the eyes alone.
fn hand_over(minted: &Minted) -> Result<(), Box<dyn std::error::Error>> {
    writeln!(std::io::stderr(), "The key, which is shown this once: {}", minted.key)?;
    print(&minted.entry)
}

fn print(text: &str) -> Result<(), Box<dyn std::error::Error>> {
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}

fn start(args: &ServeArgs) -> Result<(), Box<dyn std::error::Error>> {
    let config = Config::from_args(args)?;
    let logging = telemetry::start(&args.process.log_level, args.process.log_format)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads(args.process.runtime_threads))
        .thread_name("stator-io")
        .enable_all()
        .build()?;
    runtime.block_on(serve::run(config, logging))?;
    runtime.shutdown_background();
    Ok(())
}
