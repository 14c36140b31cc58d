//! The request plane over NATS: the same protocol, in messages instead of TCP segments.
//!
//! A frontend that connects asks at the worker's subject, `stator.<namespace>.worker.<instance>`;
//! when nobody listens there NATS says so at once, and the request is tried elsewhere. Otherwise
//! worker and frontend give each other an inbox, and what they send to these is a stream of bytes
//! in both directions ([`Stream`]). On it both speak HTTP/2 as over TCP, so calls, cancellation,
//! deadlines, flow control and draining are those of the gRPC plane.
//!
//! NATS delivers at most once. Messages are numbered, and one that is missing ends the stream with
//! an error, as a lost connection to NATS does: its calls fail like those of a dead worker, and are
//! tried again or go on elsewhere. Each end sends no more than the other has room for, so no
//! subscription overflows.

mod breaker;
mod connect;
mod frame;
mod listen;
mod stream;
#[cfg(test)]
pub(crate) mod tests;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::{Client, ConnectOptions, Event, ServerAddr};
use bytes::Bytes;
use engine::{Error, Result, Tasks};
use futures_util::StreamExt;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;

use crate::instance::{InstanceId, Namespace};
use crate::log_throttle::LogThrottle;
use crate::request::percent_decode;

use breaker::Breaker;

pub use connect::{Nats, WithFallback};
pub use listen::Listener;
pub use stream::Stream;

/// The wait before connecting to NATS is tried again; it doubles up to [`RECONNECT_MAX`].
const RECONNECT_FIRST: Duration = Duration::from_millis(50);

/// The longest such wait.
const RECONNECT_MAX: Duration = Duration::from_secs(2);

/// How often NATS is asked whether it is there; two answers may be missing.
const PING_INTERVAL: Duration = Duration::from_secs(5);

/// How long NATS is waited for before it counts as not there.
const SETTLE_WAIT: Duration = Duration::from_secs(2);

/// Messages that wait for NATS to take them, of the whole process; senders wait behind that.
const MAX_QUEUED: usize = 4096;

/// How a process uses NATS.
#[derive(Clone)]
pub struct Config {
    /// Where the servers are: `nats://` or `tls://`, `HOST:PORT`, with `USER:PASSWORD@` or `TOKEN@`
    /// in front where they want that, percent-encoded; the first one of these holds for all.
    pub servers: Vec<String>,
    /// A file of credentials, as `nsc` writes it.
    pub credentials: Option<PathBuf>,
    /// A file of certificates that servers' are checked with, beside the system's.
    pub authority: Option<PathBuf>,
    /// What a stream may send ahead of its reader, in bytes; each message counts 256 more than it
    /// has.
    pub window_bytes: u64,
    /// How long the answer of a worker to a greeting may take.
    pub greeting_timeout: Duration,
    /// How often an end that has nothing to say says that it is there; NATS answers when the other
    /// end is gone.
    pub beat: Duration,
    /// How long JetStream may take to answer.
    pub jetstream_timeout: Duration,
    /// How long NATS may be away before those who listen to events hear that the plane has ended.
    pub away_timeout: Duration,
    /// The most streams of a worker.
    pub max_streams: usize,
    /// How long NATS is left when it was lost or does not answer; losses in a row double it, up to
    /// twelve times as long.
    pub leave: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            servers: Vec::new(),
            credentials: None,
            authority: None,
            window_bytes: 4 << 20,
            greeting_timeout: Duration::from_secs(1),
            beat: Duration::from_millis(500),
            jetstream_timeout: Duration::from_secs(2),
            away_timeout: Duration::from_secs(3),
            max_streams: 4096,
            leave: Duration::from_secs(5),
        }
    }
}

/// Servers' URLs have secrets.
impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config").field("servers", &self.servers.len()).finish_non_exhaustive()
    }
}

