//! A configuration that cannot be served, and the checks that several parts make.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};

/// A configuration that cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(pub String);

/// Resolves the address of a listener; `flag` names the host.
///
/// Errors: [`Invalid`]: it is not an address of this machine.
pub(crate) fn resolve(flag: &str, host: &str, port: u16) -> Result<SocketAddr, Invalid> {
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(SocketAddr::new(ip, port));
    }
    (host, port)
        .to_socket_addrs()
        .ok()
        .and_then(|mut addresses| addresses.next())
        .ok_or_else(|| Invalid(format!("{flag}: `{host}` is not an address of this machine")))
}
