//! The flags of the gRPC door.

use clap::Args;

/// The gRPC door.
#[derive(Debug, Args)]
#[command(next_help_heading = "gRPC")]
pub struct GrpcArgs {
    /// Address to listen on
    #[arg(long, value_name = "HOST", default_value = "0.0.0.0", env = "STATOR_GRPC_HOST")]
    pub grpc_host: String,
    /// Port to listen on; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = 8001, env = "STATOR_GRPC_PORT")]
    pub grpc_port: u16,
    /// HTTP/2 connection window in bytes (also DYN_GRPC_INITIAL_CONNECTION_WINDOW_SIZE)
    #[arg(long, value_name = "BYTES", default_value_t = 8 << 20, value_parser = window())]
    #[arg(env = "STATOR_GRPC_CONNECTION_WINDOW_BYTES")]
    pub grpc_connection_window_bytes: u32,
    /// HTTP/2 stream window in bytes (also DYN_GRPC_INITIAL_STREAM_WINDOW_SIZE)
    #[arg(long, value_name = "BYTES", default_value_t = 4 << 20, value_parser = window())]
    #[arg(env = "STATOR_GRPC_STREAM_WINDOW_BYTES")]
    pub grpc_stream_window_bytes: u32,
    /// Size the windows by the measured bandwidth-delay product, over the two sizes above
    #[arg(long, env = "STATOR_GRPC_ADAPTIVE_WINDOW")]
    pub grpc_adaptive_window: bool,
    /// Largest HTTP/2 frame the server accepts, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 1 << 20)]
    #[arg(value_parser = clap::value_parser!(u32).range(16_384..=16_777_215))]
    #[arg(env = "STATOR_GRPC_MAX_FRAME_BYTES")]
    pub grpc_max_frame_bytes: u32,
    /// Largest request in bytes, after decompression
    #[arg(long, value_name = "BYTES", default_value_t = i32::MAX as u32)]
    #[arg(env = "STATOR_GRPC_MAX_RECEIVE_MESSAGE_BYTES")]
    pub grpc_max_receive_message_bytes: u32,
    /// Largest response in bytes
    #[arg(long, value_name = "BYTES", default_value_t = i32::MAX as u32)]
    #[arg(env = "STATOR_GRPC_MAX_SEND_MESSAGE_BYTES")]
    pub grpc_max_send_message_bytes: u32,
    /// Open calls on one connection
    #[arg(long, value_name = "N", default_value_t = 1024)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    #[arg(env = "STATOR_GRPC_MAX_CONCURRENT_STREAMS")]
    pub grpc_max_concurrent_streams: u32,
    /// Requests in flight on one ModelStreamInfer stream; more wait in the connection
    #[arg(long, value_name = "N", default_value_t = 128)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=65_536))]
    #[arg(env = "STATOR_GRPC_MAX_STREAM_REQUESTS")]
    pub grpc_max_stream_requests: u32,
    /// Open connections; more wait until one ends or has been silent for 5 seconds
    #[arg(long, value_name = "N", default_value_t = 4096)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    #[arg(env = "STATOR_GRPC_MAX_CONNECTIONS")]
    pub grpc_max_connections: u32,
    /// Milliseconds of silence after which the server pings a connection; 0 never pings
    #[arg(long, value_name = "MS", default_value_t = 7_200_000)]
    #[arg(env = "STATOR_GRPC_KEEPALIVE_INTERVAL_MS")]
    pub grpc_keepalive_interval_ms: u64,
    /// Milliseconds without an answer to a ping after which a connection is closed
    #[arg(long, value_name = "MS", default_value_t = 20_000)]
    #[arg(env = "STATOR_GRPC_KEEPALIVE_TIMEOUT_MS")]
    pub grpc_keepalive_timeout_ms: u64,
    /// Milliseconds after which a connection is asked to end and reconnect; 0 never
    #[arg(long, value_name = "MS", default_value_t = 0)]
    #[arg(env = "STATOR_GRPC_MAX_CONNECTION_AGE_MS")]
    pub grpc_max_connection_age_ms: u64,
    /// Send small writes at once (TCP_NODELAY)
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    #[arg(env = "STATOR_GRPC_TCP_NODELAY")]
    pub grpc_tcp_nodelay: bool,
    /// Compress responses for clients that accept it; requests may always be gzip, deflate or zstd
    #[arg(long, value_name = "ENCODING", value_enum, default_value_t = Compression::None)]
    #[arg(env = "STATOR_GRPC_RESPONSE_COMPRESSION")]
    pub grpc_response_compression: Compression,
    /// Regular expression of the headers whose values become string parameters of a request
    #[arg(long, value_name = "REGEX", env = "STATOR_GRPC_HEADER_FORWARD_PATTERN")]
    pub grpc_header_forward_pattern: Option<String>,
    /// GROUPS:KEY=VALUE: calls of these groups, comma-separated, need the header
    /// triton-grpc-protocol-KEY with this value. Groups: health, metadata, inference, shared-memory, model-config,
    /// model-repository, statistics, trace, logging; may be repeated
    #[arg(long, value_name = "RULE", env = "STATOR_GRPC_RESTRICTED_PROTOCOL")]
    #[arg(value_delimiter = ';', hide_env_values = true)]
    pub grpc_restricted_protocol: Vec<String>,
    /// The server's name in ServerMetadata; Triton's clients and tools look for `triton`
    #[arg(long, value_name = "NAME", default_value = "triton", env = "STATOR_SERVER_NAME")]
    pub server_name: String,
}

/// HTTP/2 allows windows up to 2^31 - 1 and this server none under the protocol's default.
fn window() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(65_535..=i64::from(i32::MAX))
}

/// How responses are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip
    Gzip,
    /// deflate (zlib)
    Deflate,
    /// zstd
    Zstd,
}
