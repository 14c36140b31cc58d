//! The `stator` binary: arguments, configuration, logs, runtime, then the role until its end.

use std::io::Write;
use std::process::ExitCode;

use server::args::{self, Action, ServeArgs};
use server::config::{Config, threads};
use server::{chat, pages, serve, telemetry};

/// Messages of a mebibyte come and go: the system's allocator would map and unmap each of them,
/// and keep what a burst of them left behind. `.cargo/config.toml` says how this one is built.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    match args::parse() {
        Err(error) => error.exit(),
        Ok((Action::Serve(args), matches)) if args.process.dump_config => {
            print(&args::dump(&matches))
        }
        Ok((Action::Serve(args), _)) => match start(&args) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                let _ = writeln!(std::io::stderr(), "stator: {error}");
                ExitCode::FAILURE
            }
        },
        Ok((Action::Chat(args), _)) => chat::run(&args),
        Ok((Action::Openapi, _)) => print(&format!("{:#}\n", pages::document())),
    }
}

fn print(text: &str) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
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
