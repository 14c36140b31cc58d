//! The flags of the HTTP door.

use clap::Args;

/// The HTTP door.
#[derive(Debug, Args)]
#[command(next_help_heading = "HTTP")]
pub struct HttpArgs {
    /// Address to listen on
    #[arg(long, value_name = "HOST", default_value = "0.0.0.0", env = "STATOR_HTTP_HOST")]
    pub http_host: String,
    /// Port of KServe's REST, the OpenAI and Anthropic APIs and the pages; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = 8000, env = "STATOR_HTTP_PORT")]
    pub http_port: u16,
    /// Do not serve HTTP
    #[arg(long, env = "STATOR_NO_HTTP")]
    pub no_http: bool,
    /// Largest body in bytes, before and after decompression
    #[arg(long, value_name = "BYTES", default_value_t = 64 << 20)]
    #[arg(env = "STATOR_HTTP_MAX_INPUT_BYTES", alias = "http-max-input-size")]
    pub http_max_input_bytes: u32,
    /// Open connections; more wait until one ends or has been silent for 5 seconds
    #[arg(long, value_name = "N", default_value_t = 4096)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    #[arg(env = "STATOR_HTTP_MAX_CONNECTIONS")]
    pub http_max_connections: u32,
    /// Regular expression of the headers whose values become string parameters of a request
    #[arg(long, value_name = "REGEX", env = "STATOR_HTTP_HEADER_FORWARD_PATTERN")]
    pub http_header_forward_pattern: Option<String>,
    /// GROUPS:KEY=VALUE: routes of these groups, comma-separated, need the header KEY with this
    /// value; the groups are those of --grpc-restricted-protocol; may be repeated
    #[arg(long, value_name = "RULE", env = "STATOR_HTTP_RESTRICTED_API")]
    #[arg(value_delimiter = ';', hide_env_values = true)]
    pub http_restricted_api: Vec<String>,
}
