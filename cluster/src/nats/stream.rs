//! A stream of bytes in both directions, carried by numbered messages.
//!
//! Both directions are polled by one task, as HTTP/2 does: whoever is polled last is woken.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use async_nats::client::PublishError;
use async_nats::{Client, StatusCode, Subject, Subscriber};
use bytes::{Buf, Bytes};
use futures_util::future::{BoxFuture, FutureExt};
use futures_util::stream::StreamExt;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::Connection;
use super::frame::{BEAT, CREDIT, DATA, FINISH, Frame, Greeting, HEADER_BYTES};

/// What a message of data costs beside its bytes, so that many small ones are bounded too.
const MESSAGE_COST: u64 = 256;

/// The most data of one message; servers mostly take 1 MiB.
const MAX_CHUNK_BYTES: usize = 128 << 10;

/// The least that any server takes.
const MIN_CHUNK_BYTES: usize = 512;

/// One end of a stream of bytes over NATS.
pub struct Stream {
    client: Client,
    /// Where the other end listens.
    to: Subject,
    /// Where this end listens; NATS says there when the other one does not any more.
    own: Subject,
    incoming: Subscriber,
    lost: BoxFuture<'static, ()>,
    beat: Interval,
    sending: Sending,
    receiving: Receiving,
    failure: Option<(io::ErrorKind, String)>,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

/// What goes out.
struct Sending {
    /// The number of the last message.
    number: u64,
    /// Cost of the data sent so far, and of what the other end has room for.
    cost: u64,
    room: u64,
    max_chunk_bytes: usize,
    queue: VecDeque<Bytes>,
    publishing: Option<BoxFuture<'static, Result<(), PublishError>>>,
    /// Whether something was sent since the last beat.
    is_heard: bool,
    is_finished: bool,
}

/// What comes in.
struct Receiving {
    number: u64,
    /// Cost of what came, of what was read, and of what the other end was told that there is room
    /// for.
    arrived: u64,
    read: u64,
    told: u64,
    window: u64,
    queue: VecDeque<Unread>,
    is_finished: bool,
}

struct Unread {
    data: Bytes,
    cost: u64,
}

impl Stream {
    /// Makes the end that listens at `inbox` of a stream to the end that sent `theirs`; a change of
    /// `losses` ends it.
    pub(super) fn new(
        connection: &Connection,
        (inbox, incoming): (String, Subscriber),
        theirs: Greeting,
        mut losses: watch::Receiver<u64>,
    ) -> Self {
        let Connection { client, config, .. } = connection;
        let lost = async move {
            // It fails when the connection is no more.
            let _ = losses.changed().await;
        };
        let mut beat = interval(config.beat.max(Duration::from_millis(1)));
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let most = client.max_payload().saturating_sub(HEADER_BYTES);
        let sending = Sending {
            number: 0,
            cost: 0,
            room: theirs.window,
            max_chunk_bytes: most.clamp(MIN_CHUNK_BYTES, MAX_CHUNK_BYTES),
            queue: VecDeque::new(),
            publishing: None,
            is_heard: true,
            is_finished: false,
        };
        let window = config.window_bytes;
        let receiving = Receiving {
            number: 0,
            arrived: 0,
            read: 0,
            told: window,
            window,
            queue: VecDeque::new(),
            is_finished: false,
        };
        Self {
            client: client.clone(),
            to: theirs.inbox.into(),
            own: inbox.into(),
            incoming,
            lost: lost.boxed(),
            beat,
            sending,
            receiving,
            failure: None,
            reader: None,
            writer: None,
        }
    }

    /// Loses a message, as NATS may.
    #[cfg(test)]
    pub(super) fn skip_number(&mut self) {
        self.sending.number += 1;
    }

    fn fail(&mut self, kind: io::ErrorKind, why: impl Into<String>) {
        self.failure.get_or_insert_with(|| (kind, why.into()));
        self.wake();
    }

    fn wake(&mut self) {
        [self.reader.take(), self.writer.take()].into_iter().flatten().for_each(Waker::wake);
    }

    fn error(&self) -> Option<io::Error> {
        self.failure.as_ref().map(|(kind, why)| io::Error::new(*kind, why.clone()))
    }

    /// Takes what came, and sends what waits; both end here with what cannot be done yet.
    fn poll_both(&mut self, cx: &mut Context<'_>) {
        while self.failure.is_none() {
            match self.incoming.poll_next_unpin(cx) {
                Poll::Ready(Some(message)) if message.status == Some(StatusCode::NO_RESPONDERS) => {
                    self.fail(io::ErrorKind::ConnectionReset, "the other end is gone from nats");
                }
                Poll::Ready(Some(message)) => match Frame::decode(message.payload) {
                    Ok((number, frame)) => self.take(number, frame),
                    Err(error) => self.fail(error.kind(), error.to_string()),
                },
                Poll::Ready(None) => self.fail(io::ErrorKind::BrokenPipe, "nats was closed"),
                Poll::Pending => break,
            }
        }
        if self.failure.is_none() && self.lost.poll_unpin(cx).is_ready() {
            self.fail(io::ErrorKind::NetworkDown, "the connection to nats was lost");
        }
        while self.failure.is_none() && self.beat.poll_tick(cx).is_ready() {
            if !std::mem::take(&mut self.sending.is_heard) {
                self.sending.push(BEAT, &[]);
                self.sending.is_heard = false;
            }
        }
        let _ = self.poll_sent(cx);
    }

