//! One connection to one member of an etcd cluster; who loses it makes the next one.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use engine::{Error, ErrorKind, Result};
use futures_util::Stream;
use http::uri::PathAndQuery;
use prost::Message;
use tokio::time::timeout;
use tonic::client::Grpc;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Request, Status, Streaming};
use tonic_prost::ProstCodec;
use tracing::debug;

use super::wire::{AuthenticateRequest, AuthenticateResponse};
use super::{Auth, Config, Tls};

/// The largest answer: a page of the largest records.
const MAX_MESSAGE_BYTES: usize = 128 << 20;

/// Connects to one member after the other.
#[derive(Clone)]
pub(super) struct Connector {
    endpoints: Vec<Endpoint>,
    at: usize,
    auth: Option<Auth>,
    timeout: Duration,
}

/// A connection, authenticated if that is configured. Every call has a time limit.
///
/// etcd forgets tokens that were not used for some minutes, and all of them when users change:
/// a call whose token is not known any more asks for another one and is made once more.
#[derive(Clone)]
pub(super) struct Connection {
    grpc: Grpc<Channel>,
    auth: Option<Auth>,
    /// The newest token, which all clones share.
    token: Arc<Mutex<Option<Token>>>,
    /// Held by who takes another one.
    turn: Arc<tokio::sync::Mutex<()>>,
    timeout: Duration,
}

type Token = MetadataValue<Ascii>;

impl Connector {
    pub(super) fn new(config: &Config) -> Result<Self> {
        if config.endpoints.is_empty() {
            return Err(Error::invalid("etcd: expected at least one endpoint, got none"));
        }
        let endpoints = config.endpoints.iter().map(|address| endpoint(address, config));
        Ok(Self {
            endpoints: endpoints.collect::<Result<_>>()?,
            at: 0,
            auth: config.auth.clone(),
            timeout: config.request_timeout,
        })
    }

    /// Returns one that begins at any member, so that clients spread.
    pub(super) fn spread(&self) -> Self {
        Self { at: fastrand::usize(..self.endpoints.len()), ..self.clone() }
    }

    /// Connects to the next member.
    pub(super) async fn connect(&mut self) -> Result<Connection> {
        let endpoint = &self.endpoints[self.at % self.endpoints.len()];
        self.at = (self.at + 1) % self.endpoints.len();
        let name = endpoint.uri().to_string();
        let channel = timeout(self.timeout, endpoint.connect()).await;
        let channel = channel.map_err(|_| late(&name))?.map_err(|error| {
            let text = format!("etcd: cannot connect to {name}: {}", with_cause(&error, None));
            Error::new(ErrorKind::Unavailable, text).with_source(error)
        })?;
        let grpc = Grpc::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let (token, turn) = Default::default();
        let auth = self.auth.clone();
        let connection = Connection { grpc, auth, token, turn, timeout: self.timeout };
        if let Some(auth) = &connection.auth {
            connection.authenticate(auth, None).await?;
        }
        Ok(connection)
    }

    /// Returns how many members there are.
    pub(super) fn members(&self) -> u32 {
        u32::try_from(self.endpoints.len()).unwrap_or(u32::MAX)
    }
}

impl Connection {
    /// Makes a call with one answer.
    pub(super) async fn call<Q, A>(&self, path: &'static str, request: Q) -> Result<A>
    where
        Q: Message + Clone + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        let token = self.token().clone();
        let status = match self.try_call(path, request.clone(), token.clone()).await? {
            Ok(answer) => return Ok(answer),
            Err(status) => status,
        };
        let Some(auth) = self.auth.as_ref().filter(|_| is_token_refused(&status)) else {
            return Err(failed(path, &status));
        };
        debug!(reason = status.message(), "etcd refused the token, taking another");
        self.authenticate(auth, token).await?;
        let token = self.token().clone();
        self.try_call(path, request, token).await?.map_err(|status| failed(path, &status))
    }

