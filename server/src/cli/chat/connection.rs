//! HTTP to a server: one connection a request, so that dropping the answer drops the connection.

use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::ChatError;
use super::frames::error_text;

/// How long a connection may take to open.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a server may be silent: a long prompt waits in a queue and is read before the first token.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(600);

/// The largest body that is read at once, such as a list of models.
const MAX_BODY_BYTES: usize = 4 << 20;

/// What carries HTTP: a socket, or TLS over one.
trait Transport: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Transport for T {}

/// A server and how to reach it.
pub(super) struct Server {
    host: String,
    port: u16,
    /// What comes before `/v1`.
    prefix: String,
    tls: Option<TlsConnector>,
    authorization: Option<HeaderValue>,
}

impl Server {
    /// Reads an address such as `http://localhost:8000`, with or without `/v1` at its end.
    ///
    /// Errors: an address, key or file of authorities that cannot be used.
    pub(super) fn new(
        url: &str,
        key: Option<&str>,
        authorities: Option<&Path>,
    ) -> Result<Self, ChatError> {
        let wrong = |why: &str| ChatError::Address { url: url.to_owned(), why: why.to_owned() };
        let uri: Uri = url.parse().map_err(|_| wrong("it is no URL"))?;
        let host = uri.host().ok_or_else(|| wrong("it has no host"))?;
        let is_tls = match uri.scheme_str() {
            None | Some("http") => false,
            Some("https") => true,
            Some(_) => return Err(wrong("expected http or https")),
        };
        let path = uri.path().trim_end_matches('/');
        let key = key.map(|key| HeaderValue::try_from(format!("Bearer {key}"))).transpose();
        let mut authorization =
            key.map_err(|_| ChatError::Key("a header cannot hold it".to_owned()))?;
        authorization.iter_mut().for_each(|value| value.set_sensitive(true));
        Ok(Self {
            host: host.trim_matches(['[', ']']).to_owned(),
            port: uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 }),
            prefix: path.strip_suffix("/v1").unwrap_or(path).to_owned(),
            tls: if is_tls { Some(connector(authorities)?) } else { None },
            authorization,
        })
    }

    /// Returns the names of the models.
    pub(super) async fn models(&self) -> Result<Vec<String>, ChatError> {
        let answer = self.send(Method::GET, "/v1/models", None).await?;
        let body = answer.whole().await?;
        let list: Value = serde_json::from_slice(&body)
            .map_err(|_| ChatError::Strange("a list of models that is no JSON".to_owned()))?;
        let models = list["data"].as_array().into_iter().flatten();
        Ok(models.filter_map(|model| model["id"].as_str().map(str::to_owned)).collect())
    }

    /// Begins a chat's stream.
    pub(super) async fn chat(&self, body: &Value) -> Result<Answer, ChatError> {
        let answer =
            self.send(Method::POST, "/v1/chat/completions", Some(body.to_string())).await?;
        match answer.kind.starts_with("text/event-stream") {
            true => Ok(answer),
            false => Err(ChatError::Strange(format!("`{}` instead of a stream", answer.kind))),
        }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<String>,
    ) -> Result<Answer, ChatError> {
        let host = match (self.host.contains(':'), self.port) {
            (true, port) => format!("[{}]:{port}", self.host),
            (false, port) => format!("{}:{port}", self.host),
        };
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.prefix))
            .header(header::HOST, host)
            .header(header::USER_AGENT, concat!("stator/", env!("CARGO_PKG_VERSION")));
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        if let Some(value) = &self.authorization {
            request = request.header(header::AUTHORIZATION, value);
        }
        let request = request
            .body(Full::new(Bytes::from(body.unwrap_or_default())))
            .map_err(|error| ChatError::Strange(error.to_string()))?;
        let (mut sender, mut connection) = timeout(CONNECT_TIMEOUT, self.connect())
            .await
            .unwrap_or_else(|_| Err(self.unreachable("it does not answer")))?;
        let sent = timeout(SILENCE_TIMEOUT, async {
            tokio::select! {
                response = sender.send_request(request) => response.map_err(broken),
                end = &mut connection => Err(end.map_or_else(broken, |()| closed())),
            }
        });
        let response = sent.await.unwrap_or_else(|_| Err(silent()))?;
        let status = response.status();
        let kind = response.headers().get(header::CONTENT_TYPE);
        let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default().to_owned();
        let answer = Answer { kind, body: response.into_body(), connection: Some(connection) };
        if status.is_success() {
            return Ok(answer);
        }
        let text = answer.whole().await.unwrap_or_default();
        let told = serde_json::from_slice(&text).ok().and_then(|json: Value| error_text(&json));
        Err(ChatError::Refused { status: status.as_u16(), text: told.unwrap_or_default() })
    }

    fn unreachable(&self, why: &str) -> ChatError {
        let address = format!("{}:{}", self.host, self.port);
        ChatError::Unreachable { address, why: why.to_owned() }
    }

    async fn connect(&self) -> Result<(http1::SendRequest<Full<Bytes>>, Connection), ChatError> {
        let socket = TcpStream::connect((self.host.as_str(), self.port));
        let socket = socket.await.map_err(|error| self.unreachable(&error.to_string()))?;
        let _ = socket.set_nodelay(true);
        let transport: Box<dyn Transport> = match &self.tls {
            None => Box::new(socket),
            Some(tls) => {
                let name = ServerName::try_from(self.host.clone())
                    .map_err(|_| self.unreachable("its name cannot be in a certificate"))?;
                let stream = tls.connect(name, socket).await;
                Box::new(stream.map_err(|error| self.unreachable(&error.to_string()))?)
            }
        };
        let (sender, connection) =
            http1::handshake(TokioIo::new(transport)).await.map_err(broken)?;
        Ok((sender, Box::pin(connection)))
    }
}

