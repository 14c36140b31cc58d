//! A set of connections to one worker: opened when they are wanted, replaced when they end.
//!
//! A connection is a task that ends with it, so whoever watches the state hears of a worker's end
//! in the moment in which the operating system does, or a ping's time after a partition.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use engine::{Error, ErrorKind, Result, Tasks};
use h2::client::{Builder, Connection, SendRequest};
use tokio::sync::{Mutex as TurnMutex, watch};
use tokio::time::timeout;

use super::ClientConfig;
use super::connector::{Connector, Io};
use super::keepalive::{Keepalive, until_silent};

/// The widest window that HTTP/2 has.
const MAX_WINDOW_BYTES: u32 = (1 << 31) - 1;

/// Largest header list of an answer, in bytes.
const MAX_HEADER_LIST_BYTES: u32 = 64 << 10;

/// What is known of a worker by its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// None was opened yet.
    Idle,
    /// At least one is open.
    Open,
    /// The last one ended, or none could be opened. The next call tries anew.
    Lost,
}

/// What all connections to a worker have in common.
pub(super) struct Peer {
    pub(super) connector: Arc<dyn Connector>,
    pub(super) config: ClientConfig,
    pub(super) tasks: Tasks,
    open: AtomicUsize,
    state: watch::Sender<LinkState>,
}

impl Peer {
    pub(super) fn new(connector: Arc<dyn Connector>, config: ClientConfig, tasks: Tasks) -> Self {
        let (open, state) = (AtomicUsize::new(0), watch::Sender::new(LinkState::Idle));
        Self { connector, config, tasks, open, state }
    }

    pub(super) fn state(&self) -> watch::Receiver<LinkState> {
        self.state.subscribe()
    }

    fn tell(&self, state: LinkState) {
        self.state.send_if_modified(|now| std::mem::replace(now, state) != state);
    }

    /// Returns the error of a call that the worker has not accepted.
    pub(super) fn unreachable(&self, why: impl std::fmt::Display) -> Error {
        let address = self.connector.address();
        Error::new(ErrorKind::Unavailable, format!("worker `{address}` cannot be reached: {why}"))
    }
}

/// Counts a connection as open while it lives.
struct Opened(Arc<Peer>);

impl Opened {
    fn new(peer: Arc<Peer>) -> Self {
        peer.open.fetch_add(1, Relaxed);
        peer.tell(LinkState::Open);
        Self(peer)
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        if self.0.open.fetch_sub(1, Relaxed) == 1 {
            self.0.tell(LinkState::Lost);
        }
    }
}

/// The way to send on an open connection.
#[derive(Clone)]
pub(super) struct Live {
    pub(super) sender: SendRequest<Bytes>,
    number: u64,
}

/// A place for one connection.
#[derive(Default)]
struct Slot {
    live: Mutex<Option<Live>>,
    /// Held by who opens a connection; the others wait for it.
    opening: TurnMutex<Attempts>,
}

/// How opening went so far.
#[derive(Default)]
struct Attempts {
    count: u64,
    failed_in_row: u32,
    not_before: Option<Instant>,
    last_failure: String,
}

impl Slot {
    fn live(&self) -> MutexGuard<'_, Option<Live>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets a connection, if it is still the one in place.
    fn forget(&self, number: u64) {
        self.live().take_if(|live| live.number == number);
    }
}

/// The connections of one lane.
pub(super) struct Link {
    peer: Arc<Peer>,
    window_bytes: u32,
    slots: Vec<Arc<Slot>>,
    next: AtomicUsize,
}

impl Link {
    pub(super) fn new(peer: Arc<Peer>, window_bytes: u32) -> Self {
        let slots = (0..peer.config.connections.max(1)).map(|_| Arc::default()).collect();
        Self { peer, window_bytes, slots, next: AtomicUsize::new(0) }
    }

    /// Returns an open connection, the next one in turn; opens it if it is not.
    ///
    /// Errors: UNAVAILABLE when that fails, or failed a moment ago.
    pub(super) async fn connection(&self) -> Result<Route> {
        let slot = &self.slots[self.next.fetch_add(1, Relaxed) % self.slots.len()];
        let live = slot.live().clone();
        let live = match live {
            Some(live) => live,
            None => self.open(slot).await?,
        };
        Ok(Route { slot: slot.clone(), live })
    }

