//! The few calls of the Kubernetes API that discovery makes, over HTTP/1.1.
//!
//! Calls share a few kept connections; each watch has one of its own. Every call has a time limit
//! and every answer a size limit.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use engine::{Error, ErrorKind, Result, Tasks};
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue, USER_AGENT};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto::ring};
use tracing::debug;

use super::Config;
use super::objects::Status;
use crate::request::{Connector, Io};
use crate::tcp::keep_alive;

/// Calls that run at the same time, and so connections that are kept.
const CONNECTIONS: usize = 8;
/// The largest answer of one call: a page of the largest records.
const MAX_ANSWER_BYTES: usize = 128 << 20;
/// How long a token is used before its file is read again: Kubernetes replaces it every hour.
const TOKEN_AGE: Duration = Duration::from_secs(60);

type Sender = SendRequest<Full<Bytes>>;

/// A client of one API server; clones share its connections.
#[derive(Clone)]
pub(super) struct Client(Arc<Inner>);

struct Inner {
    connector: Arc<dyn Connector>,
    authority: HeaderValue,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    token_file: Option<PathBuf>,
    token: Mutex<Option<(Instant, HeaderValue)>>,
    idle: Mutex<Vec<Sender>>,
    turns: Semaphore,
    timeout: Duration,
    tasks: Tasks,
}

/// Connects to the API server by TCP; the system ends a connection whose peer is gone.
struct KeptAlive {
    host: String,
    port: u16,
    address: String,
}

#[async_trait]
impl Connector for KeptAlive {
    async fn connect(&self) -> io::Result<Box<dyn Io>> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
        stream.set_nodelay(true)?;
        keep_alive(&stream)?;
        Ok(Box::new(stream))
    }

    fn address(&self) -> &str {
        &self.address
    }
}

/// A call.
pub(super) struct Call<'a> {
    pub(super) method: Method,
    /// The path with the query.
    pub(super) path: &'a str,
    /// The body and its content type.
    pub(super) body: Option<(Bytes, &'static str)>,
}

impl<'a> Call<'a> {
    pub(super) fn get(path: &'a str) -> Self {
        Self { method: Method::GET, path, body: None }
    }
}

/// Why the API server did not do what it was asked.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) status: StatusCode,
    pub(super) error: Error,
}

impl From<Error> for Refused {
    /// Without an answer there is no status; 503 stands for that.
    fn from(error: Error) -> Self {
        Self { status: StatusCode::SERVICE_UNAVAILABLE, error }
    }
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Self {
        refused.error
    }
}

impl Client {
    /// Makes a client. Nothing is connected before something is asked, and then by TCP unless there
    /// is a connector.
    pub(super) fn new(
        config: &Config,
        connector: Option<Arc<dyn Connector>>,
        tasks: &Tasks,
    ) -> Result<Self> {
        let wrong = |what: &str| {
            let server = &config.server;
            Error::invalid(format!("kubernetes: server {server:?}: {what}"))
        };
        let uri: http::Uri =
            config.server.parse().map_err(|_| wrong("expected https://HOST:PORT"))?;
        let host = uri.host().ok_or_else(|| wrong("expected https://HOST:PORT"))?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let (tls, port) = match (uri.scheme_str(), &config.ca_pem) {
            (Some("https"), Some(pem)) => {
                let name = ServerName::try_from(host.clone());
                let name = name.map_err(|_| wrong("expected a name or an address"))?;
                (Some((tls_connector(pem)?, name)), 443)
            }
            (Some("https"), None) => {
                return Err(wrong("https needs the certificate authority of the server"));
            }
            (Some("http"), _) => (None, 80),
            _ => return Err(wrong("expected https://HOST:PORT")),
        };
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        let authority = HeaderValue::from_str(authority).map_err(|_| wrong("expected a host"))?;
        let port = uri.port_u16().unwrap_or(port);
        let connector = connector.unwrap_or_else(|| {
            let address = format!("{host}:{port}");
            Arc::new(KeptAlive { host, port, address })
        });
        Ok(Self(Arc::new(Inner {
            connector,
            authority,
            tls,
            token_file: config.token_file.clone(),
            token: Mutex::default(),
            idle: Mutex::default(),
            turns: Semaphore::new(CONNECTIONS),
            timeout: config.request_timeout,
            tasks: tasks.clone(),
        })))
    }

