//! Looks at the files of certificates and keys: every few seconds, and at SIGHUP.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use super::Security;

/// Refreshes what is in force, for ever.
pub(super) async fn watch(security: Security, interval: Option<Duration>) {
    let mut hangup = match signal(SignalKind::hangup()) {
        Ok(hangup) => Some(hangup),
        Err(error) => {
            tracing::warn!(%error, "cannot listen for SIGHUP");
            None
        }
    };
    loop {
        let hung_up = async {
            match &mut hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        let passed = async {
            match interval {
                Some(interval) => tokio::time::sleep(interval).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = hung_up => {}
            () = passed => {}
        }
        let security = security.clone();
        // Files may lie on a slow disk.
        let _ = tokio::task::spawn_blocking(move || refresh(&security)).await;
    }
}

fn refresh(security: &Security) {
    if let Some(tls) = &security.tls {
        tell("certificates", tls.refresh());
    }
    if let Some(keys) = &security.keys {
        tell("API keys", keys.refresh());
    }
}

fn tell(what: &'static str, refreshed: Result<bool, String>) {
    match refreshed {
        Ok(false) => {}
        Ok(true) => tracing::info!(what, "read again"),
        Err(why) => tracing::warn!(what, why, "cannot be read again; the old ones stay in force"),
    }
}
