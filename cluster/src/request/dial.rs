//! Opens one connection to a worker and keeps it to its end.
//!
//! It is a task of its own, so that it belongs to no caller: who waits may go away, and what
//! became of it is known all the same. The connection's future is its life, so whoever watches
//! the state hears of a worker's end in the moment in which the operating system does, or a
//! ping's time after a partition.

use std::sync::{Arc, Weak};

use bytes::Bytes;
use h2::client::{Builder, Connection, SendRequest};
use h2::{Ping, PingPong};
use tokio::sync::watch;
use tokio::time::timeout;

use super::answer::is_network_down;
use super::connector::Io;
use super::keepalive::{Asks, Heard, Keepalive, Listened, until_silent};
use super::link::{Live, Slot};
use super::peer::Peer;

/// The widest window that HTTP/2 has.
const MAX_WINDOW_BYTES: u32 = (1 << 31) - 1;

/// Largest header list of an answer, in bytes.
const MAX_HEADER_LIST_BYTES: u32 = 64 << 10;

/// How opening a connection went; none: it is not over.
pub(super) type Outcome = Option<Result<Live, String>>;

/// A connection to open.
pub(super) struct Dial {
    pub(super) peer: Arc<Peer>,
    pub(super) window_bytes: u32,
    /// Its place. Only whoever calls holds that, so that the connection ends with them.
    pub(super) slot: Weak<Slot>,
    pub(super) number: u64,
    pub(super) outcome: watch::Sender<Outcome>,
}

type OpenConnection = Connection<Listened<Box<dyn Io>>, Bytes>;
type Opening = (SendRequest<Bytes>, OpenConnection, (PingPong, Heard));

impl Dial {
    /// Opens the connection, tells everybody who waits, and keeps it to its end.
    pub(super) async fn run(self) {
        match self.open().await {
            Ok(opening) => self.keep(opening).await,
            Err(why) => {
                if let Some(slot) = self.slot.upgrade() {
                    slot.fail(&why, &self.peer.config);
                }
                self.peer.failed();
                self.outcome.send_replace(Some(Err(why)));
            }
        }
    }

    async fn open(&self) -> Result<Opening, String> {
        let limit = self.peer.config.connect_timeout;
        let opened = timeout(limit, async {
            let io = self.peer.connector.connect().await.map_err(|error| error.to_string())?;
            let (io, heard) = Listened::new(io);
            let opened = builder(&self.peer, self.window_bytes).handshake(io).await;
            let (sender, mut connection) = opened.map_err(|error| error.to_string())?;
            let no_pings = || "the connection has no pings".to_owned();
            let mut pings = connection.ping_pong().ok_or_else(no_pings)?;
            // What listens need not be a worker that lives. An answer says so, and the worker's
            // settings came before it.
            tokio::select! {
                result = &mut connection => match result {
                    Ok(()) => return Err("the connection ended at once".to_owned()),
                    Err(error) => return Err(error.to_string()),
                },
                pong = pings.ping(Ping::opaque()) => pong.map_err(|error| error.to_string())?,
            };
            Ok((sender, connection, (pings, heard)))
        });
        opened.await.unwrap_or_else(|_| Err(format!("no answer within {limit:?}")))
    }

    async fn keep(self, (sender, connection, (pings, heard)): Opening) {
        let Self { peer, slot, number, outcome, .. } = self;
        let mut opened = peer.opened();
        let live = Live::new(sender, number);
        let Some(place) = slot.upgrade() else { return };
        place.set(live.clone());
        outcome.send_replace(Some(Ok(live)));
        // What is held here would keep the connection open.
        drop((place, outcome));
        let config = &peer.config;
        let keepalive =
            Keepalive { interval: config.keepalive_interval, timeout: config.keepalive_timeout };
        let has_calls = || peer.calls.taken() > 0;
        let address = peer.connector.address();
        tracing::debug!(address, "connected to a worker");
        let silent = async {
            until_silent(Some(pings), keepalive, (heard, Asks::Always), has_calls).await;
            peer.connector.settle().await;
        };
        // What ends the task drops the connection, which ends all its calls. How it ended by itself
        // says more than that it is silent.
        tokio::select! {
            biased;
            result = connection => match result {
                Ok(()) => tracing::debug!(address, "the connection to a worker ended"),
                Err(error) if is_network_down(&error) => {
                    tracing::debug!(address, %error, "the way to a worker was lost");
                    opened.spare_worker();
                }
                Err(error) => tracing::warn!(address, %error, "lost a worker"),
            },
            () = silent => {
                tracing::warn!(address, "lost a worker: it is silent");
            }
        }
        if let Some(slot) = slot.upgrade() {
            slot.forget(number);
        }
        drop(opened);
    }
}

/// Returns the window of each of a connection's streams: what was wished for, or less, so that
/// all of them together fit into the connection's window. Were that one narrower, readers that
/// do not read would stop everybody.
pub(super) fn stream_window(wished_bytes: u32, max_in_flight: usize) -> u32 {
    wished_bytes.min(MAX_WINDOW_BYTES / streams(max_in_flight))
}

fn streams(max_in_flight: usize) -> u32 {
    u32::try_from(max_in_flight).unwrap_or(MAX_WINDOW_BYTES).clamp(1, MAX_WINDOW_BYTES)
}

fn builder(peer: &Peer, window_bytes: u32) -> Builder {
    let config = &peer.config;
    let mut builder = Builder::new();
    builder
        .enable_push(false)
        .initial_window_size(window_bytes)
        .initial_connection_window_size(
            window_bytes.saturating_mul(streams(config.max_in_flight)).min(MAX_WINDOW_BYTES),
        )
        // Windows bound what is not read yet; a worker's small frames are no attack.
        .data_frame_budget(usize::MAX >> 1)
        .max_frame_size(config.max_frame_bytes)
        .max_header_list_size(MAX_HEADER_LIST_BYTES)
        // Calls are cancelled all the time, and answers cross the cancellation.
        .max_concurrent_reset_streams(config.max_in_flight)
        .max_local_error_reset_streams(None);
    builder
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_streams_together_fit_into_a_connections_window() {
        let table = [
            (2 << 20, 100, 2 << 20),
            (2 << 20, 4096, (512 << 10) - 1),
            (64 << 10, 4096, 64 << 10),
            (64 << 10, 0, 64 << 10),
            (64 << 10, usize::MAX, 1),
        ];
        for (wished, max_in_flight, window) in table {
            assert_eq!(stream_window(wished, max_in_flight), window);
        }
    }
}
