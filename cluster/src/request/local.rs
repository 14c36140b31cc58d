//! Streams of bytes between processes of one machine.
//!
//! A Unix socket tells its writer each time that the reader has taken something, where TCP does only
//! once the writer had to wait. Whoever listens for both is thus woken twice per message: so this
//! one listens for what comes alone, and for room only while a write waits for it.

#![expect(unsafe_code, reason = "file descriptors are registered, and buffers filled, unchecked")]

use std::io::{self, IoSlice, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::time::{Sleep, sleep};

/// The wait before a write is tried again that cannot be told when there is room: the process is
/// out of file descriptors.
const PAUSE: Duration = Duration::from_millis(10);

/// A write up to this size after one that had to wait shows that messages are small again.
const SMALL_BYTES: usize = 4096;

/// One end of a connection by a Unix socket.
#[derive(Debug)]
pub(super) struct LocalStream {
    /// Registered for reading.
    socket: AsyncFd<UnixStream>,
    room: Room,
}

/// What a write waits for.
#[derive(Debug)]
enum Room {
    /// Nothing: there is room, as far as is known.
    Enough,
    /// The same socket, registered for writing; so from a write that had to wait on, until one is
    /// small.
    Told(AsyncFd<UnixStream>),
    /// The moment at which to try again.
    Unknown(Pin<Box<Sleep>>),
}

impl LocalStream {
    /// Errors: the socket cannot be registered.
    pub(super) fn new(stream: tokio::net::UnixStream) -> io::Result<Self> {
        let socket = register(stream.into_std()?, Interest::READABLE)?;
        Ok(Self { socket, room: Room::Enough })
    }

    /// Writes, as soon as there is room, what `write` does with the socket.
    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        size_bytes: usize,
        write: impl Fn(&UnixStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            match &mut self.room {
                Room::Enough => match write(self.socket.get_ref()) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        let other = self.socket.get_ref().try_clone();
                        let told = other.and_then(|other| register(other, Interest::WRITABLE));
                        self.room = match told {
                            Ok(room) => Room::Told(room),
                            Err(_) => Room::Unknown(Box::pin(sleep(PAUSE))),
                        };
                    }
                    written => return Poll::Ready(written),
                },
                Room::Told(room) => {
                    let mut guard = ready!(room.poll_write_ready(cx))?;
                    if let Ok(written) = guard.try_io(|room| write(room.get_ref())) {
                        if size_bytes <= SMALL_BYTES {
                            self.room = Room::Enough;
                        }
                        return Poll::Ready(written);
                    }
                }
                Room::Unknown(pause) => {
                    ready!(pause.as_mut().poll(cx));
                    self.room = Room::Enough;
                }
            }
        }
    }
}

impl AsyncRead for LocalStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.socket.poll_read_ready(cx))?;
            let wanted = buffer.remaining();
            let read = guard.try_io(|socket| {
                // SAFETY: what is there is only overwritten, with bytes.
                let unfilled = unsafe { buffer.unfilled_mut() };
                let (read, _) = rustix::io::read(socket.get_ref(), unfilled)?;
                Ok(read.len())
            });
            let Ok(read) = read else { continue };
            let read = read?;
            if 0 < read && read < wanted {
                // There was no more: the next that comes is told anew, and to ask would be in vain.
                guard.clear_ready();
            }
            // SAFETY: so many bytes were received into it.
            unsafe { buffer.assume_init(read) };
            buffer.advance(read);
            return Poll::Ready(Ok(()));
        }
    }
}

impl AsyncWrite for LocalStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let size_bytes = slices.iter().map(|slice| slice.len()).sum();
        self.poll_send(cx, size_bytes, |mut socket| socket.write_vectored(slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.socket.get_ref().shutdown(Shutdown::Write))
    }
}

fn register(socket: UnixStream, interest: Interest) -> io::Result<AsyncFd<UnixStream>> {
    // SAFETY: the descriptor is open and owned by what it is registered with.
    let registered = unsafe { AsyncFd::register_with_interest(socket, interest) };
    Ok(registered?)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn pair() -> (LocalStream, LocalStream) {
        let (here, there) = tokio::net::UnixStream::pair().unwrap();
        (LocalStream::new(here).unwrap(), LocalStream::new(there).unwrap())
    }

    #[tokio::test]
    async fn bytes_come_as_they_were_sent_in_both_directions() {
        let (mut here, mut there) = pair();
        // Far more than a socket holds, then small ones again, so that writes wait and no longer do.
        let sizes = [1, 4 << 20, 3, 100_000, 1, 2 << 20, 5];
        let bytes = |size: usize| (0..size).map(|i| (i % 251) as u8).collect::<Vec<_>>();
        let sender = async {
            for size in sizes {
                here.write_all(&bytes(size)).await.unwrap();
                assert_eq!(here.read_u8().await.unwrap(), 7);
                assert!(
                    matches!(here.room, Room::Enough) || size > SMALL_BYTES,
                    "it waits for room no more"
                );
            }
            here.shutdown().await.unwrap();
            assert_eq!(here.read(&mut [0]).await.unwrap(), 0);
        };
        let receiver = async {
            for size in sizes {
                let mut got = vec![0; size];
                there.read_exact(&mut got).await.unwrap();
                assert!(got == bytes(size), "{size} bytes");
                there.write_all(&[7]).await.unwrap();
            }
            assert_eq!(there.read(&mut [0]).await.unwrap(), 0);
            drop(there);
        };
        tokio::join!(sender, receiver);
    }

    #[tokio::test]
    async fn a_write_to_nobody_fails() {
        let (mut here, there) = pair();
        drop(there);
        let error = here.write_all(&[1]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        // One that waits for room as well.
        let (mut here, there) = pair();
        let leave = async {
            let _ = there.socket.readable().await.unwrap();
            drop(there);
        };
        let bytes = vec![1; 4 << 20];
        let (written, ()) = tokio::join!(here.write_all(&bytes), leave);
        let kind = written.unwrap_err().kind();
        assert!(matches!(kind, io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset));
    }

    #[tokio::test]
    async fn a_write_that_cannot_be_told_of_room_tries_again() {
        let (mut here, mut there) = pair();
        here.room = Room::Unknown(Box::pin(sleep(PAUSE)));
        here.write_all(&[1]).await.unwrap();
        assert!(matches!(here.room, Room::Enough));
        assert_eq!(there.read_u8().await.unwrap(), 1);
    }
}
