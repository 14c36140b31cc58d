//! The worker's end: connections, models by name, and an orderly end.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use engine::{BusyPoll, Flood, Tasks};
use h2::server::{Builder, Connection};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio::time::{interval, timeout};

use super::call::answer;
use super::connector::{Acceptor, Io};
use super::door::{Caller, Door};
use super::keepalive::{Asks, Heard, Keepalive, Listened, until_silent};
use super::loads::{Loads, ReadLoad};
use super::seats::Seat;
use super::served::{Artifacts, Served};
use super::shared::Shared;

/// Waits after a failed accept, which mostly means that file descriptors ran out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

/// How long the other end of a connection without calls may take to end it, when the server shuts
/// down, and how often that is looked at.
const FAREWELL_WAIT: Duration = Duration::from_secs(1);
const FAREWELL_LOOK: Duration = Duration::from_millis(100);

/// Largest header list of a call, in bytes.
const MAX_HEADER_LIST_BYTES: u32 = 64 << 10;

/// How a worker talks to frontends.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Open connections; more wait, in the listen queue at last.
    pub max_connections: usize,
    /// How long a connection has no calls before it gives its place to one that waits.
    pub idle_timeout: Duration,
    /// Open calls of one connection, of all kinds; a frontend keeps more back.
    pub max_streams: u32,
    /// The longest message with tensors or embeddings in bytes, both ways.
    pub max_message_bytes: usize,
    /// The longest message of a text's tokens in bytes, both ways.
    pub max_token_message_bytes: usize,
    /// Memory for requests in bytes, from their first byte to the end of their answers; what comes
    /// above is refused with OVERLOADED. An eighth is kept for small ones.
    pub max_buffered_bytes: usize,
    /// How long a request may take to come; one that is slower ends in DEADLINE_EXCEEDED.
    pub body_timeout: Duration,
    /// HTTP/2 windows in bytes: of a request, and of all of a connection's requests. Requests are
    /// read at once, so windows only have to be wide enough for the network.
    pub windows_bytes: (u32, u32),
    /// The largest HTTP/2 frame to receive, in bytes: 16 KiB to 16 MiB less one.
    pub max_frame_bytes: u32,
    /// How long a new connection may take to speak HTTP/2.
    pub handshake_timeout: Duration,
    /// The silence after which a connection is pinged, three times that while no call is open.
    pub keepalive_interval: Duration,
    /// How long a ping may go unanswered before the connection counts as dead.
    pub keepalive_timeout: Duration,
    /// Is told of each call that comes.
    pub busy_poll: BusyPoll,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            max_connections: 4096,
            idle_timeout: Duration::from_secs(60),
            max_streams: 5120,
            max_message_bytes: 1 << 30,
            max_token_message_bytes: 64 << 20,
            max_buffered_bytes: 4 << 30,
            body_timeout: Duration::from_secs(60),
            windows_bytes: (2 << 20, 16 << 20),
            max_frame_bytes: 256 << 10,
            handshake_timeout: Duration::from_secs(10),
            keepalive_interval: Duration::from_secs(10),
            keepalive_timeout: Duration::from_secs(10),
            busy_poll: BusyPoll::default(),
        }
    }
}

/// Serves models to frontends. Clones are the same server.
#[derive(Clone)]
pub struct WorkerServer {
    pub(super) shared: Arc<Shared>,
}

impl WorkerServer {
    /// Makes a server of no models yet; files come from `artifacts`.
    pub fn new(config: ServerConfig, artifacts: Option<Arc<dyn Artifacts>>) -> Self {
        Self { shared: Arc::new(Shared::new(config, artifacts)) }
    }

    /// Serves a model under a name, in place of what had it before; calls that are open go on.
    pub fn insert(&self, name: impl Into<String>, served: Served) {
        self.shared.insert(name.into(), served);
    }

    /// Serves a model no more; calls that are open go on. New ones are refused with UNAVAILABLE, not
    /// NOT_FOUND: whoever has not heard of it yet tries another worker.
    pub fn remove(&self, name: &str) {
        self.shared.remove(name);
    }

    /// Returns how many calls use an engine.
    pub fn open_calls(&self) -> usize {
        self.shared.open_calls()
    }

    /// Returns how many connections of frontends are open.
    pub fn connections(&self) -> usize {
        self.shared.connections()
    }

    /// Returns how many connections found all places taken.
    pub fn connections_waited(&self) -> u64 {
        self.shared.seats.waited()
    }

