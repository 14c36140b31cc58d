//! What a fleet on one machine is made of.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ArgMatches;

use super::replica::Role;
use crate::args::{LogFormat, Passed, UpArgs, passed, state_dir, threads, withheld};
use crate::support::invalid::Invalid;

/// The settings that workers and frontends are not given, or not as they are.
const OWN: [&str; 5] = ["discovery", "role", "worker_address", "advertise", "end_with_stdin"];

/// The role of workers that do all of a text.
const AGGREGATED: &str = "aggregated";

/// A fleet on one machine.
#[derive(Clone, Debug)]
pub struct UpConfig {
    /// How many workers there are of each role, as `--role` and logs name them.
    workers: Vec<(&'static str, u32)>,
    pub(super) log_dir: PathBuf,
    pub(super) log_format: LogFormat,
    pub(super) shutdown_grace: Duration,
    program: PathBuf,
    worker: Passed,
    frontend: Passed,
}

impl UpConfig {
    /// Checks the arguments and makes the configuration; `matches` are those of the arguments.
    ///
    /// Errors: [`Invalid`], naming the flag.
    pub fn from_args(args: &UpArgs, matches: &ArgMatches) -> Result<Self, Invalid> {
        let logs = || state_dir().map(|state| state.join("stator").join("logs"));
        let none = || Invalid("--log-dir: no state folder is known; name one".into());
        let log_dir = args.log_dir.clone().or_else(logs).ok_or_else(none)?;
        let program = std::env::current_exe()
            .map_err(|error| Invalid(format!("this program cannot be found: {error}")))?;
        let own = [&OWN[..], &["metrics_port"]].concat();
        let is_shared = args.engine.threads == 0;
        let of_workers = [&own[..], if is_shared { &["threads"] } else { &[] }].concat();
        let split = [("prefill", args.prefill_workers), ("decode", args.decode_workers)];
        let has_split = split.iter().any(|(_, count)| count.is_some());
        if has_split && args.engine.no_prefix_cache {
            let text = "--prefill-workers: what is handed over is the prefix cache; leave \
                        --no-prefix-cache out";
            return Err(Invalid(text.into()));
        }
        let aggregated = args.workers.or((!has_split).then_some(2));
        let workers = [(AGGREGATED, aggregated)].into_iter().chain(split);
        let workers: Vec<_> = workers.filter_map(|(role, count)| Some((role, count?))).collect();
        let count: u32 = workers.iter().map(|(_, count)| count).sum();
        if args.engine.pin_threads && count > 1 {
            let text = "--pin-threads: the workers would keep to the same cores";
            return Err(Invalid(text.into()));
        }
        let mut worker = passed("worker", matches, &of_workers);
        if is_shared {
            let share = (threads(0) / count as usize).max(1);
            worker.flags.insert(0, format!("--threads={share}"));
        }
        // Each takes a free one, which is in its log.
        worker.flags.insert(0, "--metrics-port=0".to_owned());
        Ok(Self {
            workers,
            log_dir,
            log_format: args.process.log_format,
            shutdown_grace: Duration::from_millis(args.process.shutdown_grace_ms),
            program,
            worker,
            frontend: passed("frontend", matches, &OWN),
        })
    }

    /// Returns how many workers there are.
    pub(super) fn workers(&self) -> u32 {
        self.workers.iter().map(|(_, count)| count).sum()
    }

    /// Returns the processes, which find one another in a folder.
    pub(super) fn roles(&self, discovery: &Path) -> Vec<Role> {
        let role = |name: String, role: &str, passed: &Passed| {
            let mut arguments: Vec<OsString> = vec![role.into(), "--end-with-stdin".into()];
            let mut url = OsString::from("--discovery=file://");
            url.push(discovery);
            arguments.push(url);
            arguments.extend(passed.flags.iter().map(OsString::from));
            let (program, variables) = (self.program.clone(), passed.variables.clone());
            let (withheld, is_worker) = (withheld(role, &OWN), role == "worker");
            Role { name, program, arguments, variables, withheld, is_worker }
        };
        let of_role = |&(part, count): &(&'static str, u32)| {
            let named = if part == AGGREGATED { "worker" } else { part };
            (0..count).map(move |number| (part, format!("{named}-{number}")))
        };
        let workers = self.workers.iter().flat_map(of_role);
        let workers = workers.map(|(part, name)| {
            let mut worker = role(name, "worker", &self.worker);
            worker.arguments.insert(1, format!("--role={part}").into());
            worker
        });
        let frontend = role("frontend".to_owned(), "frontend", &self.frontend);
        workers.chain([frontend]).collect()
    }
}