    fn take(&mut self, number: u64, frame: Frame) {
        let expected = self.receiving.number + 1;
        if number != expected {
            let text = format!("nats lost a message: expected number {expected}, got {number}");
            return self.fail(io::ErrorKind::NetworkDown, text);
        }
        self.receiving.number = number;
        match frame {
            Frame::Data(data) => {
                let receiving = &mut self.receiving;
                let cost = data.len() as u64 + MESSAGE_COST;
                let room = receiving.told;
                // The sender may begin its last message while there is room for a byte.
                if receiving.arrived >= room || receiving.is_finished {
                    let text = format!("more than the {room} bytes that there was room for");
                    return self.fail(io::ErrorKind::InvalidData, text);
                }
                receiving.arrived += cost;
                receiving.queue.push_back(Unread { data, cost });
            }
            Frame::Credit(room) => self.sending.room = self.sending.room.max(room),
            Frame::Finish => self.receiving.is_finished = true,
            Frame::Beat => return,
        }
        self.wake();
    }

    /// Sends what waits.
    fn poll_sent(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if let Some(error) = self.error() {
                return Poll::Ready(Err(error));
            }
            if let Some(publishing) = &mut self.sending.publishing {
                let sent = ready!(publishing.poll_unpin(cx));
                self.sending.publishing = None;
                if let Err(error) = sent {
                    self.fail(io::ErrorKind::BrokenPipe, format!("nats: {error}"));
                    continue;
                }
            }
            let Some(message) = self.sending.queue.pop_front() else {
                return Poll::Ready(Ok(()));
            };
            let (client, to, own) = (self.client.clone(), self.to.clone(), self.own.clone());
            let publish = async move { client.publish_with_reply(to, own, message).await };
            self.sending.publishing = Some(publish.boxed());
        }
    }

    fn poll_data(&mut self, cx: &mut Context<'_>, parts: &[&[u8]]) -> Poll<io::Result<usize>> {
        self.poll_both(cx);
        if self.sending.is_finished {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        ready!(self.poll_sent(cx))?;
        if self.sending.cost >= self.sending.room {
            self.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let mut left = self.sending.max_chunk_bytes;
        let mut taken = Vec::with_capacity(parts.len());
        for part in parts {
            let part = &part[..part.len().min(left)];
            left -= part.len();
            if !part.is_empty() {
                taken.push(part);
            }
        }
        let bytes = self.sending.max_chunk_bytes - left;
        if bytes == 0 {
            return Poll::Ready(Ok(0));
        }
        self.sending.cost += bytes as u64 + MESSAGE_COST;
        self.sending.push(DATA, &taken);
        // What cannot be sent now is sent at the next poll, which it wakes.
        if let Poll::Ready(sent) = self.poll_sent(cx) {
            sent?;
        }
        Poll::Ready(Ok(bytes))
    }
}

impl Sending {
    fn push(&mut self, kind: u8, content: &[&[u8]]) {
        self.number += 1;
        self.is_heard = true;
        self.queue.push_back(Frame::encode(self.number, kind, content));
    }
}

impl Receiving {
    /// Copies what came into a reader's buffer; returns the room to tell of, if it is worth it.
    fn read_into(&mut self, buffer: &mut ReadBuf<'_>) -> Option<u64> {
        while buffer.remaining() > 0
            && let Some(front) = self.queue.front_mut()
        {
            let bytes = front.data.len().min(buffer.remaining());
            buffer.put_slice(&front.data[..bytes]);
            front.data.advance(bytes);
            if front.data.is_empty() {
                self.read += front.cost;
                self.queue.pop_front();
            }
        }
        let room = self.read + self.window;
        let is_worth_it = room - self.told >= self.window / 4;
        is_worth_it.then(|| {
            self.told = room;
            room
        })
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        this.poll_both(cx);
        if !this.receiving.queue.is_empty() {
            if let Some(room) = this.receiving.read_into(buffer) {
                this.sending.push(CREDIT, &[&room.to_be_bytes()]);
                let _ = this.poll_sent(cx);
            }
            return Poll::Ready(Ok(()));
        }
        if this.receiving.is_finished {
            return Poll::Ready(Ok(()));
        }
        if let Some(error) = this.error() {
            return Poll::Ready(Err(error));
        }
        this.reader = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_data(cx, &[data])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let parts: Vec<&[u8]> = parts.iter().map(|part| &**part).collect();
        self.poll_data(cx, &parts)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_sent(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !std::mem::replace(&mut self.sending.is_finished, true) {
            self.sending.push(FINISH, &[]);
        }
        self.poll_sent(cx)
    }
}
