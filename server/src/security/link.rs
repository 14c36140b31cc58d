//! TLS between frontends and workers: a worker shows who it is, and a frontend may have to.
//!
//! Connections between roles are few, so the files are looked at again when one is opened: new
//! certificates need no restart. Files that are wrong leave in force what was there.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use cluster::request::{self, Connector, Io};
use engine::Error;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig, version};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::reason::{Ends, Named, Told, check_leaf, of_pair};
use super::tls::{certificates, key, read, roots};

/// The shortest time between two looks at the files.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// The flags of a role's certificate and its key, and of the other role's authorities.
const CERTIFICATE: &str = "--worker-tls-cert";
const KEY: &str = "--worker-tls-key";
const OF_WORKERS: &str = "--worker-tls-ca";
const OF_FRONTENDS: &str = "--worker-tls-client-ca";

/// What each role calls the other.
static FRONTEND: Ends =
    Ends { other: "worker", authorities: OF_WORKERS, their_authorities: OF_FRONTENDS };
static WORKER: Ends =
    Ends { other: "frontend", authorities: OF_FRONTENDS, their_authorities: OF_WORKERS };

/// The files of one role: what it shows and whom it believes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkConfig {
    /// A certificate with its chain, and its key, PEM.
    pub shown: Option<(PathBuf, PathBuf)>,
    /// The authorities of the other role's certificates, PEM.
    pub authorities: Option<PathBuf>,
}

type File = Result<Vec<u8>, String>;

/// The contents of the files.
#[derive(PartialEq, Eq)]
struct Files {
    shown: Option<(File, File)>,
    authorities: Option<File>,
}

impl Files {
    fn read(config: &LinkConfig) -> Self {
        let shown = config.shown.as_ref();
        Self {
            shown: shown.map(|(certificate, key)| (read(certificate), read(key))),
            authorities: config.authorities.as_deref().map(read),
        }
    }
}

/// What is in force, and the files that it was made of.
struct Fresh<T> {
    config: LinkConfig,
    make: fn(&Files, &LinkConfig) -> Result<Arc<T>, String>,
    state: Mutex<State<T>>,
}

struct State<T> {
    looked: Instant,
    seen: Files,
    current: Arc<T>,
}

impl<T: Send + Sync + 'static> Fresh<T> {
    fn load(
        config: LinkConfig,
        make: fn(&Files, &LinkConfig) -> Result<Arc<T>, String>,
    ) -> Result<Arc<Self>, String> {
        let seen = Files::read(&config);
        let state = State { looked: Instant::now(), current: make(&seen, &config)?, seen };
        Ok(Arc::new(Self { config, make, state: Mutex::new(state) }))
    }

    /// Returns what is in force, after a look at the files when the last one is a while ago.
    async fn current(self: &Arc<Self>) -> Arc<T> {
        {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            if state.looked.elapsed() < LOOK_INTERVAL {
                return state.current.clone();
            }
            state.looked = Instant::now();
        }
        let own = self.clone();
        // Files may lie on a slow disk.
        let _ = tokio::task::spawn_blocking(move || own.refresh()).await;
        self.state.lock().unwrap_or_else(PoisonError::into_inner).current.clone()
    }

    fn refresh(&self) {
        let files = Files::read(&self.config);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.seen == files {
            return;
        }
        match (self.make)(&files, &self.config) {
            Ok(made) => {
                state.current = made;
                tracing::info!("certificates between the roles read again");
            }
            Err(why) => tracing::warn!(why, "cannot be read again; the old ones stay in force"),
        }
        state.seen = files;
    }
}

/// A worker's side: shakes hands with whoever connects.
pub(crate) struct LinkAcceptor(Arc<Fresh<ServerConfig>>);

impl LinkAcceptor {
    /// Reads the files. Errors: a sentence that names the flag.
    pub(crate) fn load(config: LinkConfig) -> Result<Self, String> {
        Fresh::load(config, serving).map(Self)
    }
}

#[async_trait]
impl request::Acceptor for LinkAcceptor {
    async fn accept(&self, stream: TcpStream) -> std::io::Result<Box<dyn Io>> {
        let config = self.0.current().await;
        let accepted = TlsAcceptor::from(config).accept(stream).await;
        Ok(Box::new(accepted.map_err(|error| WORKER.told(error))?))
    }
}