type Connection = Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>;

/// An answer whose body is still to come; dropping it closes the connection.
pub(super) struct Answer {
    kind: String,
    body: Incoming,
    /// Moves the bytes; none after its end.
    connection: Option<Connection>,
}

impl Answer {
    /// Returns the next bytes, nothing at the end.
    ///
    /// Errors: a connection that breaks or is silent for too long.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, ChatError> {
        timeout(SILENCE_TIMEOUT, self.read()).await.unwrap_or_else(|_| Err(silent()))
    }

    async fn read(&mut self) -> Result<Option<Bytes>, ChatError> {
        loop {
            let frame = match &mut self.connection {
                None => self.body.frame().await,
                Some(connection) => tokio::select! {
                    biased;
                    frame = self.body.frame() => frame,
                    end = connection => {
                        self.connection = None;
                        end.map_err(broken)?;
                        continue;
                    }
                },
            };
            match frame {
                None => return Ok(None),
                Some(Err(error)) => return Err(broken(error)),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }

    /// Reads the whole body, up to [`MAX_BODY_BYTES`].
    async fn whole(mut self) -> Result<Vec<u8>, ChatError> {
        let mut whole = Vec::new();
        while let Some(bytes) = self.next().await? {
            whole.extend_from_slice(&bytes);
            if whole.len() > MAX_BODY_BYTES {
                return Err(ChatError::Strange(format!("a body of over {MAX_BODY_BYTES} bytes")));
            }
        }
        Ok(whole)
    }
}

fn broken(error: hyper::Error) -> ChatError {
    ChatError::Broken(error.to_string())
}

fn closed() -> ChatError {
    ChatError::Broken("the server closed it".to_owned())
}

fn silent() -> ChatError {
    ChatError::Broken(format!("nothing came for {} seconds", SILENCE_TIMEOUT.as_secs()))
}

/// Makes what speaks TLS: it trusts the given authorities, or the web's.
fn connector(authorities: Option<&Path>) -> Result<TlsConnector, ChatError> {
    let mut roots = RootCertStore::empty();
    match authorities {
        None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        Some(path) => {
            let wrong =
                |why: String| ChatError::File { path: path.to_owned(), what: "authorities", why };
            let found = CertificateDer::pem_file_iter(path).map_err(|e| wrong(e.to_string()))?;
            for certificate in found {
                let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
                roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
            }
            if roots.is_empty() {
                return Err(wrong("no certificate is in it".to_owned()));
            }
        }
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider has the default versions of TLS")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_with_and_without_its_parts() {
        let table = [
            ("http://localhost:8000", "localhost", 8000, ""),
            ("localhost:8000", "localhost", 8000, ""),
            ("http://host/v1", "host", 80, ""),
            ("http://host/v1/", "host", 80, ""),
            ("https://host/models/v1", "host", 443, "/models"),
            ("http://[::1]:9", "::1", 9, ""),
        ];
        for (url, host, port, prefix) in table {
            let server =
                Server::new(url, Some("key"), None).unwrap_or_else(|e| panic!("{url}: {e}"));
            let found = (server.host.as_str(), server.port, server.prefix.as_str());
            assert_eq!(found, (host, port, prefix), "{url}");
            assert_eq!(server.tls.is_some(), url.starts_with("https"), "{url}");
        }
    }

    #[test]
    fn an_address_or_key_that_cannot_be_used_is_told() {
        let table = [
            ("grpc://host:1", None, "expected http or https"),
            ("http://", None, "no URL"),
            ("/v1", None, "no host"),
            ("http://host", Some("a\nb"), "API key"),
        ];
        for (url, key, expected) in table {
            let error = Server::new(url, key, None).err().unwrap().to_string();
            assert!(error.contains(expected), "{url}: {error}");
        }
        let file = Some(Path::new("/nowhere/ca.pem"));
        let error = Server::new("https://host", None, file).err().unwrap().to_string();
        assert!(error.contains("/nowhere/ca.pem"), "{error}");
    }
}
