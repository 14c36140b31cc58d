//! How a frontend reaches a worker, and a worker takes frontends in: TCP, a Unix socket, or whatever
//! else gives a stream of bytes.

use std::io;
use std::path::PathBuf;

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use super::local::LocalStream;

/// A stream of bytes in both directions.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Io for T {}

/// Opens connections to one peer. TLS to a worker is a connector around a connector.
#[async_trait]
pub trait Connector: Send + Sync + 'static {
    /// Opens a connection.
    async fn connect(&self) -> io::Result<Box<dyn Io>>;

    /// Returns the peer's address, `HOST:PORT`, for messages and as the authority of a worker's calls.
    fn address(&self) -> &str;

    /// Returns whether nobody else can read along, which calls tell by their scheme.
    fn is_secure(&self) -> bool {
        false
    }

    /// Returns whether this way fails for now, and is worth a try only if no other one works.
    fn is_left(&self) -> bool {
        false
    }

    /// Hears that a connection is silent, and waits until it is known whether all of this way are:
    /// they have ended then.
    async fn settle(&self) {}
}

/// Makes a stream of bytes of a connection that a worker accepted, such as by a TLS handshake.
#[async_trait]
pub trait Acceptor: Send + Sync + 'static {
    /// Takes a connection in.
    async fn accept(&self, stream: TcpStream) -> io::Result<Box<dyn Io>>;
}

/// Connects by TCP in the clear.
#[derive(Clone, Debug)]
pub struct Tcp {
    address: String,
}

impl Tcp {
    /// Makes the connector to `HOST:PORT`.
    pub fn new(address: impl Into<String>) -> Self {
        Self { address: address.into() }
    }
}

#[async_trait]
impl Connector for Tcp {
    async fn connect(&self) -> io::Result<Box<dyn Io>> {
        let stream = TcpStream::connect(&self.address).await?;
        stream.set_nodelay(true)?;
        Ok(Box::new(stream))
    }

    fn address(&self) -> &str {
        &self.address
    }
}

/// Connects by a Unix socket in the clear, to a worker on the same machine.
#[derive(Clone, Debug)]
pub struct Local {
    path: PathBuf,
    user: u32,
    address: String,
}

impl Local {
    /// Makes the connector to the socket at `path`, which has to be that of a process of `user`;
    /// `address` is the worker's `HOST:PORT`, for messages.
    pub fn new(path: impl Into<PathBuf>, user: u32, address: impl Into<String>) -> Self {
        Self { path: path.into(), user, address: address.into() }
    }
}

#[async_trait]
impl Connector for Local {
    async fn connect(&self) -> io::Result<Box<dyn Io>> {
        let stream = UnixStream::connect(&self.path).await?;
        if stream.peer_cred()?.uid() != self.user {
            let text = "the socket is another user's";
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
        }
        Ok(Box::new(LocalStream::new(stream)?))
    }

    fn address(&self) -> &str {
        &self.address
    }
}