    /// Returns how many bytes of memory requests hold.
    pub fn buffered_bytes(&self) -> usize {
        self.shared.buffered_bytes()
    }

    /// Returns how many requests were refused because they would have held too much.
    pub fn buffer_refusals(&self) -> u64 {
        self.shared.buffer_refusals()
    }

    /// Accepts no new calls from now on; those that are open go on.
    pub fn drain(&self) {
        self.shared.drain();
    }

    /// Returns the loads of a model as another plane tells them.
    pub(crate) fn loads(&self, load: ReadLoad, every: Duration) -> Loads {
        Loads::new(load, every, &self.shared)
    }

    /// Returns whether nothing new is accepted, which a frontend may ask for; now and later.
    pub fn draining(&self) -> watch::Receiver<bool> {
        self.shared.draining()
    }

    /// Drains, waits for the open calls and then for all connections, which end when the last
    /// answers have been taken; all that at most for `grace`. Returns whether every call came to
    /// its end and every answer has left. What has not by then goes on until the tasks of the
    /// connections are cancelled.
    pub async fn shut_down(&self, grace: Duration) -> bool {
        self.drain();
        let ended = timeout(grace, async {
            self.shared.until(|shared| shared.open_calls() == 0).await;
            self.shared.closing.cancel();
            self.shared.until(|shared| shared.connections() == 0).await;
        });
        let is_done = ended.await.is_ok();
        self.shared.closing.cancel();
        is_done
    }

    /// Accepts connections until the server is shut down. They are tasks of `tasks`, and cut off
    /// when these are cancelled.
    pub async fn serve(&self, listener: TcpListener, tasks: &Tasks) {
        self.accept(Door::Tcp(listener, None), tasks).await;
    }

    /// Does the same with connections that `acceptor` takes in, each within the handshake's time.
    pub async fn serve_by(
        &self,
        listener: TcpListener,
        acceptor: Arc<dyn Acceptor>,
        tasks: &Tasks,
    ) {
        self.accept(Door::Tcp(listener, Some(acceptor)), tasks).await;
    }

    /// Does the same with connections of processes on this machine.
    pub async fn serve_local(&self, listener: UnixListener, tasks: &Tasks) {
        self.accept(Door::Local(listener), tasks).await;
    }