    /// Makes a call and reads its answer, which nothing is needed of.
    pub(super) async fn done(&self, call: Call<'_>) -> std::result::Result<(), Refused> {
        self.bytes(call).await.map(|_| ())
    }

    /// Makes a call and reads its answer.
    pub(super) async fn call<T: DeserializeOwned>(
        &self,
        call: Call<'_>,
    ) -> std::result::Result<T, Refused> {
        let path = call.path.to_owned();
        let bytes = self.bytes(call).await?;
        let read = serde_json::from_slice(&bytes);
        Ok(read.map_err(|error| {
            let text = format!("kubernetes: {}: cannot read the answer: {error}", plain(&path));
            Error::new(ErrorKind::Unavailable, text)
        })?)
    }

    async fn bytes(&self, call: Call<'_>) -> std::result::Result<Bytes, Refused> {
        let path = plain(call.path).to_owned();
        let late = |_| unavailable(&format!("{path}: no answer in time"));
        // Whoever has a turn gives it back in time, so that this wait is bounded too.
        let _turn = self.0.turns.acquire().await;
        let whole = timeout(self.0.timeout, async {
            let (answer, sender) = self.send(&call, true).await?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES).collect().await;
            let body = body.map_err(|error| unavailable(&format!("{path}: {error}")))?.to_bytes();
            self.keep(sender);
            match status.is_success() {
                true => Ok(body),
                false => Err(refused(&call, status, &body)),
            }
        });
        whole.await.map_err(late)?
    }

    /// Opens a call whose answer does not end, over a connection of its own.
    pub(super) async fn open(&self, path: &str) -> std::result::Result<Incoming, Refused> {
        let late = |_| unavailable(&format!("{}: no answer in time", plain(path)));
        let opened = timeout(self.0.timeout, async {
            let call = Call::get(path);
            let (answer, _) = self.send(&call, false).await?;
            let status = answer.status();
            if status.is_success() {
                return Ok(answer.into_body());
            }
            let body = Limited::new(answer.into_body(), 1 << 20).collect().await;
            let body = body.map(|body| body.to_bytes()).unwrap_or_default();
            Err(refused(&call, status, &body))
        });
        opened.await.map_err(late)?
    }

    /// Sends a call; a token that is refused is read anew, and a kept connection that has ended
    /// meanwhile is replaced, each once.
    async fn send(&self, call: &Call<'_>, may_share: bool) -> Result<(Response<Incoming>, Sender)> {
        let mut kept = if may_share { self.take() } else { None };
        let mut has_read_token = false;
        loop {
            let was_kept = kept.is_some();
            let mut sender = match kept.take() {
                Some(sender) => sender,
                None => self.connect().await?,
            };
            let request = self.request(call).await?;
            match sender.send_request(request).await {
                Ok(answer) if answer.status() == StatusCode::UNAUTHORIZED && !has_read_token => {
                    has_read_token = true;
                    *self.token() = None;
                    debug!("kubernetes refused the token, reading it again");
                }
                Ok(answer) => return Ok((answer, sender)),
                Err(error) if was_kept => debug!(%error, "a kept connection has ended"),
                Err(error) => {
                    let text = format!("kubernetes: {}: {error}", plain(call.path));
                    return Err(Error::new(ErrorKind::Unavailable, text).with_source(error));
                }
            }
        }
    }

    async fn request(&self, call: &Call<'_>) -> Result<Request<Full<Bytes>>> {
        let (body, kind) = call.body.clone().unzip();
        let mut request = Request::new(Full::new(body.unwrap_or_default()));
        *request.method_mut() = call.method.clone();
        let wrong = |_| Error::internal("kubernetes: expected a path");
        *request.uri_mut() = call.path.parse().map_err(wrong)?;
        let token = self.bearer().await?;
        let headers = request.headers_mut();
        headers.insert(HOST, self.0.authority.clone());
        headers.insert(USER_AGENT, HeaderValue::from_static("stator"));
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        if let Some(kind) = kind {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        }
        if let Some(token) = token {
            headers.insert(AUTHORIZATION, token);
        }
        Ok(request)
    }

    /// Returns the header with the token, which is read from its file now and then.
    async fn bearer(&self) -> Result<Option<HeaderValue>> {
        let Some(file) = self.0.token_file.clone() else { return Ok(None) };
        if let Some((since, header)) = &*self.token()
            && since.elapsed() < TOKEN_AGE
        {
            return Ok(Some(header.clone()));
        }
        let name = file.display().to_string();
        let failed = |error: &dyn std::fmt::Display| {
            unavailable(&format!("cannot read the token in {name}: {error}"))
        };
        let read = spawn_blocking(move || std::fs::read_to_string(file)).await;
        let text = read.map_err(|error| failed(&error))?.map_err(|error| failed(&error))?;
        let header = HeaderValue::from_str(&format!("Bearer {}", text.trim()));
        let mut header = header.map_err(|_| failed(&"it holds control characters"))?;
        header.set_sensitive(true);
        *self.token() = Some((Instant::now(), header.clone()));
        Ok(Some(header))
    }

    fn token(&self) -> std::sync::MutexGuard<'_, Option<(Instant, HeaderValue)>> {
        self.0.token.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Option<Sender> {
        let mut idle = self.0.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|sender| !sender.is_closed());
        idle.pop()
    }

    fn keep(&self, sender: Sender) {
        let mut idle = self.0.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < CONNECTIONS && !sender.is_closed() {
            idle.push(sender);
        }
    }

    async fn connect(&self) -> Result<Sender> {
        let address = self.0.connector.address();
        let failed = |error: io::Error| {
            let text = format!("kubernetes: cannot connect to {address}: {error}");
            Error::new(ErrorKind::Unavailable, text).with_source(error)
        };
        let stream = self.0.connector.connect().await.map_err(failed)?;
        let Some((connector, name)) = &self.0.tls else {
            return self.speak(stream).await;
        };
        let stream = connector.connect(name.clone(), stream).await.map_err(failed)?;
        self.speak(stream).await
    }

    async fn speak(&self, stream: impl Io) -> Result<Sender> {
        let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|error| {
            let address = self.0.connector.address();
            unavailable(&format!("cannot speak with {address}: {error}")).with_source(error)
        })?;
        self.0.tasks.spawn("kubernetes connection", async move {
            if let Err(error) = connection.await {
                debug!(%error, "connection to kubernetes ended");
            }
        });
        Ok(sender)
    }
}

fn tls_connector(ca_pem: &str) -> Result<TlsConnector> {
    let wrong = |text: String| Error::invalid(format!("kubernetes: certificate authority: {text}"));
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
        let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
        roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(wrong("expected at least one certificate in PEM, got none".into()));
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong(error.to_string()))?;
    let config = config.with_root_certificates(roots).with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

fn refused(call: &Call<'_>, status: StatusCode, body: &[u8]) -> Refused {
    let said = serde_json::from_slice::<Status>(body).unwrap_or_default();
    let text = format!(
        "kubernetes: {} {}: {status}: {}",
        call.method,
        plain(call.path),
        said.message.chars().take(500).collect::<String>()
    );
    Refused { status, error: Error::new(ErrorKind::Unavailable, text) }
}

/// Returns a path without its query.
fn plain(path: &str) -> &str {
    path.split_once('?').map_or(path, |(path, _)| path)
}

pub(super) fn unavailable(text: &str) -> Error {
    Error::new(ErrorKind::Unavailable, format!("kubernetes: {text}"))
}

/// Writes a text as a part of a query.
pub(super) fn encode(text: &str) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                encoded.push(byte.into());
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
        encoded
    })
}