    /// Makes a call once; the status is etcd's own.
    async fn try_call<Q, A>(
        &self,
        path: &'static str,
        request: Q,
        token: Option<Token>,
    ) -> Result<std::result::Result<A, Status>>
    where
        Q: Message + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        let request = with_token(request, token);
        let call = async {
            let mut grpc = self.grpc.clone();
            grpc.ready().await.map_err(|error| lost(path, error))?;
            let (path_and_query, codec) = (PathAndQuery::from_static(path), ProstCodec::default());
            let answer = grpc.unary(request, path_and_query, codec).await;
            Ok(answer.map(tonic::Response::into_inner))
        };
        timeout(self.timeout, call).await.map_err(|_| late(path))?
    }

    /// Takes another token than the one that was refused, for the calls that follow. Of many who
    /// were refused one asks, since etcd takes its time to check a password.
    async fn authenticate(&self, auth: &Auth, refused: Option<Token>) -> Result<()> {
        let _turn = self.turn.lock().await;
        if *self.token() != refused {
            return Ok(());
        }
        let request =
            AuthenticateRequest { name: auth.user.clone(), password: auth.password.clone() };
        let path = "/etcdserverpb.Auth/Authenticate";
        let answer = self.try_call(path, request, None).await?;
        let answer: AuthenticateResponse = answer.map_err(|status| failed(path, &status))?;
        let wrong = |_| Error::internal("etcd: expected a token of visible characters");
        *self.token() = Some(answer.token.parse().map_err(wrong)?);
        Ok(())
    }

    fn token(&self) -> MutexGuard<'_, Option<Token>> {
        self.token.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a call with a stream each way.
    pub(super) async fn open<Q, A>(
        &self,
        path: &'static str,
        requests: impl Stream<Item = Q> + Send + 'static,
    ) -> Result<Streaming<A>>
    where
        Q: Message + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        let token = self.token().clone();
        let request = with_token(requests, token);
        let call = async {
            let mut grpc = self.grpc.clone();
            grpc.ready().await.map_err(|error| lost(path, error))?;
            let (path_and_query, codec) = (PathAndQuery::from_static(path), ProstCodec::default());
            let answer = grpc.streaming(request, path_and_query, codec).await;
            Ok(answer.map_err(|status| failed(path, &status))?.into_inner())
        };
        timeout(self.timeout, call).await.map_err(|_| late(path))?
    }
}

fn with_token<T>(message: T, token: Option<Token>) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(token) = token {
        request.metadata_mut().insert("token", token);
    }
    request
}

/// Returns whether a call may succeed with a new token: the old one was forgotten, or the users
/// were changed since it was given. etcd says so in words that its own client looks for.
fn is_token_refused(status: &Status) -> bool {
    let reasons = ["invalid auth token", "auth store is old", "user name is empty"];
    reasons.iter().any(|reason| status.message().contains(reason))
}

fn endpoint(address: &str, config: &Config) -> Result<Endpoint> {
    let wrong = |error: &dyn std::fmt::Display| {
        Error::invalid(format!("etcd: endpoint {address:?}: {error}"))
    };
    let address = match address.contains("://") {
        true => address.to_owned(),
        false if config.tls.is_some() => format!("https://{address}"),
        false => format!("http://{address}"),
    };
    let endpoint = Endpoint::from_shared(address.clone()).map_err(|error| wrong(&error))?;
    let endpoint = endpoint.connect_timeout(config.request_timeout);
    match (address.starts_with("https://"), &config.tls) {
        (true, Some(tls)) => endpoint.tls_config(tls_config(tls)).map_err(|error| {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            wrong(&format!("TLS: {}", cause.unwrap_or_else(|| error.to_string())))
        }),
        (true, None) => Err(wrong(&"https needs the certificate authority of etcd")),
        (false, Some(_)) => Err(wrong(&"TLS is configured, expected https")),
        (false, None) => Ok(endpoint),
    }
}

fn tls_config(tls: &Tls) -> ClientTlsConfig {
    let mut config = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&tls.ca_pem));
    if let Some((certificate, key)) = &tls.identity_pem {
        config = config.identity(Identity::from_pem(certificate, key));
    }
    match &tls.domain {
        Some(domain) => config.domain_name(domain),
        None => config,
    }
}

fn late(what: &str) -> Error {
    Error::new(ErrorKind::Unavailable, format!("etcd: {what}: no answer in time"))
}

fn lost(path: &str, error: tonic::transport::Error) -> Error {
    let text = format!("etcd: {path}: {}", with_cause(&error, Some("connection lost")));
    Error::new(ErrorKind::Unavailable, text).with_source(error)
}

pub(super) fn failed(path: &str, status: &Status) -> Error {
    let text = format!("etcd: {path}: {}", with_cause(status, Some(status.message())));
    Error::new(ErrorKind::Unavailable, text)
}

/// Returns what is said of an error, and the innermost cause behind it: the library's own words are
/// few, and the cause is a certificate that is refused, or a port where nobody listens.
fn with_cause(error: &dyn std::error::Error, said: Option<&str>) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    match (said, causes.last().map(ToString::to_string)) {
        (Some(said), Some(cause)) if !said.contains(&cause) => format!("{said}: {cause}"),
        (Some(said), _) => said.to_owned(),
        (None, cause) => cause.unwrap_or_else(|| error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn a_failure_says_what_is_at_the_bottom_of_it() {
        let refused = || io::Error::other("received fatal alert: CertificateRequired");
        let broken = Error::internal("connection error").with_source(refused());
        let error = Error::internal("transport error").with_source(broken);
        let cases = [
            (
                Status::from_error(Box::new(error)),
                "etcd: /p: transport error: received fatal alert: CertificateRequired",
            ),
            (
                Status::from_error(Box::new(refused())),
                "etcd: /p: received fatal alert: CertificateRequired",
            ),
            (Status::unavailable("etcdserver: no leader"), "etcd: /p: etcdserver: no leader"),
        ];
        for (status, told) in cases {
            assert_eq!(failed("/p", &status).message(), told);
        }
    }
}
