//! The end of the process: signals, and phases that are each bounded.
//!
//! Not ready · no new connections · a moment later no new requests: until then clients may not know
//! that they are to go elsewhere · requests under way finish, at most the grace time · what is left
//! is answered by an error, and cancelled a moment later. A second signal skips the waiting.

use std::time::Duration;

use engine::Tasks;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

use crate::surfaces::listener::Ends;

/// How long connections take to hear that they end; requests that come by then are served.
const FAREWELL: Duration = Duration::from_millis(500);

/// How long the errors that end requests have to reach their clients.
const FLUSH: Duration = Duration::from_secs(1);

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

/// Returns how long requests are still taken in a shutdown of at most `grace`.
pub(crate) fn farewell(grace: Duration) -> Duration {
    FAREWELL.min(grace / 2)
}

/// Ends the accepting of connections at once and of requests a moment later, and waits for the work
/// to finish; returns whether it did within the grace time.
pub(crate) async fn drain(ends: &Ends, admitting: &Tasks, grace: Duration) -> bool {
    let Ends { accepting, answering, work } = ends;
    accepting.cancel();
    let refuse = async {
        tokio::time::sleep(farewell(grace)).await;
        admitting.cancel();
        std::future::pending().await
    };
    let is_finished = tokio::select! {
        is_finished = work.wait(grace) => is_finished,
        is_finished = refuse => is_finished,
        () = signalled() => false,
    };
    admitting.cancel();
    answering.cancel();
    let has_ended = is_finished || work.wait(FLUSH).await;
    work.cancel();
    if !has_ended && !work.wait(CANCEL_GRACE).await {
        tracing::warn!("some requests did not end when they were cancelled");
    }
    is_finished
}
