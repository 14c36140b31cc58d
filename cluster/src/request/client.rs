//! The frontend's end: one worker, its models as engines.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use engine::{Context, Engine, Error, ErrorKind, OutputStream, Result, Tasks};
use h2::RecvStream;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Method, Request, Uri, header};
use tokio::sync::watch;
use tokio::time::timeout_at;

use super::answer::{Answer, Outputs, broken, send};
use super::codec::{Lane, Wire};
use super::connector::Connector;
use super::link::{Link, LinkState, Peer, Route};
use super::outbox::Outbox;
use super::{deadline, failure};

/// How a frontend talks to a worker.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// Connections for token streams, and as many for tensors, embeddings and files. Each is
    /// opened when it is wanted.
    pub connections: usize,
    /// Calls to the worker that are open at once; more are refused with OVERLOADED.
    pub max_in_flight: usize,
    /// The longest message in bytes, both ways.
    pub max_message_bytes: usize,
    /// What a token stream may send ahead of its reader, in bytes.
    pub token_window_bytes: u32,
    /// What other answers may send ahead of their readers, in bytes.
    pub bulk_window_bytes: u32,
    /// The largest HTTP/2 frame to receive, in bytes: 16 KiB to 16 MiB less one.
    pub max_frame_bytes: u32,
    /// How long opening a connection may take.
    pub connect_timeout: Duration,
    /// The wait after a first failure to connect; calls fail at once in the meantime.
    pub backoff_first: Duration,
    /// The longest such wait; it doubles from failure to failure.
    pub backoff_max: Duration,
    /// The time between two pings of a connection.
    pub keepalive_interval: Duration,
    /// How long a ping may go unanswered before the connection counts as dead.
    pub keepalive_timeout: Duration,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            connections: 1,
            max_in_flight: 4096,
            max_message_bytes: 1 << 30,
            token_window_bytes: 64 << 10,
            bulk_window_bytes: 2 << 20,
            max_frame_bytes: 256 << 10,
            connect_timeout: Duration::from_secs(3),
            backoff_first: Duration::from_millis(50),
            backoff_max: Duration::from_secs(5),
            keepalive_interval: Duration::from_secs(5),
            keepalive_timeout: Duration::from_secs(3),
        }
    }
}

/// A worker in another process. Clones are the same worker; its connections end with the last one.
#[derive(Clone)]
pub struct RemoteWorker {
    inner: Arc<Inner>,
}

struct Inner {
    peer: Arc<Peer>,
    authority: Authority,
    tokens: Link,
    bulk: Link,
    in_flight: Arc<AtomicUsize>,
}

