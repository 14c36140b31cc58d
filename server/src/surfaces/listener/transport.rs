//! A connection's bytes, in the clear or under TLS: one type, so that protocols are compiled once.

use std::io::{IoSlice, Result};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::calls::Shared;

/// An accepted connection.
pub(crate) struct Transport {
    stream: Stream,
    /// Bytes that were looked at and are still to be read.
    looked_at: Bytes,
    /// Is told of bytes that are written.
    told: Option<Arc<Shared>>,
}

/// Where the bytes come from.
enum Stream {
    /// As they are.
    Plain(TcpStream),
    /// After a handshake.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Transport {
    /// Makes the transport of a connection in the clear.
    pub(super) fn plain(stream: TcpStream) -> Self {
        Self { stream: Stream::Plain(stream), looked_at: Bytes::new(), told: None }
    }

    /// Makes the transport of a TLS stream.
    pub(super) fn tls(stream: TlsStream<TcpStream>) -> Self {
        Self { stream: Stream::Tls(Box::new(stream)), looked_at: Bytes::new(), told: None }
    }

    /// Tells of the bytes that are written.
    pub(super) fn telling(mut self, told: Arc<Shared>) -> Self {
        self.told = Some(told);
        self
    }

    /// Waits for the client's first bytes; returns whether these are they, and came in time.
    pub(crate) async fn begins_with(&mut self, expected: &[u8], timeout: Duration) -> bool {
        let mut begun = BytesMut::with_capacity(expected.len());
        let come = async {
            while begun.len() < expected.len() {
                let lacking = expected.len() - begun.len();
                let mut rest = (&mut begun).limit(lacking);
                let has_come = self.read_buf(&mut rest).await.is_ok_and(|length| length > 0);
                if !has_come || !expected.starts_with(&begun) {
                    return false;
                }
            }
            true
        };
        let is_so = tokio::time::timeout(timeout, come).await.unwrap_or(false);
        self.looked_at = begun.freeze();
        is_so
    }

    fn wrote(&self, length: usize) {
        if let Some(told) = &self.told {
            told.wrote(length);
        }
    }
}

impl AsyncRead for Transport {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<Result<()>> {
        if !self.looked_at.is_empty() {
            let length = buffer.remaining().min(self.looked_at.len());
            buffer.put_slice(&self.looked_at[..length]);
            self.looked_at.advance(length);
            return Poll::Ready(Ok(()));
        }
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Stream::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<Result<usize>> {
        let outcome = match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Stream::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        };
        let length = ready!(outcome)?;
        self.wrote(length);
        Poll::Ready(Ok(length))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        let outcome = match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Stream::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        };
        let length = ready!(outcome)?;
        self.wrote(length);
        Poll::Ready(Ok(length))
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Plain(stream) => stream.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
