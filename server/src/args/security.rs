//! The flags of certificates, keys and origins.

use std::num::NonZeroU32;
use std::path::PathBuf;

use clap::Args;
use clap::builder::TypedValueParser;

/// Who may talk to the server.
#[derive(Debug, Args)]
#[command(next_help_heading = "Security")]
pub struct SecurityArgs {
    /// Certificate of the server and its chain, PEM: serve TLS
    #[arg(long, value_name = "FILE", env = "STATOR_TLS_CERT")]
    pub tls_cert: Option<PathBuf>,
    /// Private key of the certificate, PEM
    #[arg(long, value_name = "FILE", env = "STATOR_TLS_KEY")]
    pub tls_key: Option<PathBuf>,
    /// Authorities of client certificates, PEM: gRPC and HTTP require one from every client
    #[arg(long, value_name = "FILE", env = "STATOR_TLS_CLIENT_CA")]
    pub tls_client_ca: Option<PathBuf>,
    /// Listeners that serve TLS, the others serve in the clear [default: all of them]
    #[arg(long, value_name = "LIST", value_enum)]
    #[arg(env = "STATOR_TLS_LISTENERS", value_delimiter = ',')]
    pub tls_listeners: Vec<TlsListener>,
    /// Seconds between two looks at the files of certificates and API keys; 0 looks only at
    /// SIGHUP
    #[arg(long, value_name = "SECONDS", default_value_t = 5, env = "STATOR_TLS_RELOAD_SECS")]
    #[arg(value_parser = clap::value_parser!(u32).range(0..=86_400))]
    pub tls_reload_secs: u32,
    /// File of API keys, TOML or JSON (.json): calls need one of them; `stator key NAME` makes one
    #[arg(long, value_name = "FILE", env = "STATOR_API_KEYS")]
    pub api_keys: Option<PathBuf>,
    /// Origin of web pages that may call over HTTP, `*` for all [default: none]; may be repeated
    #[arg(long, value_name = "ORIGIN", env = "STATOR_CORS_ORIGIN", value_delimiter = ',')]
    pub cors_origin: Vec<String>,
    /// Memory in MiB for requests of all clients, from their first byte to the end of their work,
    /// and for answers until they are written; over it they are refused [default: 4096, at most a
    /// quarter of what a limit of the address space or of the control group leaves the process]
    #[arg(long, value_name = "MIB", env = "STATOR_MAX_BUFFERED_MIB")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    pub max_buffered_mib: Option<u32>,
    /// Requests above 64 KiB that are prepared at once: their JSON is read, their template rendered,
    /// their tokens are found, at most 256; the others wait [default: half of the cores, at least 2]
    #[arg(long, value_name = "COUNT", env = "STATOR_MAX_PREPARING_REQUESTS")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=256).try_map(NonZeroU32::try_from))]
    pub max_preparing_requests: Option<NonZeroU32>,
}

/// A listener that TLS can be had for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum TlsListener {
    /// gRPC
    Grpc,
    /// HTTP
    Http,
    /// Metrics
    Metrics,
}
