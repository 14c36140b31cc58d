//! The role that starts others: workers and a frontend as processes of this machine.
//!
//! A process that ends is started again, later each time; one that refuses its first start ends the
//! fleet. The end is in order: the frontend first,
//! which lets its requests finish, then the workers. Processes end by themselves when this one is
//! killed, since each reads its standard input.

mod config;
mod journal;
mod replica;

use std::time::Duration;

use tokio::time::{Instant, interval, sleep};

pub use config::UpConfig;
use journal::Journal;
use replica::Replica;

use crate::roles::serve::ServeError;
use crate::roles::shutdown;

/// How often processes are looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// What a process gets beyond its own time to finish requests, before it is killed.
const END_MARGIN: Duration = Duration::from_secs(10);

/// How long the last words of a process may take to be read.
const WORDS_WAIT: Duration = Duration::from_secs(1);

/// Runs a fleet until a signal comes, or none of its workers or no frontend can be kept running.
pub async fn run(config: UpConfig) -> Result<(), ServeError> {
    let failed = |what: &str, error: std::io::Error| ServeError::Start(format!("{what}: {error}"));
    let discovery = tempfile::tempdir().map_err(|error| failed("the discovery folder", error))?;
    let folder = &config.log_dir;
    std::fs::create_dir_all(folder)
        .map_err(|error| failed(&format!("the log folder `{}`", folder.display()), error))?;
    let mut fleet = Vec::new();
    for role in config.roles(discovery.path()) {
        let journal = Journal::open(folder, &role.name, config.log_format)
            .map_err(|error| failed("a log file", error))?;
        fleet.push(Replica::new(role, journal));
    }
    tracing::info!(workers = config.workers(), logs = %folder.display(), "starting a fleet");
    let outcome = tokio::select! {
        why = keep(&mut fleet) => Err(ServeError::Start(why)),
        () = shutdown::signalled() => Ok(()),
    };
    tracing::info!("ending the fleet: requests under way may finish");
    let is_cut_off = tokio::select! {
        () = end(&mut fleet, config.shutdown_grace + END_MARGIN) => false,
        () = shutdown::signalled() => true,
    };
    if is_cut_off {
        tracing::warn!("processes are killed");
        fleet.iter_mut().for_each(Replica::kill);
    }
    // The last word here is the last one of all.
    read(&fleet).await;
    outcome
}

/// Keeps the processes running; returns why that cannot be done any longer.
async fn keep(fleet: &mut [Replica]) -> String {
    let mut looks = interval(LOOK_INTERVAL);
    loop {
        looks.tick().await;
        let now = Instant::now();
        fleet.iter_mut().for_each(|replica| replica.look(now));
        if let Some(refused) = fleet.iter().find(|replica| replica.is_refused()) {
            return refusal(refused).await;
        }
        let (workers, frontends): (Vec<_>, Vec<_>) =
            fleet.iter().partition(|replica| replica.is_worker());
        for part in [workers, frontends] {
            if let Some(last) = part.last().filter(|_| part.iter().all(|one| one.is_given_up())) {
                let (name, log) = (last.name(), last.log());
                return format!("{name} cannot be kept running; its log is {}", log.display());
            }
        }
    }
}

/// Returns why a process refused to start, once it is read.
async fn refusal(refused: &Replica) -> String {
    read(std::slice::from_ref(refused)).await;
    refused.refusal()
}

/// Waits until what processes said is read, for a moment at most.
async fn read(fleet: &[Replica]) {
    let until = Instant::now() + WORDS_WAIT;
    while !fleet.iter().all(Replica::is_read) && Instant::now() < until {
        sleep(LOOK_INTERVAL).await;
    }
}

/// Ends the frontend and then the workers; each kind within a time.
async fn end(fleet: &mut [Replica], within: Duration) {
    for is_worker in [false, true] {
        let until = Instant::now() + within;
        let mut part: Vec<&mut Replica> =
            fleet.iter_mut().filter(|replica| replica.is_worker() == is_worker).collect();
        part.iter_mut().for_each(|replica| replica.ask_to_end());
        while part.iter_mut().any(|replica| replica.is_running()) && Instant::now() < until {
            sleep(LOOK_INTERVAL).await;
        }
        part.iter_mut().for_each(|replica| replica.kill());
    }
}
