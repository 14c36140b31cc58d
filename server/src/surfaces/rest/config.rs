//! The configuration of the HTTP door.

use std::net::SocketAddr;

use crate::args::HttpArgs;
use crate::security::restriction::Restrictions;
use crate::support::forwarding::Forwarding;
use crate::support::invalid::{Invalid, resolve};

/// The HTTP door: KServe's REST.
#[derive(Clone, Debug)]
pub struct HttpConfig {
    /// Where to listen.
    pub address: SocketAddr,
    /// Largest body, bytes, before and after decompression.
    pub max_input: usize,
    /// Open connections.
    pub max_connections: usize,
    /// Which headers become request parameters.
    pub(crate) forwarding: Forwarding,
    /// Which calls need a header with a secret.
    pub restrictions: Restrictions,
}

impl HttpConfig {
    /// Checks the arguments and makes the configuration.
    ///
    /// Errors: [`Invalid`], naming the flag.
    pub(crate) fn from_args(args: &HttpArgs) -> Result<Self, Invalid> {
        Ok(Self {
            address: resolve("--http-host", &args.http_host, args.http_port)?,
            max_input: args.http_max_input_bytes as usize,
            max_connections: args.http_max_connections as usize,
            forwarding: Forwarding::parse(
                "--http-header-forward-pattern",
                args.http_header_forward_pattern.as_deref(),
            )?,
            restrictions: Restrictions::parse(
                "--http-restricted-api",
                &args.http_restricted_api,
                "",
            )?,
        })
    }
}
