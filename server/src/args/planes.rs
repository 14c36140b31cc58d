//! The flags of what carries requests and events between the roles of a fleet.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;

/// How frontends and workers talk to each other.
#[derive(Debug, Args)]
#[command(next_help_heading = "Fleet")]
pub struct PlaneArgs {
    /// Servers of NATS, nats://HOST:PORT,... or tls://, with USER:PASSWORD@ or TOKEN@ in front of
    /// the host, percent-encoded; the first that is given holds for all of them; the variable keeps
    /// secrets out of the command line
    #[arg(long, value_name = "URL", env = "STATOR_NATS", value_delimiter = ',')]
    #[arg(hide_env_values = true)]
    pub nats: Vec<String>,
    /// Credentials for NATS, a file as `nsc` writes it
    #[arg(long, value_name = "FILE", env = "STATOR_NATS_CREDENTIALS")]
    pub nats_credentials: Option<PathBuf>,
    /// Authorities of the certificates of NATS, PEM, beside the system's
    #[arg(long, value_name = "FILE", env = "STATOR_NATS_CA")]
    pub nats_ca: Option<PathBuf>,
    /// What carries requests: a worker with `nats` can be called both ways, a frontend with `nats`
    /// calls over gRPC where NATS cannot be reached
    #[arg(long, value_name = "PLANE", value_enum, default_value_t = Plane::Grpc)]
    #[arg(env = "STATOR_REQUEST_PLANE")]
    pub request_plane: Plane,
    /// What carries the events of KV caches and workers' loads, in the same way
    #[arg(long, value_name = "PLANE", value_enum, default_value_t = Plane::Grpc)]
    #[arg(env = "STATOR_EVENT_PLANE")]
    pub event_plane: Plane,
    #[command(flatten)]
    pub sockets: SocketArgs,
}

/// How frontends and workers of one machine talk to each other.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Fleet")]
pub struct SocketArgs {
    /// Folder of the Unix sockets by which frontends call workers on 127.0.0.1 that are the same
    /// user's, in place of TCP; only its owner may open it; empty: TCP [default: stator in
    /// XDG_RUNTIME_DIR, or else stator-UID in the folder of temporary files]
    #[arg(long, value_name = "DIR", env = "STATOR_SOCKET_DIR")]
    pub socket_dir: Option<OsString>,
}

/// What carries something between the roles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Plane {
    /// HTTP/2 between frontend and worker
    Grpc,
    /// Messages over the servers of --nats
    Nats,
}
