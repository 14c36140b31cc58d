//! The frontend's end: one worker, its models as engines.

use std::sync::Arc;
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
use super::ended::Ended;
use super::link::{Begun, Link, Use};
use super::outbox::Outbox;
use super::peer::{LinkState, Peer};
use super::places::{Place, Places};
use super::{deadline, failure};

/// Calls beside inference to one worker that are open at once, each watch among them; more are
/// refused with OVERLOADED. They do not count as calls in flight: a worker that is busy must still
/// say that it is alive.
const MAX_CONTROL_CALLS: usize = 1024;

/// How a frontend talks to a worker.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// Connections for token streams, and as many for tensors, embeddings and files. Each is
    /// opened when it is wanted.
    pub connections: usize,
    /// Requests to the worker's engines that are open at once; more are refused with OVERLOADED.
    pub max_in_flight: usize,
    /// The longest message with tensors or embeddings in bytes, both ways.
    pub max_message_bytes: usize,
    /// The longest message of a text's tokens in bytes, both ways.
    pub max_token_message_bytes: usize,
    /// What a token stream may send ahead of its reader, in bytes; less, if `max_in_flight` of
    /// them would not fit into the 2 GiB of a connection's window.
    pub token_window_bytes: u32,
    /// What other answers may send ahead of their readers, in bytes; less, as above: 512 KiB with
    /// the default bounds.
    pub bulk_window_bytes: u32,
    /// The largest HTTP/2 frame to receive, in bytes: 16 KiB to 16 MiB less one.
    pub max_frame_bytes: u32,
    /// How long opening a connection may take.
    pub connect_timeout: Duration,
    /// The wait after a first failure to connect; calls fail at once in the meantime.
    pub backoff_first: Duration,
    /// The longest such wait; it doubles from failure to failure.
    pub backoff_max: Duration,
    /// The time between two pings of a connection, three times that while no request is open.
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
            max_token_message_bytes: 64 << 20,
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
    control: Places,
}

/// A call's place among those of its kind, and its stream's on the connection: both are only held.
pub(super) struct Permit {
    _call: Place,
    _stream: Option<Place>,
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
        let control = Places::default();
        Ok(Self { inner: Arc::new(Inner { peer, authority, tokens, bulk, control }) })
    }

    /// Returns the worker's address.
    pub fn address(&self) -> &str {
        self.inner.peer.connector.address()
    }

    /// Returns what is known of the worker by its connections, now and later.
    pub fn state(&self) -> watch::Receiver<LinkState> {
        self.inner.peer.state()
    }

    /// Returns how many requests to engines are open.
    pub fn in_flight(&self) -> usize {
        self.inner.peer.calls.taken()
    }

    /// Opens a connection if none is there, so that the worker's end will be noticed.
    ///
    /// Errors: UNAVAILABLE.
    pub async fn connect(&self) -> Result<()> {
        self.inner.tokens.connection(Use::Control).await.map(|_| ())
    }

    /// Returns a model of the worker as an engine, by the name in its card. Whether the worker has
    /// it turns out when it is called.
    pub fn model(&self, name: impl Into<Arc<str>>) -> RemoteModel {
        RemoteModel { worker: self.clone(), name: name.into() }
    }

    /// Takes a place among the calls of a kind.
    fn place(&self, what_for: Use) -> Result<Place> {
        let (places, limit) = match what_for {
            Use::Call => (&self.inner.peer.calls, self.inner.peer.config.max_in_flight),
            Use::Control => (&self.inner.control, MAX_CONTROL_CALLS),
        };
        places.take(limit).ok_or_else(|| {
            let address = self.address();
            let text = format!("worker `{address}` has {limit} calls in flight, the most it gets");
            Error::new(ErrorKind::Overloaded, text)
        })
    }

    /// Returns the longest message of a lane in bytes.
    fn max_bytes(&self, lane: Lane) -> usize {
        let config = &self.inner.peer.config;
        lane.max_bytes(config.max_message_bytes, config.max_token_message_bytes)
    }

    /// Returns an empty outbox for a request.
    pub(super) fn outbox(&self, lane: Lane) -> Outbox {
        Outbox::new(self.max_bytes(lane))
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
        let mut permit = Permit { _call: self.place(lane.what_for())?, _stream: None };
        let opened = self.accepted((path, lane), &mut outbox, until, &mut permit);
        let (body, ended) = match until {
            None => opened.await?,
            Some(at) => timeout_at(at.into(), opened).await.map_err(|_| deadline::exceeded())??,
        };
        Ok(Answer::new(reader, (body, ended), self.max_bytes(lane), until, permit))
    }

    async fn accepted(
        &self,
        (path, lane): (&'static str, Lane),
        outbox: &mut Outbox,
        until: Option<Instant>,
        permit: &mut Permit,
    ) -> Result<(Option<RecvStream>, Arc<Ended>)> {
        let Begun { response, body: mut stream, place, ended } =
            self.begin((path, lane), until).await?;
        permit._stream = Some(place);
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
            None => Ok((Some(body), ended)),
            Some(ending) => ending.map(|()| (None, ended)),
        }
    }

    /// Opens a stream. Connections that ended in between or whose numbers are used up are found
    /// by trying; nothing was sent on them, so that the next one is tried, and at last a new one.
    async fn begin(
        &self,
        (path, lane): (&'static str, Lane),
        until: Option<Instant>,
    ) -> Result<Begun> {
        let link = match lane {
            Lane::Tokens | Lane::Control => &self.inner.tokens,
            Lane::Bulk | Lane::Files => &self.inner.bulk,
        };
        let mut tries = 0;
        loop {
            let route = link.connection(lane.what_for()).await?;
            // The time that is left is what is left now, behind all that was waited for.
            match route.begin(self.request(path, until)?).await {
                Ok(begun) => return Ok(begun),
                Err(error) if tries == link.size() => return Err(self.failed(&error)),
                Err(_) => tries += 1,
            }
        }
    }

    fn failed(&self, error: &h2::Error) -> Error {
        let broken = broken(error);
        Error::new(broken.kind(), format!("{} (`{}`)", broken.message(), self.address()))
    }

    fn request(&self, path: &'static str, until: Option<Instant>) -> Result<Request<()>> {
        let mut uri = http::uri::Parts::default();
        uri.scheme = Some(match self.inner.peer.connector.is_secure() {
            true => Scheme::HTTPS,
            false => Scheme::HTTP,
        });
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
        let mut outbox = self.worker.outbox(R::LANE);
        request.encode(&self.name, &context, &mut outbox)?;
        let answer = self.worker.open((R::PATH, R::LANE), outbox, until, reader).await?;
        Ok(Box::pin(answer))
    }
}
