//! TLS of the listeners, from files that may be replaced while the server runs.
//!
//! What is in force is always whole and was checked: a certificate with the key that belongs to
//! it. Connections keep what they were opened with.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, version};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::config::TlsConfig;
use super::reason::{Named, of_pair};
use crate::args::TlsListener;

/// Largest file of certificates or keys, in bytes.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// The certificates in force, and the files they are from.
pub(crate) struct Tls {
    config: TlsConfig,
    current: RwLock<Current>,
    /// The files as they were when they were last looked at.
    seen: Mutex<Files>,
}

/// What the listeners shake hands with; they differ in protocols and in the wish for a client's
/// certificate.
#[derive(Clone)]
struct Current {
    grpc: Arc<ServerConfig>,
    http: Arc<ServerConfig>,
    metrics: Arc<ServerConfig>,
}

/// The contents of the files; a file that cannot be read has its error.
#[derive(Clone, PartialEq, Eq)]
struct Files {
    certificate: Result<Vec<u8>, String>,
    key: Result<Vec<u8>, String>,
    client_ca: Option<Result<Vec<u8>, String>>,
}

impl Tls {
    /// Reads the files.
    ///
    /// Errors: a sentence that names the flag of the file that is wrong.
    pub(crate) fn load(config: TlsConfig) -> Result<Self, String> {
        let files = Files::read(&config);
        let current = RwLock::new(Current::new(&files, &config)?);
        Ok(Self { config, current, seen: Mutex::new(files) })
    }

    /// Reads the files again; returns whether something new is in force.
    ///
    /// Errors: new files that are wrong, told once; what was in force stays.
    pub(super) fn refresh(&self) -> Result<bool, String> {
        let files = Files::read(&self.config);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if *seen == files {
            return Ok(false);
        }
        let current = Current::new(&files, &self.config);
        *seen = files;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = current?;
        Ok(true)
    }
}

impl Files {
    fn read(config: &TlsConfig) -> Self {
        Self {
            certificate: read(&config.certificate),
            key: read(&config.key),
            client_ca: config.client_ca.as_deref().map(read),
        }
    }
}

/// Reads a file that is not too large to be what it should be.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, String> {
    let fail = |why: String| format!("cannot read `{}`: {why}", path.display());
    let found = fs::metadata(path).map_err(|error| fail(error.to_string()))?;
    if !found.is_file() {
        return Err(fail("it is no file".to_owned()));
    }
    let length = found.len();
    if length > MAX_FILE_BYTES {
        return Err(fail(format!("it has {length} bytes, more than {MAX_FILE_BYTES}")));
    }
    fs::read(path).map_err(|error| fail(error.to_string()))
}

impl Current {
    fn new(files: &Files, config: &TlsConfig) -> Result<Self, String> {
        let certificate_file = Named { flag: "--tls-cert", path: &config.certificate };
        let key_file = Named { flag: "--tls-key", path: &config.key };
        let certificates = certificates(certificate_file, &files.certificate)?;
        let key = key(key_file, &files.key)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let roots = match config.client_ca.as_deref().zip(files.client_ca.as_ref()) {
            None => None,
            Some((path, file)) => Some(roots(Named { flag: "--tls-client-ca", path }, file)?),
        };
        let make = |roots: Option<&Arc<RootCertStore>>, protocols: &[&[u8]]| {
            let builder = ServerConfig::builder_with_provider(provider.clone())
                .with_protocol_versions(&[&version::TLS13, &version::TLS12])
                .map_err(|error| format!("--tls-cert: {error}"))?;
            let builder = match roots {
                None => builder.with_no_client_auth(),
                Some(roots) => {
                    let verifier = WebPkiClientVerifier::builder_with_provider(
                        roots.clone(),
                        provider.clone(),
                    );
                    let verifier =
                        verifier.build().map_err(|error| format!("--tls-client-ca: {error}"))?;
                    builder.with_client_cert_verifier(verifier)
                }
            };
            let mut config = builder
                .with_single_cert(certificates.clone(), key.clone_key())
                .map_err(|error| of_pair(&error, certificate_file, key_file))?;
            config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
            Ok::<_, String>(Arc::new(config))
        };
        let (h2, http1): (&[u8], &[u8]) = (b"h2", b"http/1.1");
        Ok(Self {
            grpc: make(roots.as_ref(), &[h2])?,
            http: make(roots.as_ref(), &[h2, http1])?,
            metrics: make(None, &[h2, http1])?,
        })
    }
}

/// Reads the private key of a PEM file.
pub(super) fn key(
    named: Named<'_>,
    file: &Result<Vec<u8>, String>,
) -> Result<PrivateKeyDer<'static>, String> {
    let flag = named.flag;
    let pem = file.as_ref().map_err(|why| format!("{flag}: {why}"))?;
    PrivateKeyDer::from_pem_slice(pem)
        .map_err(|error| format!("{flag}: expected a private key in PEM in {named}: {error}"))
}

/// Reads the certificates of a PEM file, at least one.
pub(super) fn certificates(
    named: Named<'_>,
    file: &Result<Vec<u8>, String>,
) -> Result<Vec<CertificateDer<'static>>, String> {
    let flag = named.flag;
    let pem = file.as_ref().map_err(|why| format!("{flag}: {why}"))?;
    let all = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    let all =
        all.map_err(|error| format!("{flag}: expected certificates in PEM in {named}: {error}"))?;
    match all.is_empty() {
        true => {
            Err(format!("{flag}: expected at least one certificate in PEM in {named}, got none"))
        }
        false => Ok(all),
    }
}

/// Reads the authorities of a PEM file, at least one.
pub(super) fn roots(
    named: Named<'_>,
    file: &Result<Vec<u8>, String>,
) -> Result<Arc<RootCertStore>, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(named, file)? {
        let refused = |error| format!("{}: {named}: {error}", named.flag);
        roots.add(certificate).map_err(refused)?;
    }
    Ok(Arc::new(roots))
}

/// Makes TLS of one listener's connections, with what is in force when each is opened.
#[derive(Clone)]
pub(crate) struct Acceptor {
    tls: Arc<Tls>,
    listener: TlsListener,
}

impl Acceptor {
    /// Makes the acceptor of a listener; none if it serves in the clear.
    pub(super) fn new(tls: Arc<Tls>, listener: TlsListener) -> Option<Self> {
        let is_wanted = tls.config.listeners.contains(&listener);
        is_wanted.then_some(Self { tls, listener })
    }

    /// Shakes hands.
    pub(crate) async fn accept(&self, stream: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
        let config = {
            let current = self.tls.current.read().unwrap_or_else(PoisonError::into_inner);
            match self.listener {
                TlsListener::Grpc => current.grpc.clone(),
                TlsListener::Http => current.http.clone(),
                TlsListener::Metrics => current.metrics.clone(),
            }
        };
        TlsAcceptor::from(config).accept(stream).await
    }
}