/// A frontend's side: makes the connectors to workers.
pub(crate) struct LinkConnectors(Arc<Fresh<ClientConfig>>);

impl LinkConnectors {
    /// Reads the files. Errors: a sentence that names the flag.
    pub(crate) fn load(config: LinkConfig) -> Result<Self, String> {
        Fresh::load(config, calling).map(Self)
    }

    /// Makes the connector to `HOST:PORT`. Errors: a host that no certificate can have.
    pub(crate) fn to(&self, address: &str) -> Result<impl Connector + use<>, Error> {
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let name = ServerName::try_from(host.to_owned()).map_err(|error| {
            Error::invalid(format!("worker `{address}`: expected a host's name or address"))
                .with_source(error)
        })?;
        Ok(SecureConnector { address: address.to_owned(), name, fresh: self.0.clone() })
    }
}

struct SecureConnector {
    address: String,
    name: ServerName<'static>,
    fresh: Arc<Fresh<ClientConfig>>,
}

#[async_trait]
impl Connector for SecureConnector {
    async fn connect(&self) -> std::io::Result<Box<dyn Io>> {
        let config = self.fresh.current().await;
        let stream = TcpStream::connect(&self.address).await?;
        stream.set_nodelay(true)?;
        let connected = TlsConnector::from(config).connect(self.name.clone(), stream).await;
        let stream = connected.map_err(|error| FRONTEND.told(error))?;
        Ok(Box::new(Told::new(stream, &FRONTEND)))
    }

    fn address(&self) -> &str {
        &self.address
    }

    fn is_secure(&self) -> bool {
        true
    }
}

type Pair = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// Reads what a role shows, if it shows anything.
fn shown(files: &Files, config: &LinkConfig) -> Result<Option<Pair>, String> {
    let Some(((chain, private), (certificate, of_key))) =
        files.shown.as_ref().zip(config.shown.as_ref())
    else {
        return Ok(None);
    };
    let certificate = Named { flag: CERTIFICATE, path: certificate };
    let chain = certificates(certificate, chain)?;
    let private = key(Named { flag: KEY, path: of_key }, private)?;
    check_leaf(&chain, certificate)?;
    Ok(Some((chain, private)))
}

/// Says why what a role shows cannot be used.
fn unusable(error: &rustls::Error, config: &LinkConfig) -> String {
    match &config.shown {
        None => error.to_string(),
        Some((certificate, of_key)) => of_pair(
            error,
            Named { flag: CERTIFICATE, path: certificate },
            Named { flag: KEY, path: of_key },
        ),
    }
}

/// Reads the authorities of the other role, if any are named.
fn believed(
    flag: &'static str,
    files: &Files,
    config: &LinkConfig,
) -> Result<Option<Arc<RootCertStore>>, String> {
    let found = files.authorities.as_ref().zip(config.authorities.as_deref());
    found.map(|(file, path)| roots(Named { flag, path }, file)).transpose()
}

fn serving(files: &Files, config: &LinkConfig) -> Result<Arc<ServerConfig>, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&version::TLS13, &version::TLS12])
        .map_err(|error| format!("{CERTIFICATE}: {error}"))?;
    let builder = match believed(OF_FRONTENDS, files, config)? {
        None => builder.with_no_client_auth(),
        Some(roots) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider).build();
            builder.with_client_cert_verifier(
                verifier.map_err(|error| format!("{OF_FRONTENDS}: {error}"))?,
            )
        }
    };
    let none = || format!("{CERTIFICATE}: expected a certificate for TLS");
    let (chain, private) = shown(files, config)?.ok_or_else(none)?;
    let mut made =
        builder.with_single_cert(chain, private).map_err(|error| unusable(&error, config))?;
    made.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(made))
}

fn calling(files: &Files, config: &LinkConfig) -> Result<Arc<ClientConfig>, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let none = || format!("{OF_WORKERS}: expected the authorities of workers for TLS");
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&version::TLS13, &version::TLS12])
        .map_err(|error| format!("{OF_WORKERS}: {error}"))?
        .with_root_certificates(believed(OF_WORKERS, files, config)?.ok_or_else(none)?);
    let mut made = match shown(files, config)? {
        None => builder.with_no_client_auth(),
        Some((chain, private)) => builder
            .with_client_auth_cert(chain, private)
            .map_err(|error| unusable(&error, config))?,
    };
    made.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(made))
}
