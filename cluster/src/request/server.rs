//! The worker's end: connections, models by name, and an orderly end.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use engine::{Error, ErrorKind, Result, Tasks};
use h2::server::{Builder, Connection};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

use super::call::answer;
use super::connector::Io;
use super::keepalive::{Keepalive, until_silent};
use super::served::{Artifacts, Served};

/// Waits after a failed accept, which mostly means that file descriptors ran out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

/// Largest header list of a call, in bytes.
const MAX_HEADER_LIST_BYTES: u32 = 64 << 10;

/// How a worker talks to frontends.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Open connections; more wait in the listen queue.
    pub max_connections: usize,
    /// Open calls of one connection; a frontend keeps more back.
    pub max_streams: u32,
    /// The longest message in bytes, both ways.
    pub max_message_bytes: usize,
    /// HTTP/2 windows in bytes: of a request, and of all of a connection's requests. Requests are
    /// read at once, so windows only have to be wide enough for the network.
    pub windows_bytes: (u32, u32),
    /// The largest HTTP/2 frame to receive, in bytes: 16 KiB to 16 MiB less one.
    pub max_frame_bytes: u32,
    /// How long a new connection may take to speak HTTP/2.
    pub handshake_timeout: Duration,
    /// The time between two pings of a connection.
    pub keepalive_interval: Duration,
    /// How long a ping may go unanswered before the connection counts as dead.
    pub keepalive_timeout: Duration,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            max_connections: 4096,
            max_streams: 4096,
            max_message_bytes: 1 << 30,
            windows_bytes: (2 << 20, 64 << 20),
            max_frame_bytes: 256 << 10,
            handshake_timeout: Duration::from_secs(10),
            keepalive_interval: Duration::from_secs(10),
            keepalive_timeout: Duration::from_secs(10),
        }
    }
}

/// Serves models to frontends. Clones are the same server.
#[derive(Clone)]
pub struct WorkerServer {
    pub(super) shared: Arc<Shared>,
}

/// What all calls share.
pub(super) struct Shared {
    pub(super) config: ServerConfig,
    pub(super) artifacts: Option<Arc<dyn Artifacts>>,
    /// None: it was served and is so no more.
    models: RwLock<BTreeMap<String, Option<Arc<Served>>>>,
    is_draining: watch::Sender<bool>,
    /// Calls that use an engine.
    open: AtomicUsize,
    /// Changes when the last of them ends.
    idle: watch::Sender<()>,
    /// Cancelled when connections are to end.
    closing: Tasks,
}

