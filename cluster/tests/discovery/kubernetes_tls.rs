//! An API server with a certificate.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use axum::serve::Listener;
use cluster::discovery::kubernetes;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::server::TlsStream;

use super::etcd_security::make_certificates;
use super::*;

struct TlsListener {
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

impl Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (stream, address) = self.listener.accept().await.unwrap();
            if let Ok(stream) = self.acceptor.accept(stream).await {
                return (stream, address);
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

fn acceptor(folder: &Path) -> TlsAcceptor {
    let certificate = CertificateDer::from_pem_file(folder.join("cert.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(folder.join("key.pem")).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = config.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    TlsAcceptor::from(Arc::new(config.with_single_cert(vec![certificate], key).unwrap()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_servers_certificate_is_checked() {
    let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    make_certificates(folder.path());
    make_certificates(other.path());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let listener = TlsListener { listener, acceptor: acceptor(folder.path()) };
    let (server, tasks) = (ApiServer::start_over(listener, address), Tasks::new());
    let open = |host: &str, folder: &Path| {
        let ca_pem = std::fs::read_to_string(folder.join("ca.pem")).unwrap();
        let config = kubernetes::Config {
            server: format!("https://{host}:{}", address.port()),
            ca_pem: Some(ca_pem),
            ..kubernetes_config(&server)
        };
        Arc::new(Kubernetes::new(config, &tasks).unwrap()) as Arc<dyn Discovery>
    };
    let discovery = open("127.0.0.1", folder.path());
    let instance = instance("fleet", 1);
    let lease = discovery.register(instance.clone()).await.unwrap();
    until_held(&lease).await;
    let mut follower = follow(&discovery);
    follower.until("it", |follower| follower.has(&instance)).await;
    // Another authority, and another name than the certificate's.
    for stranger in [open("127.0.0.1", other.path()), open("localhost", folder.path())] {
        let mut refused = follow(&stranger);
        refused.until("refused", |follower| follower.is_stale).await;
        refused.for_a_while(Duration::from_millis(500)).await;
        assert!(refused.known.is_empty());
    }
}
