//! Pings that find a peer that is gone without a word.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{sleep, timeout};

/// The intervals after which an end without calls is asked whether it is there. Nobody waits for
/// such a one, and a frontend may have a thousand of them.
const IDLE_INTERVALS: u32 = 3;

/// When to ask whether the other end is still there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Keepalive {
    pub(super) interval: Duration,
    pub(super) timeout: Duration,
}

/// Pings until an answer does not come in time; ends then, and never otherwise.
///
/// Each interval it pings if there are calls that wait for the other end, else each third one.
/// `was_heard` says whether there was a sign of life since it was asked last, which does as well.
pub(super) async fn until_silent(
    pings: Option<PingPong>,
    keepalive: Keepalive,
    was_heard: impl Fn() -> bool,
    has_calls: impl Fn() -> bool,
) {
    let Some(mut pings) = pings else {
        return std::future::pending().await;
    };
    let mut intervals = 0;
    loop {
        sleep(keepalive.interval).await;
        intervals += 1;
        if was_heard() {
            intervals = 0;
        }
        if intervals == 0 || intervals < IDLE_INTERVALS && !has_calls() {
            continue;
        }
        intervals = 0;
        match timeout(keepalive.timeout, pings.ping(Ping::opaque())).await {
            Ok(Ok(_)) => {}
            // The connection's own end says what is wrong.
            Ok(Err(_)) => return std::future::pending().await,
            Err(_) => return,
        }
    }
}

/// A stream of bytes that notes when something comes.
pub(super) struct Listened<T> {
    io: T,
    was_heard: Arc<AtomicBool>,
}

/// Whether something came.
#[derive(Clone, Debug)]
pub(super) struct Heard(Arc<AtomicBool>);

impl Heard {
    /// Returns whether something came since this was asked last.
    pub(super) fn take(&self) -> bool {
        self.0.swap(false, Relaxed)
    }
}

impl<T> Listened<T> {
    pub(super) fn new(io: T) -> (Self, Heard) {
        let was_heard = Arc::<AtomicBool>::default();
        (Self { io, was_heard: was_heard.clone() }, Heard(was_heard))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Listened<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.io).poll_read(cx, buffer);
        if buffer.filled().len() > before && !self.was_heard.load(Relaxed) {
            self.was_heard.store(true, Relaxed);
        }
        read
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Listened<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