impl WorkerServer {
    /// Makes a server of no models yet; files come from `artifacts`.
    pub fn new(config: ServerConfig, artifacts: Option<Arc<dyn Artifacts>>) -> Self {
        let shared = Shared {
            config,
            artifacts,
            models: RwLock::default(),
            is_draining: watch::Sender::new(false),
            open: AtomicUsize::new(0),
            idle: watch::Sender::new(()),
            closing: Tasks::new(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Serves a model under a name, in place of what had it before; calls that are open go on.
    pub fn insert(&self, name: impl Into<String>, served: Served) {
        let mut models = self.shared.models.write().unwrap_or_else(PoisonError::into_inner);
        models.insert(name.into(), Some(Arc::new(served)));
    }

    /// Serves a model no more; calls that are open go on. New ones are refused with UNAVAILABLE, not
    /// NOT_FOUND: whoever has not heard of it yet tries another worker.
    pub fn remove(&self, name: &str) {
        let mut models = self.shared.models.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(served) = models.get_mut(name) {
            *served = None;
        }
    }

    /// Returns how many calls use an engine.
    pub fn open_calls(&self) -> usize {
        self.shared.open.load(Ordering::SeqCst)
    }

    /// Accepts no new calls from now on; those that are open go on.
    pub fn drain(&self) {
        self.shared.is_draining.send_replace(true);
    }

    /// Returns whether nothing new is accepted, which a frontend may ask for; now and later.
    pub fn draining(&self) -> watch::Receiver<bool> {
        self.shared.is_draining.subscribe()
    }

    /// Drains, waits for the open calls, at most `grace`, and closes all connections. Returns
    /// whether every call came to its end.
    pub async fn shut_down(&self, grace: Duration) -> bool {
        self.drain();
        let mut idle = self.shared.idle.subscribe();
        let all = async {
            while self.open_calls() > 0 {
                if idle.changed().await.is_err() {
                    break;
                }
            }
        };
        let is_done = timeout(grace, all).await.is_ok();
        self.shared.closing.cancel();
        is_done
    }

    /// Accepts connections until the server is shut down. They are tasks of `tasks`, and cut off
    /// when these are cancelled.
    pub async fn serve(&self, listener: TcpListener, tasks: &Tasks) {
        let permits = Arc::new(Semaphore::new(self.shared.config.max_connections));
        loop {
            let accepted = async {
                let permit = permits.clone().acquire_owned().await;
                (permit, listener.accept().await)
            };
            let (permit, accepted) = tokio::select! {
                accepted = accepted => accepted,
                () = self.shared.closing.cancelled() => return,
                () = tasks.cancelled() => return,
            };
            match accepted {
                Ok((stream, peer)) => {
                    if let Err(error) = stream.set_nodelay(true) {
                        tracing::debug!(%error, "cannot set TCP_NODELAY");
                    }
                    let (server, calls) = (self.clone(), tasks.clone());
                    tasks.spawn("frontend connection", async move {
                        tracing::debug!(%peer, "a frontend connected");
                        server.serve_connection(stream, &calls).await;
                        tracing::debug!(%peer, "a frontend is gone");
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Serves one connection to its end, such as one under TLS. Its calls are tasks of `tasks`.
    pub async fn serve_connection(&self, io: impl Io, tasks: &Tasks) {
        let config = &self.shared.config;
        let handshake = timeout(config.handshake_timeout, builder(config).handshake(io)).await;
        let connection = match handshake {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => return tracing::debug!(%error, "a connection is no HTTP/2"),
            Err(_) => return tracing::debug!("a connection is silent"),
        };
        // What ends here drops the connection, which ends all its calls.
        self.drive(connection, tasks).await;
    }

    async fn drive(&self, mut connection: Connection<impl Io, Bytes>, tasks: &Tasks) {
        let config = &self.shared.config;
        let keepalive =
            Keepalive { interval: config.keepalive_interval, timeout: config.keepalive_timeout };
        let mut pings = std::pin::pin!(until_silent(connection.ping_pong(), keepalive));
        let mut closing = std::pin::pin!(self.shared.closing.cancelled());
        let mut is_closing = false;
        loop {
            tokio::select! {
                accepted = connection.accept() => match accepted {
                    Some(Ok((request, respond))) => {
                        tasks.spawn("worker call", answer(self.shared.clone(), request, respond));
                    }
                    Some(Err(error)) => return tracing::debug!(%error, "a connection failed"),
                    None => return,
                },
                () = &mut pings => return tracing::warn!("a frontend is silent"),
                () = &mut closing, if !is_closing => {
                    is_closing = true;
                    connection.graceful_shutdown();
                }
            }
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

impl Shared {
    /// Returns what is served under a name. Errors: NOT_FOUND; UNAVAILABLE if it was served before.
    pub(super) fn served(&self, name: &str) -> Result<Arc<Served>> {
        let models = self.models.read().unwrap_or_else(PoisonError::into_inner);
        let text = format!("the worker does not serve a model `{name}`");
        match models.get(name) {
            Some(Some(served)) => Ok(served.clone()),
            Some(None) => {
                let error = Error::new(ErrorKind::Unavailable, format!("{text} any more"));
                Err(error.with_code("model_gone"))
            }
            None => Err(Error::not_found(text).with_code("model_not_found")),
        }
    }

    /// Returns all that is served, by name.
    pub(super) fn all(&self) -> BTreeMap<String, Arc<Served>> {
        let models = self.models.read().unwrap_or_else(PoisonError::into_inner);
        let served =
            |(name, served): (&String, &Option<Arc<Served>>)| Some((name.clone(), served.clone()?));
        models.iter().filter_map(served).collect()
    }

    /// Returns whether nothing new is accepted; now and later.
    pub(super) fn draining(&self) -> watch::Receiver<bool> {
        self.is_draining.subscribe()
    }

    /// Accepts nothing new, and returns how many calls are open.
    pub(super) fn drain(&self) -> usize {
        self.is_draining.send_replace(true);
        self.open.load(Ordering::SeqCst)
    }

    pub(super) fn is_draining(&self) -> bool {
        *self.is_draining.borrow()
    }

    /// Counts a call that will use an engine. Errors: UNAVAILABLE while the server drains.
    pub(super) fn enter(self: &Arc<Self>) -> Result<OpenCall> {
        self.open.fetch_add(1, Ordering::SeqCst);
        let call = OpenCall(self.clone());
        // It is looked at after counting, so that whoever drains sees the call or refuses it.
        if self.is_draining() {
            let text = "the worker is draining, it accepts nothing new";
            return Err(Error::new(ErrorKind::Unavailable, text).with_code("draining"));
        }
        Ok(call)
    }
}

/// A call that uses an engine.
pub(super) struct OpenCall(Arc<Shared>);

impl Drop for OpenCall {
    fn drop(&mut self) {
        if self.0.open.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.idle.send_replace(());
        }
    }
}
