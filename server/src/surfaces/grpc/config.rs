//! The configuration of the gRPC door.

use std::net::SocketAddr;
use std::time::Duration;

use crate::args::{Compression, GrpcArgs};
use crate::security::restriction::Restrictions;
use crate::support::forwarding::Forwarding;
use crate::support::invalid::{Invalid, resolve};

/// The gRPC door: transport and limits.
#[derive(Clone, Debug)]
pub struct GrpcConfig {
    /// Where to listen.
    pub address: SocketAddr,
    /// HTTP/2 connection window, bytes.
    pub connection_window: u32,
    /// HTTP/2 stream window, bytes.
    pub stream_window: u32,
    /// Whether the windows follow the measured bandwidth-delay product.
    pub is_window_adaptive: bool,
    /// Largest frame accepted, bytes.
    pub max_frame: u32,
    /// Largest request, bytes.
    pub max_receive: usize,
    /// Largest response, bytes.
    pub max_send: usize,
    /// Open calls on one connection.
    pub max_concurrent_streams: u32,
    /// Requests in flight on one ModelStreamInfer stream.
    pub max_stream_requests: usize,
    /// Open connections.
    pub max_connections: usize,
    /// Silence after which the server pings.
    pub keepalive_interval: Option<Duration>,
    /// How long a ping may go unanswered.
    pub keepalive_timeout: Duration,
    /// Age at which a connection is asked to end.
    pub max_connection_age: Option<Duration>,
    /// TCP_NODELAY.
    pub has_nodelay: bool,
    /// Encoding of responses.
    pub response_compression: Compression,
    /// The name in ServerMetadata.
    pub server_name: String,
    /// Which headers become request parameters.
    pub(crate) forwarding: Forwarding,
    /// Which calls need a header with a secret.
    pub restrictions: Restrictions,
}

impl GrpcConfig {
    /// Checks the arguments and makes the configuration.
    ///
    /// Errors: [`Invalid`], naming the flag.
    pub(crate) fn from_args(args: &GrpcArgs) -> Result<Self, Invalid> {
        let optional = |ms: u64| (ms > 0).then(|| Duration::from_millis(ms));
        Ok(Self {
            address: resolve("--grpc-host", &args.grpc_host, args.grpc_port)?,
            connection_window: args.grpc_connection_window_bytes,
            stream_window: args.grpc_stream_window_bytes,
            is_window_adaptive: args.grpc_adaptive_window,
            max_frame: args.grpc_max_frame_bytes,
            max_receive: args.grpc_max_receive_message_bytes as usize,
            max_send: args.grpc_max_send_message_bytes as usize,
            max_concurrent_streams: args.grpc_max_concurrent_streams,
            max_stream_requests: args.grpc_max_stream_requests as usize,
            max_connections: args.grpc_max_connections as usize,
            keepalive_interval: optional(args.grpc_keepalive_interval_ms),
            keepalive_timeout: Duration::from_millis(args.grpc_keepalive_timeout_ms),
            max_connection_age: optional(args.grpc_max_connection_age_ms),
            has_nodelay: args.grpc_tcp_nodelay,
            response_compression: args.grpc_response_compression,
            server_name: args.server_name.clone(),
            forwarding: Forwarding::parse(
                "--grpc-header-forward-pattern",
                args.grpc_header_forward_pattern.as_deref(),
            )?,
            restrictions: Restrictions::parse(
                "--grpc-restricted-protocol",
                &args.grpc_restricted_protocol,
                "triton-grpc-protocol-",
            )?,
        })
    }
}

impl Compression {
    /// Returns the name in `grpc-encoding`.
    pub(crate) fn name(self) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::Gzip => Some("gzip"),
            Self::Deflate => Some("deflate"),
            Self::Zstd => Some("zstd"),
        }
    }
}
