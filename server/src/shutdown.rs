//! The end of the process: signals, and phases that are each bounded.
//!
//! Not ready · no new connections and requests · requests under way finish, at most the grace
//! time · what is left is cancelled. A second signal skips the waiting.

use std::time::Duration;

use engine::Tasks;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

/// What cancelled tasks get to drop what they hold.
const CANCEL_GRACE: Duration = Duration::from_secs(2);

/// Is told when the end is asked for from within.
static ASKED: Notify = Notify::const_new();

/// Asks the process to end, as SIGTERM does.
pub fn ask() {
    ASKED.notify_one();
}

/// Returns when the process is asked to end.
pub(crate) async fn signalled() {
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        tracing::error!("cannot listen for signals; stop the process by SIGKILL");
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = ASKED.notified() => {}
    }
}

/// Waits for the work to finish; returns whether it did within the grace time.
pub(crate) async fn drain(accepting: &Tasks, work: &Tasks, grace: Duration) -> bool {
    accepting.cancel();
    let is_finished = tokio::select! {
        is_finished = work.wait(grace) => is_finished,
        () = signalled() => false,
    };
    work.cancel();
    if !is_finished && !work.wait(CANCEL_GRACE).await {
        tracing::warn!("some requests did not end when they were cancelled");
    }
    is_finished
}
