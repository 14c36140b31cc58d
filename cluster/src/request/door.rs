//! Where frontends come in: a TCP port, in the clear or behind an [`Acceptor`], or a Unix socket.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::{TcpListener, TcpStream, UnixListener};

use super::connector::Acceptor;
use super::local::LocalStream;

/// Where frontends come in.
pub(super) enum Door {
    /// A port; who comes is taken in by the acceptor, if there is one.
    Tcp(TcpListener, Option<Arc<dyn Acceptor>>),
    /// A socket for processes of this machine.
    Local(UnixListener),
}

/// Who has come and is not taken in yet.
pub(super) enum Caller {
    Plain(TcpStream),
    Guarded(TcpStream, Arc<dyn Acceptor>),
    Local(LocalStream),
}

impl Door {
    /// Waits for the next connection, and returns it with its other end, as far as that has an
    /// address.
    pub(super) async fn accept(&self) -> io::Result<(Caller, Option<SocketAddr>)> {
        match self {
            Self::Local(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok((Caller::Local(LocalStream::new(stream)?), None))
            }
            Self::Tcp(listener, acceptor) => {
                let (stream, peer) = listener.accept().await?;
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "cannot set TCP_NODELAY");
                }
                let caller = match acceptor {
                    None => Caller::Plain(stream),
                    Some(by) => Caller::Guarded(stream, by.clone()),
                };
                Ok((caller, Some(peer)))
            }
        }
    }
}
