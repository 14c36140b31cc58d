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
use rustls::pki_types::ServerName;
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, ServerConfig, version};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::tls::{certificates, key, read, roots};

/// The shortest time between two looks at the files.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// The flags of this role's certificate, its key, and of the other role's authorities.
const WORKER: [&str; 3] = ["--worker-tls-cert", "--worker-tls-key", "--worker-tls-client-ca"];
const FRONTEND: [&str; 3] = ["--worker-tls-cert", "--worker-tls-key", "--worker-tls-ca"];

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
    make: fn(&Files) -> Result<Arc<T>, String>,
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
        make: fn(&Files) -> Result<Arc<T>, String>,
    ) -> Result<Arc<Self>, String> {
        let seen = Files::read(&config);
        let state = State { looked: Instant::now(), current: make(&seen)?, seen };
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
        match (self.make)(&files) {
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
        Ok(Box::new(TlsAcceptor::from(config).accept(stream).await?))
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
        Ok(Box::new(TlsConnector::from(config).connect(self.name.clone(), stream).await?))
    }

    fn address(&self) -> &str {
        &self.address
    }

    fn is_secure(&self) -> bool {
        true
    }
}

fn serving(files: &Files) -> Result<Arc<ServerConfig>, String> {
    let [certificate_flag, key_flag, authorities_flag] = WORKER;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&version::TLS13, &version::TLS12])
        .map_err(|error| format!("{certificate_flag}: {error}"))?;
    let builder = match &files.authorities {
        None => builder.with_no_client_auth(),
        Some(file) => {
            let roots = roots(authorities_flag, file)?;
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider).build();
            builder.with_client_cert_verifier(
                verifier.map_err(|error| format!("{authorities_flag}: {error}"))?,
            )
        }
    };
    let none = || format!("{certificate_flag}: expected a certificate for TLS");
    let (chain, private) = files.shown.as_ref().ok_or_else(none)?;
    let mut config = builder
        .with_single_cert(certificates(certificate_flag, chain)?, key(key_flag, private)?)
        .map_err(|error| format!("{certificate_flag}, {key_flag}: {error}"))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

fn calling(files: &Files) -> Result<Arc<ClientConfig>, String> {
    let [certificate_flag, key_flag, authorities_flag] = FRONTEND;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let none = || format!("{authorities_flag}: expected the authorities of workers for TLS");
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&version::TLS13, &version::TLS12])
        .map_err(|error| format!("{authorities_flag}: {error}"))?
        .with_root_certificates(roots(
            authorities_flag,
            files.authorities.as_ref().ok_or_else(none)?,
        )?);
    let mut config = match &files.shown {
        None => builder.with_no_client_auth(),
        Some((chain, private)) => builder
            .with_client_auth_cert(certificates(certificate_flag, chain)?, key(key_flag, private)?)
            .map_err(|error| format!("{certificate_flag}, {key_flag}: {error}"))?,
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}
