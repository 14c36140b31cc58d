//! HTTP to the server, over connections that are kept.
//!
//! Dropping an answer before its end closes its connection, which servers take as a cancellation.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use engine::{Context, Error, ErrorKind, Result};
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method, Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use openai_bridge::upstream_error;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value as Json;
use tokio::time::timeout;

use super::config::UpstreamConfig;

/// How long a connection may take to open.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the server may be silent: a long prompt waits in its queue before the first token.
pub(super) const SILENCE: Duration = Duration::from_secs(600);

/// How long a connection that nobody uses is kept; servers mostly close them after 5 seconds.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);

/// Most connections that nobody uses.
const MAX_IDLE: usize = 256;

/// The largest answer in one piece, in bytes.
const MAX_BODY_BYTES: usize = 64 << 20;

/// The largest error that is read, in bytes.
const MAX_ERROR_BYTES: usize = 256 << 10;

/// A client of the server.
#[derive(Debug)]
pub(super) struct Client {
    http: legacy::Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    base: String,
    headers: HeaderMap,
}

impl Client {
    /// Makes the client; nothing is opened yet.
    ///
    /// Errors: authorities that cannot be read.
    pub(super) fn new(config: &UpstreamConfig) -> std::result::Result<Self, String> {
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls(config.authorities.as_deref())?)
            .https_or_http()
            .enable_http1()
            .wrap_connector(http);
        let http = legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(MAX_IDLE)
            .build(connector);
        let mut headers = HeaderMap::new();
        let agent = concat!("stator/", env!("CARGO_PKG_VERSION"));
        headers.insert(USER_AGENT, HeaderValue::from_static(agent));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(value) = &config.authorization {
            headers.insert(AUTHORIZATION, value.clone());
        }
        Ok(Self { http, base: config.base.clone(), headers })
    }

    /// Returns the server's address.
    pub(super) fn base(&self) -> &str {
        &self.base
    }

    /// Asks for JSON.
    ///
    /// Errors: UNAVAILABLE if the server cannot be reached; what it says itself.
    pub(super) async fn get(&self, path: &str) -> Result<Json> {
        let response = self.send(Method::GET, path, Bytes::new(), &[]).await?;
        json(&whole(response.into_body()).await?)
    }

    /// Sends JSON and returns what comes back, once the server has accepted it. It is told the
    /// caller's span and the request's name.
    ///
    /// Errors: as [`get`](Self::get).
    pub(super) async fn post(
        &self,
        path: &str,
        body: Bytes,
        context: &Context,
    ) -> Result<Response<Incoming>> {
        let name = Some(context.id()).filter(|id| !id.is_empty());
        let headers = [("traceparent", context.trace_parent()), ("x-request-id", name)];
        self.send(Method::POST, path, body, &headers).await
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        headers: &[(&'static str, Option<&str>)],
    ) -> Result<Response<Incoming>> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = format!("{}{path}", self.base)
            .parse()
            .map_err(|error| Error::internal("the server's address is none").with_source(error))?;
        *request.headers_mut() = self.headers.clone();
        request.headers_mut().insert(ACCEPT, HeaderValue::from_static("*/*"));
        // What cannot be a header came from no door.
        for (name, value) in headers {
            if let Some(value) = value.and_then(|value| HeaderValue::from_str(value).ok()) {
                request.headers_mut().insert(*name, value);
            }
        }
        let sent = timeout(SILENCE, self.http.request(request)).await;
        let sent = sent.map_err(|_| silent(SILENCE))?;
        let response = sent.map_err(|error| match error.is_connect() {
            true => unreachable(error),
            false => broken(error),
        })?;
        match response.status().is_success() {
            true => Ok(response),
            false => Err(refused(response).await),
        }
    }
}

/// Reads the error of a server that refused.
async fn refused(response: Response<Incoming>) -> Error {
    let status = response.status().as_u16();
    let wait = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
    let wait = wait.and_then(|text| text.parse().ok()).map(Duration::from_secs);
    let body = Limited::new(response.into_body(), MAX_ERROR_BYTES).collect();
    let body = timeout(CONNECT_TIMEOUT, body).await.ok().and_then(std::result::Result::ok);
    let body = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let told: Json = serde_json::from_slice(&body).unwrap_or_default();
    // OpenAI's form has it under a key; vLLM's older one, and FastAPI's own, have not.
    let told = ["error", "detail"].iter().find_map(|key| told.get(key)).unwrap_or(&told);
    let error = upstream_error(told, Some(status));
    match wait {
        Some(wait) => error.with_retry_after(wait),
        None => error,
    }
}

/// Reads an answer that comes in one piece.
///
/// Errors: it is too large, the server is silent, the connection breaks.
pub(super) async fn whole(body: Incoming) -> Result<Bytes> {
    let body = timeout(SILENCE, Limited::new(body, MAX_BODY_BYTES).collect()).await;
    let body = body.map_err(|_| silent(SILENCE))?;
    body.map(http_body_util::Collected::to_bytes).map_err(|error| {
        let text = format!("an answer of the model's server broke: {error}");
        Error::new(ErrorKind::Unavailable, text).with_code(BROKEN)
    })
}

/// Reads JSON.
pub(super) fn json(bytes: &[u8]) -> Result<Json> {
    serde_json::from_slice(bytes)
        .map_err(|error| Error::internal(format!("the model's server gave no JSON: {error}")))
}

fn unreachable(error: legacy::Error) -> Error {
    let text = "the model's server cannot be reached";
    Error::new(ErrorKind::Unavailable, text).with_code(UNREACHABLE).with_source(error)
}

/// The code of an error of a server that is not there.
pub(super) const UNREACHABLE: &str = "upstream_unreachable";

/// The code of other errors between the worker and the server. With a code the worker itself is
/// not taken for lost.
pub(super) const BROKEN: &str = "upstream_broken";

pub(super) fn broken(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    let text = "the connection to the model's server broke";
    Error::new(ErrorKind::Unavailable, text).with_code(BROKEN).with_source(error)
}

pub(super) fn silent(time: Duration) -> Error {
    let text = format!("the model's server said nothing for {} seconds", time.as_secs_f32());
    Error::new(ErrorKind::Unavailable, text).with_code(BROKEN)
}

fn tls(authorities: Option<&Path>) -> std::result::Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    match authorities {
        None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        Some(path) => {
            let wrong = |why: String| format!("--upstream-ca-file: `{}`: {why}", path.display());
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
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth())
}
