//! TCP connections that notice a peer that is gone without a word.

use std::io;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

/// After what silence the system asks whether the peer is still there.
const IDLE: Duration = Duration::from_secs(30);

/// The time between two such questions, and how many may go unanswered.
const INTERVAL: Duration = Duration::from_secs(10);
const RETRIES: u32 = 3;

/// Lets the system end a connection whose peer is gone for about a minute.
pub(crate) fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    let keepalive =
        TcpKeepalive::new().with_time(IDLE).with_interval(INTERVAL).with_retries(RETRIES);
    SockRef::from(stream).set_tcp_keepalive(&keepalive)
}
