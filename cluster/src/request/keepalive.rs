//! Pings that find a peer that is gone without a word.
//!
//! An answer may stand behind much else on its way, in both directions at once, so whatever comes of
//! the peer is a sign of life.

use std::io;
use std::pin::{Pin, pin};
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

/// When an end pings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Asks {
    /// Whether or not something came since the last time.
    Always,
    /// Only where nothing came.
    IfSilent,
}

/// Pings until neither an answer nor anything else comes in time; ends then, and never otherwise.
///
/// Each interval it pings if there are calls that wait for the other end, else each third one.
pub(super) async fn until_silent(
    pings: Option<PingPong>,
    keepalive: Keepalive,
    (heard, asks): (Heard, Asks),
    has_calls: impl Fn() -> bool,
) {
    let Some(mut pings) = pings else {
        return std::future::pending().await;
    };
    let mut intervals = 0;
    loop {
        sleep(keepalive.interval).await;
        intervals += 1;
        if heard.take() && asks == Asks::IfSilent {
            intervals = 0;
            continue;
        }
        if intervals < IDLE_INTERVALS && !has_calls() {
            continue;
        }
        intervals = 0;
        let mut pong = pin!(pings.ping(Ping::opaque()));
        loop {
            match timeout(keepalive.timeout, pong.as_mut()).await {
                Ok(Ok(_)) => break,
                // The connection's own end says what is wrong.
                Ok(Err(_)) => return std::future::pending().await,
                Err(_) if heard.take() => {}
                Err(_) => return,
            }
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio::time::Instant;

    use super::*;

    /// Frames of HTTP/2: settings, and a connection's window that is one byte wider.
    const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    const WIDER: [u8; 13] = [0, 0, 4, 8, 0, 0, 0, 0, 0, 0, 0, 0, 1];

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_says_anything_is_there_though_it_answers_no_ping() {
        let (here, mut there) = duplex(4096);
        let (here, heard) = Listened::new(here);
        let peer = async {
            there.write_all(&SETTINGS).await.unwrap();
            let mut asked = [0; 1024];
            for _ in 0..25 {
                let _ = timeout(Duration::from_millis(20), there.read(&mut asked)).await;
                there.write_all(&WIDER).await.unwrap();
            }
            let last = Instant::now();
            loop {
                assert!(there.read(&mut asked).await.unwrap() > 0, "it was given up");
                if last.elapsed() > Duration::from_secs(20) {
                    return;
                }
            }
        };
        let caller = async {
            let opened = h2::client::handshake(here).await;
            let (_sender, mut connection) = opened.unwrap();
            let pings = connection.ping_pong();
            let ms = Duration::from_millis;
            let keepalive = Keepalive { interval: ms(10), timeout: ms(100) };
            let started = Instant::now();
            tokio::select! {
                () = until_silent(pings, keepalive, (heard, Asks::Always), || true) => started.elapsed(),
                ended = connection => panic!("the connection ended: {ended:?}"),
            }
        };
        tokio::select! {
            lasted = caller => assert!(lasted > Duration::from_millis(200), "{lasted:?}"),
            () = peer => panic!("a silent peer is not found"),
        }
    }
}