    async fn accept(&self, door: Door, tasks: &Tasks) {
        let mut failures = Flood::default();
        loop {
            let accepted = async {
                let accepted = door.accept().await?;
                Ok::<_, io::Error>((accepted, self.shared.seats.take().await))
            };
            let accepted = tokio::select! {
                accepted = accepted => accepted,
                () = self.shared.closing.cancelled() => return,
                () = tasks.cancelled() => return,
            };
            match accepted {
                Ok(((caller, peer), seat)) => {
                    let (server, calls) = (self.clone(), tasks.clone());
                    tasks.spawn("frontend connection", async move {
                        server.take_in((caller, peer), &seat, &calls).await;
                    });
                }
                Err(error) => {
                    if let Some(untold) = failures.admit() {
                        tracing::warn!(%error, untold, "cannot accept a connection");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Serves who has come, or tells why that cannot be.
    async fn take_in(
        &self,
        (caller, peer): (Caller, Option<SocketAddr>),
        seat: &Seat,
        tasks: &Tasks,
    ) {
        let peer = peer.map_or_else(|| "this machine".to_owned(), |peer| peer.to_string());
        tracing::debug!(peer, "a frontend connected");
        let served = match caller {
            Caller::Plain(stream) => self.converse(stream, seat, tasks).await,
            Caller::Guarded(stream, by) => match self.begin(by.accept(stream)).await {
                Some(Ok(io)) => self.converse(io, seat, tasks).await,
                Some(Err(error)) => Err(error),
                None => Ok(()),
            },
            Caller::Local(stream) => self.converse(stream, seat, tasks).await,
        };
        match served {
            Ok(()) => tracing::debug!(peer, "a frontend is gone"),
            Err(error) => self.complain(&peer, &error),
        }
    }

    /// Waits for a connection to begin, for as long as that may take; none: the server ends.
    async fn begin<T>(&self, begun: impl Future<Output = io::Result<T>>) -> Option<io::Result<T>> {
        tokio::select! {
            begun = timeout(self.shared.config.handshake_timeout, begun) => {
                Some(begun.unwrap_or_else(|_| Err(silent())))
            }
            () = self.shared.closing.cancelled() => None,
        }
    }

    /// Serves one connection to its end, which has a place already. Its calls are tasks of `tasks`.
    pub(crate) async fn serve_connection(&self, io: impl Io, seat: &Seat, tasks: &Tasks) {
        if let Err(error) = self.converse(io, seat, tasks).await {
            tracing::debug!(%error, "a connection is not taken in");
        }
    }

    /// Serves one connection to its end. Errors: why it could not begin.
    async fn converse(&self, io: impl Io, seat: &Seat, tasks: &Tasks) -> io::Result<()> {
        let (io, heard) = Listened::new(io);
        let builder = builder(&self.shared.config);
        let handshake = async { builder.handshake(io).await.map_err(|error| no_http2(&error)) };
        let Some(connection) = self.begin(handshake).await else { return Ok(()) };
        let connection = connection?;
        let _open = self.shared.connect();
        // What ends here drops the connection, which ends all its calls.
        self.drive(connection, heard, (seat, tasks)).await;
        Ok(())
    }

    /// Tells why somebody was not taken in. Who says nothing or leaves at once, as probes of ports
    /// do, is no reason to warn.
    fn complain(&self, peer: &str, error: &io::Error) {
        use io::ErrorKind::{BrokenPipe, ConnectionReset, TimedOut, UnexpectedEof};
        let kind = error.kind();
        let is_probe = matches!(kind, BrokenPipe | ConnectionReset | TimedOut | UnexpectedEof);
        // Whatever its port is.
        let (host, _) = peer.rsplit_once(':').unwrap_or((peer, ""));
        if is_probe || !self.shared.throttle.is_due(host, &error.to_string()) {
            return tracing::debug!(peer, %error, "a connection is not taken in");
        }
        tracing::warn!(peer, %error, "a connection is not taken in");
    }

    async fn drive(
        &self,
        mut connection: Connection<impl Io, Bytes>,
        heard: Heard,
        (seat, tasks): (&Seat, &Tasks),
    ) {
        let config = &self.shared.config;
        let keepalive =
            Keepalive { interval: config.keepalive_interval, timeout: config.keepalive_timeout };
        let has_calls = || self.shared.open_calls() > 0;
        let pings =
            until_silent(connection.ping_pong(), keepalive, (heard, Asks::IfSilent), has_calls);
        let mut pings = std::pin::pin!(pings);
        let mut closing = std::pin::pin!(async {
            tokio::select! {
                () = self.shared.closing.cancelled() => {}
                () = seat.gives_way() => {}
            }
        });
        let mut closing_since = None;
        let mut looks = interval(FAREWELL_LOOK);
        loop {
            tokio::select! {
                accepted = connection.accept() => match accepted {
                    Some(Ok((request, respond))) => {
                        config.busy_poll.note();
                        let (shared, calling) = (self.shared.clone(), seat.call());
                        tasks.spawn("worker call", async move {
                            answer(shared, request, respond).await;
                            drop(calling);
                        });
                    }
                    Some(Err(error)) => return tracing::debug!(%error, "a connection failed"),
                    None => return,
                },
                () = &mut pings => return tracing::warn!("a frontend is silent"),
                () = &mut closing, if closing_since.is_none() => {
                    closing_since = Some(Instant::now());
                    connection.graceful_shutdown();
                }
                _ = looks.tick(), if closing_since.is_some() => {
                    let is_late = closing_since.is_some_and(|at| at.elapsed() > FAREWELL_WAIT);
                    if is_late && !connection.has_streams() {
                        return tracing::debug!("a frontend does not end its connection");
                    }
                }
            }
        }
    }
}

fn silent() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "it says nothing")
}

/// Returns the error of a connection that does not begin as HTTP/2 does.
fn no_http2(error: &h2::Error) -> io::Error {
    match error.get_io() {
        Some(io) => io::Error::new(io.kind(), io.to_string()),
        None => {
            let text =
                format!("expected HTTP/2 as workers are called, got something else ({error})");
            io::Error::new(io::ErrorKind::InvalidData, text)
        }
    }
}

fn builder(config: &ServerConfig) -> Builder {
    let mut builder = Builder::new();
    builder
        .initial_window_size(config.windows_bytes.0)
        .initial_connection_window_size(config.windows_bytes.1)
        .max_frame_size(config.max_frame_bytes)
        .max_concurrent_streams(config.max_streams)
        .max_header_list_size(MAX_HEADER_LIST_BYTES)
        // Frontends cancel calls all the time, some before they were seen here.
        .max_pending_accept_reset_streams(config.max_streams as usize)
        .max_concurrent_reset_streams(config.max_streams as usize)
        .max_local_error_reset_streams(None);
    builder
}
