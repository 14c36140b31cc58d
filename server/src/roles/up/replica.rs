//! One process of a fleet: started, started again when it ends, ended.

use std::ffi::OsString;
use std::io::pipe;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::time::Instant;

use super::journal::Journal;

/// The wait before the first new start; it doubles from one to the next.
const FIRST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// A process that ran so long is well: its next end is a first one.
const WELL_AFTER: Duration = Duration::from_secs(30);

/// Ends one after the other without having run well after which a process is given up.
const MAX_ENDS: u32 = 10;

/// The statuses by which a process says that it cannot do what it is told, and so will never start:
/// those of `main` and of the command line.
const REFUSALS: [i32; 2] = [1, 2];

/// What a process is started with.
#[derive(Clone, Debug)]
pub(super) struct Role {
    pub name: String,
    pub program: PathBuf,
    pub arguments: Vec<OsString>,
    pub variables: Vec<(String, String)>,
    /// Variables that it is not to take from here.
    pub withheld: Vec<OsString>,
    pub is_worker: bool,
}

/// A process.
#[derive(Debug)]
pub(super) struct Replica {
    role: Role,
    journal: Journal,
    state: State,
    /// Ends without having run well.
    ends: u32,
    starts: u32,
    /// The thread that reads what the process says.
    reader: Option<JoinHandle<()>>,
}

#[derive(Debug)]
enum State {
    Running(Child, Instant),
    /// Started when the time has come.
    Waiting(Instant),
    GivenUp,
    /// It refused its first start.
    Refused,
}

impl Replica {
    /// Makes a process that is started at the next look.
    pub(super) fn new(role: Role, journal: Journal) -> Self {
        let state = State::Waiting(Instant::now());
        Self { role, journal, state, ends: 0, starts: 0, reader: None }
    }

    pub(super) fn name(&self) -> &str {
        &self.role.name
    }

    pub(super) fn log(&self) -> &Path {
        self.journal.path()
    }

    pub(super) fn is_worker(&self) -> bool {
        self.role.is_worker
    }

    pub(super) fn is_given_up(&self) -> bool {
        matches!(self.state, State::GivenUp)
    }

    /// Returns whether it refused its first start, so that another one would be as vain.
    pub(super) fn is_refused(&self) -> bool {
        matches!(self.state, State::Refused)
    }