/// A call's place among those in flight.
pub(super) struct Permit(Arc<AtomicUsize>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl RemoteWorker {
    /// Makes the client of a worker; nothing is opened yet. The tasks of its connections belong
    /// to `tasks`.
    ///
    /// Errors: an address that cannot be the authority of a URI.
    pub fn new(connector: impl Connector, config: ClientConfig, tasks: &Tasks) -> Result<Self> {
        let address = connector.address();
        let authority = address.parse::<Authority>().map_err(|error| {
            Error::invalid(format!("`{address}` is no address of a worker: expected HOST:PORT"))
                .with_source(error)
        })?;
        let windows = (config.token_window_bytes, config.bulk_window_bytes);
        let peer = Arc::new(Peer::new(Arc::new(connector), config, tasks.clone()));
        let (tokens, bulk) =
            (Link::new(peer.clone(), windows.0), Link::new(peer.clone(), windows.1));
        let in_flight = Arc::new(AtomicUsize::new(0));
        Ok(Self { inner: Arc::new(Inner { peer, authority, tokens, bulk, in_flight }) })
    }

    /// Returns the worker's address.
    pub fn address(&self) -> &str {
        self.inner.peer.connector.address()
    }

    /// Returns what is known of the worker by its connections, now and later.
    pub fn state(&self) -> watch::Receiver<LinkState> {
        self.inner.peer.state()
    }

    /// Returns how many calls are open.
    pub fn in_flight(&self) -> usize {
        self.inner.in_flight.load(Relaxed)
    }

    /// Opens a connection if none is there, so that the worker's end will be noticed.
    ///
    /// Errors: UNAVAILABLE.
    pub async fn connect(&self) -> Result<()> {
        self.inner.tokens.connection().await.map(|_| ())
    }

    /// Returns a model of the worker as an engine, by the name in its card. Whether the worker has
    /// it turns out when it is called.
    pub fn model(&self, name: impl Into<Arc<str>>) -> RemoteModel {
        RemoteModel { worker: self.clone(), name: name.into() }
    }

    /// Takes a place among the calls in flight.
    fn permit(&self) -> Result<Permit> {
        let limit = self.inner.peer.config.max_in_flight;
        let before = self.inner.in_flight.fetch_add(1, Relaxed);
        let permit = Permit(self.inner.in_flight.clone());
        if before < limit {
            return Ok(permit);
        }
        let address = self.address();
        let text = format!("worker `{address}` has {limit} calls in flight, the most it gets");
        Err(Error::new(ErrorKind::Overloaded, text))
    }

    /// Returns an empty outbox for a request.
    pub(super) fn outbox(&self) -> Outbox {
        Outbox::new(self.inner.peer.config.max_message_bytes)
    }

    /// Makes a call: sends what `outbox` has and waits until the worker accepts.
    pub(super) async fn open<D>(
        &self,
        (path, lane): (&'static str, Lane),
        mut outbox: Outbox,
        until: Option<Instant>,
        reader: D,
    ) -> Result<Answer<D, Permit>>
    where
        D: super::answer::Reader,
    {
        let permit = self.permit()?;
        let opened = self.accepted(path, lane, &mut outbox, until);
        let body = match until {
            None => opened.await?,
            Some(at) => timeout_at(at.into(), opened).await.map_err(|_| deadline::exceeded())??,
        };
        let limit = self.inner.peer.config.max_message_bytes;
        Ok(Answer::new(reader, body, limit, until, permit))
    }

    async fn accepted(
        &self,
        path: &'static str,
        lane: Lane,
        outbox: &mut Outbox,
        until: Option<Instant>,
    ) -> Result<Option<RecvStream>> {
        let link = match lane {
            Lane::Tokens => &self.inner.tokens,
            Lane::Bulk => &self.inner.bulk,
        };
        let request = self.request(path, until)?;
        let mut route = link.connection().await?;
        let (response, mut stream) = match begin(&mut route, request.clone()).await {
            Ok(begun) => begun,
            Err(_) => {
                // It ended in between, or its numbers are used up: nothing was sent.
                route.retire();
                route = link.connection().await?;
                begin(&mut route, request).await.map_err(|error| self.failed(&error))?
            }
        };
        send(outbox, &mut stream, true).map_err(|error| self.failed(&error))?;
        let (parts, body) = response.await.map_err(|error| self.failed(&error))?.into_parts();
        drop(stream);
        if !parts.status.is_success() {
            let status = parts.status;
            return Err(self
                .inner
                .peer
                .unreachable(format!("it answers with HTTP status {status}")));
        }
        match failure::read(&parts.headers) {
            None => Ok(Some(body)),
            Some(ending) => ending.map(|()| None),
        }
    }

    fn failed(&self, error: &h2::Error) -> Error {
        let broken = broken(error);
        Error::new(broken.kind(), format!("{} (`{}`)", broken.message(), self.address()))
    }

    fn request(&self, path: &'static str, until: Option<Instant>) -> Result<Request<()>> {
        let mut uri = http::uri::Parts::default();
        uri.scheme = Some(Scheme::HTTP);
        uri.authority = Some(self.inner.authority.clone());
        uri.path_and_query = Some(PathAndQuery::from_static(path));
        let uri = Uri::from_parts(uri)
            .map_err(|error| Error::internal("a method has no address").with_source(error))?;
        let mut headers = HeaderMap::with_capacity(3);
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        if let Some(until) = until {
            let left = until.saturating_duration_since(Instant::now());
            headers.insert(deadline::TIMEOUT, deadline::header(left));
        }
        let mut request = Request::new(());
        *request.method_mut() = Method::POST;
        *request.uri_mut() = uri;
        *request.headers_mut() = headers;
        Ok(request)
    }
}

type Begun = (h2::client::ResponseFuture, h2::SendStream<bytes::Bytes>);

/// Opens a stream for a request. Errors: the connection takes none any more.
async fn begin(route: &mut Route, request: Request<()>) -> std::result::Result<Begun, h2::Error> {
    let sender = route.live.sender.clone();
    sender.ready().await?.send_request(request, false)
}

/// A model of a worker in another process.
#[derive(Clone)]
pub struct RemoteModel {
    worker: RemoteWorker,
    name: Arc<str>,
}

impl RemoteModel {
    /// Returns the worker that has it.
    pub fn worker(&self) -> &RemoteWorker {
        &self.worker
    }

    /// Returns its name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

#[async_trait]
impl<R: Wire> Engine<R> for RemoteModel {
    async fn call(&self, request: R, context: Context) -> Result<OutputStream<R>> {
        let until = context.deadline();
        if until.is_some_and(|at| at <= Instant::now()) {
            return Err(deadline::exceeded());
        }
        let reader = Outputs::<R>(request.kept());
        let mut outbox = self.worker.outbox();
        request.encode(&self.name, &context, &mut outbox)?;
        let answer = self.worker.open((R::PATH, R::LANE), outbox, until, reader).await?;
        Ok(Box::pin(answer))
    }
}