    async fn open(&self, slot: &Arc<Slot>) -> Result<Live> {
        let mut attempts = slot.opening.lock().await;
        if let Some(live) = slot.live().clone() {
            return Ok(live);
        }
        if attempts.not_before.is_some_and(|at| Instant::now() < at) {
            return Err(self.peer.unreachable(&attempts.last_failure));
        }
        match self.handshake().await {
            Ok((sender, connection)) => {
                let number = attempts.count;
                *attempts = Attempts { count: number + 1, ..Attempts::default() };
                let live = Live { sender, number };
                *slot.live() = Some(live.clone());
                self.drive(slot.clone(), number, connection);
                Ok(live)
            }
            Err(failure) => {
                let wait = self.backoff(attempts.failed_in_row);
                attempts.failed_in_row = attempts.failed_in_row.saturating_add(1);
                attempts.not_before = Instant::now().checked_add(wait);
                attempts.last_failure = failure;
                if self.peer.open.load(Relaxed) == 0 {
                    self.peer.tell(LinkState::Lost);
                }
                Err(self.peer.unreachable(&attempts.last_failure))
            }
        }
    }

    /// Twice as long after each failure, up to the limit, and less by up to a half by chance, so
    /// that frontends do not come all at once.
    fn backoff(&self, failed: u32) -> Duration {
        let config = &self.peer.config;
        let longest = config.backoff_max;
        let wait = config.backoff_first.saturating_mul(1 << failed.min(20)).min(longest);
        wait.mul_f64(1.0 - fastrand::f64() / 2.0)
    }

    async fn handshake(&self) -> std::result::Result<Opening, String> {
        let config = &self.peer.config;
        let mut builder = Builder::new();
        let streams = u32::try_from(config.max_in_flight).unwrap_or(u32::MAX);
        builder
            .enable_push(false)
            .initial_window_size(self.window_bytes)
            .initial_connection_window_size(
                self.window_bytes.saturating_mul(streams).min(MAX_WINDOW_BYTES),
            )
            // Windows bound what is not read yet; a worker's small frames are no attack.
            .data_frame_budget(usize::MAX >> 1)
            .max_frame_size(config.max_frame_bytes)
            .max_header_list_size(MAX_HEADER_LIST_BYTES)
            // Calls are cancelled all the time, and answers cross the cancellation.
            .max_concurrent_reset_streams(config.max_in_flight)
            .max_local_error_reset_streams(None);
        let opened = timeout(config.connect_timeout, async {
            let io = self.peer.connector.connect().await.map_err(|error| error.to_string())?;
            builder.handshake(io).await.map_err(|error| error.to_string())
        });
        let late = |_| format!("no connection within {:?}", config.connect_timeout);
        opened.await.map_err(late)?
    }

    fn drive(&self, slot: Arc<Slot>, number: u64, mut connection: OpenConnection) {
        let config = &self.peer.config;
        let keepalive =
            Keepalive { interval: config.keepalive_interval, timeout: config.keepalive_timeout };
        let pings = until_silent(connection.ping_pong(), keepalive);
        let opened = Opened::new(self.peer.clone());
        self.peer.tasks.spawn("worker connection", async move {
            let peer = opened.0.clone();
            let address = peer.connector.address();
            tracing::debug!(address, "connected to a worker");
            // What ends the task drops the connection, which ends all its calls.
            tokio::select! {
                result = connection => match result {
                    Ok(()) => tracing::debug!(address, "the connection to a worker ended"),
                    Err(error) => tracing::warn!(address, %error, "lost a worker"),
                },
                () = pings => tracing::warn!(address, "lost a worker: it is silent"),
            }
            slot.forget(number);
            drop(opened);
        });
    }
}

type OpenConnection = Connection<Box<dyn Io>, Bytes>;
type Opening = (SendRequest<Bytes>, OpenConnection);

/// An open connection and its place.
pub(super) struct Route {
    slot: Arc<Slot>,
    pub(super) live: Live,
}

impl Route {
    /// Lets nobody else use the connection: it takes no more calls.
    pub(super) fn retire(&self) {
        self.slot.forget(self.live.number);
    }
}