/// A process's connection to NATS. Clones are the same; it ends with the last one.
#[derive(Clone)]
pub struct Connection {
    pub(crate) client: Client,
    /// Counts how often the connection was lost.
    losses: watch::Receiver<u64>,
    breaker: Arc<Breaker>,
    pub(crate) config: Arc<Config>,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Connection {
    /// Begins to connect; whether NATS is there shows later, and it is tried again for ever. What
    /// looks after the connection is a task of `tasks`.
    ///
    /// Errors: servers that are no addresses, files that cannot be read.
    pub async fn open(config: Config, tasks: &Tasks) -> Result<Self> {
        let servers = addresses(&config.servers)?;
        let (counter, losses) = watch::channel(0_u64);
        let breaker = Arc::new(Breaker::new(config.leave));
        let news = News::new(&servers, counter.clone(), breaker.clone());
        let mut options = introduced(ConnectOptions::new(), &servers)
            .name("stator")
            .retry_on_initial_connect()
            .client_capacity(MAX_QUEUED)
            .ping_interval(PING_INTERVAL)
            .reconnect_delay_callback(|attempts| {
                let factor = 1 << attempts.min(10);
                RECONNECT_FIRST.saturating_mul(factor).min(RECONNECT_MAX)
            })
            .event_callback(move |event| {
                news.take(&event);
                std::future::ready(())
            });
        if let Some(file) = &config.credentials {
            options = options.credentials_file(file).await.map_err(|error| {
                let text = format!("the credentials of NATS, `{}`: {error}", file.display());
                Error::invalid(text).with_source(error)
            })?;
        }
        if let Some(file) = &config.authority {
            check_certificates(file)?;
            options = options.add_root_certificates(file.clone());
        }
        let client = options.connect(servers).await.map_err(|error| {
            // The error's own words may have the URL.
            Error::invalid(format!("NATS cannot be used: {}", error.kind()))
        })?;
        let connection = Self { client, losses, breaker, config: Arc::new(config) };
        connection.look_after(counter, tasks);
        Ok(connection)
    }

    /// Ends all streams when NATS does not answer any longer, and says when it can be used again.
    fn look_after(&self, counter: watch::Sender<u64>, tasks: &Tasks) {
        let connection = self.clone();
        tasks.spawn("nats breaker", async move {
            let echo = || {
                let connection = connection.clone();
                async move { connection.is_connected() && connection.settle().await }
            };
            let leave = || counter.send_modify(|count| *count += 1);
            connection.breaker.run(echo, leave).await;
        });
    }

    /// Returns whether NATS can be reached, as far as is known.
    pub fn is_connected(&self) -> bool {
        self.client.connection_state() == State::Connected
    }

    /// Waits until NATS has taken in what was said so far, a moment at most; returns whether it has.
    pub async fn settle(&self) -> bool {
        let echo = async {
            let inbox = self.client.new_inbox();
            let mut echo = self.client.subscribe(inbox.clone()).await.ok()?;
            self.client.publish(inbox, Bytes::new()).await.ok()?;
            echo.next().await
        };
        matches!(timeout(SETTLE_WAIT, echo).await, Ok(Some(_)))
    }

    /// Waits until what was said so far has left.
    pub async fn flush(&self) {
        if let Err(error) = self.client.flush().await {
            tracing::debug!(%error, "cannot flush what goes to nats");
        }
    }

    /// Returns a receiver that changes when the connection is lost from now on.
    pub(crate) fn losses(&self) -> watch::Receiver<u64> {
        let mut losses = self.losses.clone();
        losses.mark_unchanged();
        losses
    }
}

/// Returns the options of who says in a server's address who it is, which the library reads over.
/// The first one holds for all servers, since one of them may name the others.
fn introduced(options: ConnectOptions, servers: &[ServerAddr]) -> ConnectOptions {
    let decoded = |text: &str| percent_decode(text.as_bytes());
    let mut named = servers.iter().filter_map(|one| Some((one.username()?, one.password())));
    match named.next() {
        None => options,
        Some((user, Some(password))) => options.user_and_password(decoded(user), decoded(password)),
        Some((token, None)) => options.token(decoded(token)),
    }
}

/// Reads the servers' addresses. Errors: none, or one that is wrong; its text may be a secret.
fn addresses(servers: &[String]) -> Result<Vec<ServerAddr>> {
    let read = |(place, text): (usize, &String)| {
        let address = text.parse::<ServerAddr>().ok();
        address.filter(|address| matches!(address.scheme(), "nats" | "tls")).ok_or_else(|| {
            let expected = "expected nats://HOST:PORT or tls://HOST:PORT";
            Error::invalid(format!("server {} of NATS: {expected}", place + 1))
        })
    };
    if servers.is_empty() {
        return Err(Error::invalid("servers of NATS: expected nats://HOST:PORT, got none"));
    }
    servers.iter().enumerate().map(read).collect()
}

/// Checks that a file has certificates, which NATS would look for only when it connects.
fn check_certificates(file: &Path) -> Result<()> {
    let read = CertificateDer::pem_file_iter(file)
        .and_then(|all| all.collect::<std::result::Result<Vec<_>, _>>());
    let wrong = match read {
        Ok(found) if !found.is_empty() => return Ok(()),
        Ok(_) => "it has no certificate".to_owned(),
        Err(error) => error.to_string(),
    };
    Err(Error::invalid(format!("the authorities of NATS, `{}`: {wrong}", file.display())))
}

/// What is told of the connection: once when it is lost and once when it is back. The library's own
/// words, which name no server, are not logged.
struct News {
    /// The servers, without what is secret of their URLs.
    servers: String,
    losses: watch::Sender<u64>,
    breaker: Arc<Breaker>,
    /// Whether it was told that there is no connection.
    is_lost: AtomicBool,
    throttle: LogThrottle,
}

impl News {
    fn new(servers: &[ServerAddr], losses: watch::Sender<u64>, breaker: Arc<Breaker>) -> Self {
        let shown = |one: &ServerAddr| format!("{}:{}", one.host(), one.port());
        let servers = servers.iter().map(shown).collect::<Vec<_>>().join(",");
        let (is_lost, throttle) = Default::default();
        Self { servers, losses, breaker, is_lost, throttle }
    }

    fn take(&self, event: &Event) {
        let servers = &self.servers;
        match event {
            Event::Disconnected => {
                self.breaker.lose();
                self.losses.send_modify(|count| *count += 1);
                self.is_lost.store(true, Relaxed);
                tracing::warn!(servers, "lost the connection to nats, it is tried again");
            }
            // Each attempt that fails.
            Event::ClientError(error) if !self.is_lost.swap(true, Relaxed) => {
                tracing::warn!(servers, %error, "nats cannot be reached, it is tried again");
            }
            Event::Connected => {
                self.is_lost.store(false, Relaxed);
                tracing::info!(servers, "connected to nats");
            }
            // Such as permissions that are missing.
            Event::ServerError(error) if self.throttle.is_due("", &error.to_string()) => {
                tracing::warn!(servers, %error, "nats refuses something");
            }
            Event::SlowConsumer(_) => tracing::warn!("a subscription to nats overflowed"),
            event => tracing::debug!(%event, "nats"),
        }
    }
}

/// Returns the subject at which a worker answers greetings.
pub fn worker_subject(namespace: &Namespace, instance: InstanceId) -> String {
    format!("stator.{}.worker.{instance}", token(namespace))
}

/// Returns a namespace as one token of a subject: `.` is `_d` in it, and `_` is `__`.
pub(crate) fn token(namespace: &Namespace) -> String {
    namespace.as_str().replace('_', "__").replace('.', "_d")
}