    /// Returns whether all is read that the process said.
    pub(super) fn is_read(&self) -> bool {
        self.reader.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Returns why it refused to start, in its own words if it had any.
    pub(super) fn refusal(&self) -> String {
        let said = self.journal.reason();
        let said = said.unwrap_or_else(|| format!("see {}", self.journal.path().display()));
        format!("{}: {said}", self.role.name)
    }

    /// Returns whether it runs.
    pub(super) fn is_running(&mut self) -> bool {
        match &mut self.state {
            State::Running(child, _) => matches!(child.try_wait(), Ok(None)),
            State::Waiting(_) | State::GivenUp | State::Refused => false,
        }
    }

    /// Starts it if it does not run and may be started.
    pub(super) fn look(&mut self, now: Instant) {
        match &mut self.state {
            State::Running(child, since) => {
                let Ok(Some(status)) = child.try_wait() else { return };
                if self.starts == 1 && is_refusal(status) {
                    self.state = State::Refused;
                    return;
                }
                let lived = now - *since;
                self.ended(now, lived, &status.to_string());
            }
            State::Waiting(until) if *until <= now => match self.start() {
                Ok(child) => {
                    tracing::info!(replica = self.role.name, pid = child.id(), "process started");
                    self.state = State::Running(child, now);
                }
                Err(error) => self.ended(now, Duration::ZERO, &error.to_string()),
            },
            State::Waiting(_) | State::GivenUp | State::Refused => {}
        }
    }

    /// Decides when it is started again.
    fn ended(&mut self, now: Instant, lived: Duration, how: &str) {
        self.ends = if lived >= WELL_AFTER { 1 } else { self.ends + 1 };
        let replica = &self.role.name;
        if self.ends >= MAX_ENDS {
            tracing::error!(replica, how, ends = self.ends, "process ended too often: given up");
            self.state = State::GivenUp;
            return;
        }
        let wait = wait(self.ends);
        tracing::warn!(replica, how, again_in = ?wait, "process ended: it is started again");
        self.state = State::Waiting(now + wait);
    }

    fn start(&mut self) -> std::io::Result<Child> {
        self.starts += 1;
        let (reader, writer) = pipe()?;
        let mut command = Command::new(&self.role.program);
        command
            .args(&self.role.arguments)
            .envs(self.role.variables.iter().map(|(name, value)| (name, value)))
            // The file's settings are passed on as flags.
            .env_remove("STATOR_CONFIG")
            .stdin(Stdio::piped())
            .stdout(writer.try_clone()?)
            .stderr(writer)
            // A Ctrl-C in the terminal is for this process, which ends the others in order.
            .process_group(0);
        for name in &self.role.withheld {
            command.env_remove(name);
        }
        let child = command.spawn()?;
        // The last ends of the pipe that can be written to are the child's.
        drop(command);
        self.reader = Some(self.journal.follow(reader)?);
        Ok(child)
    }

    /// Tells it to let its requests finish and end.
    pub(super) fn ask_to_end(&mut self) {
        if let State::Running(child, _) = &mut self.state {
            drop(child.stdin.take());
        }
    }

    /// Ends it now.
    pub(super) fn kill(&mut self) {
        if let State::Running(child, _) = &mut self.state {
            if matches!(child.try_wait(), Ok(None)) {
                tracing::warn!(replica = self.role.name, "process did not end: killed");
            }
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.kill();
    }
}

fn is_refusal(status: ExitStatus) -> bool {
    status.code().is_some_and(|code| REFUSALS.contains(&code))
}

/// Returns the wait after so many ends.
fn wait(ends: u32) -> Duration {
    FIRST_WAIT.saturating_mul(1 << ends.saturating_sub(1).min(16)).min(LONGEST_WAIT)
}

#[cfg(test)]
mod tests {
    use crate::args::LogFormat;

    use super::*;

    fn replica(folder: &Path, program: &str) -> Replica {
        let role = Role {
            name: "worker-0".into(),
            program: program.into(),
            arguments: Vec::new(),
            variables: Vec::new(),
            withheld: Vec::new(),
            is_worker: true,
        };
        Replica::new(role, Journal::open(folder, "worker-0", LogFormat::Json).unwrap())
    }

    #[test]
    fn waits_grow_up_to_a_bound() {
        let waits: Vec<u128> = [1, 2, 3, 6, 7, 100].map(|ends| wait(ends).as_millis()).into();
        assert_eq!(waits, [250, 500, 1000, 8000, 10_000, 10_000]);
    }

    #[test]
    fn a_process_that_ends_is_started_again_and_given_up_in_the_end() {
        for program in ["/bin/true", "/nowhere/stator"] {
            let folder = tempfile::tempdir().unwrap();
            let mut replica = replica(folder.path(), program);
            let (mut now, mut looks) = (Instant::now(), 0);
            while !replica.is_given_up() {
                replica.look(now);
                while replica.is_running() {}
                now += Duration::from_secs(10);
                looks += 1;
                assert!(looks < 100, "{replica:?}");
            }
            assert_eq!(replica.ends, MAX_ENDS);
        }
    }

    #[test]
    fn a_refused_first_start_is_the_last_one() {
        let folder = tempfile::tempdir().unwrap();
        let mut replica = replica(folder.path(), "/bin/sh");
        let words = "echo 'stator: model `a`: no file'; echo more; exit 1";
        replica.role.arguments = vec!["-c".into(), words.into()];
        let now = Instant::now();
        replica.look(now);
        while replica.is_running() || !replica.is_read() {}
        replica.look(now);
        assert!(replica.is_refused());
        assert_eq!(replica.refusal(), "worker-0: model `a`: no file");
        replica.look(now + LONGEST_WAIT);
        assert!(replica.is_refused() && replica.starts == 1);
    }

    #[test]
    fn what_ends_after_it_was_started_again_may_be_started_again() {
        let folder = tempfile::tempdir().unwrap();
        let mut replica = replica(folder.path(), "/bin/false");
        replica.starts = 1;
        let now = Instant::now();
        replica.look(now);
        while replica.is_running() {}
        replica.look(now);
        assert!(matches!(replica.state, State::Waiting(_)));
    }

    #[test]
    fn a_process_that_ran_well_begins_anew() {
        let folder = tempfile::tempdir().unwrap();
        let mut replica = replica(folder.path(), "/bin/cat");
        replica.ends = MAX_ENDS - 1;
        let now = Instant::now();
        replica.state = State::Waiting(now);
        replica.look(now);
        assert!(replica.is_running());
        replica.ask_to_end();
        while replica.is_running() {}
        replica.look(now + WELL_AFTER);
        assert!(matches!(replica.state, State::Waiting(_)) && replica.ends == 1);
    }
}
