//! Pings that find a peer that is gone without a word.

use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::time::{sleep, timeout};

/// When to ask whether the other end is still there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Keepalive {
    pub(super) interval: Duration,
    pub(super) timeout: Duration,
}

/// Pings until an answer does not come in time; ends then, and never otherwise.
pub(super) async fn until_silent(pings: Option<PingPong>, keepalive: Keepalive) {
    let Some(mut pings) = pings else {
        return std::future::pending().await;
    };
    loop {
        sleep(keepalive.interval).await;
        match timeout(keepalive.timeout, pings.ping(Ping::opaque())).await {
            Ok(Ok(_)) => {}
            // The connection's own end says what is wrong.
            Ok(Err(_)) => return std::future::pending().await,
            Err(_) => return,
        }
    }
}
