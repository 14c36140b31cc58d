//! Sends the items of an answer as the caller takes them.
//!
//! Nothing more is asked of the engine while the caller's window is full; what is ready together
//! goes out together.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context as Poller, Poll, ready};

use bytes::Bytes;
use engine::{Error, ErrorKind, Result};
use futures_util::Stream;
use h2::SendStream;
use tokio::time::Sleep;

use super::answer::send;
use super::outbox::Outbox;
use super::{deadline, failure};

/// Small messages that are ready together go out in one frame up to this size.
const BATCH_BYTES: usize = 16 << 10;

/// An answer on its way; done when there is no more to send but how it ended.
pub(super) struct Pump<S, F> {
    stream: Option<SendStream<Bytes>>,
    outbox: Outbox,
    sleep: Option<Pin<Box<Sleep>>>,
    items: S,
    encode: F,
}

/// How an answer ended.
pub(super) struct Ending {
    stream: SendStream<Bytes>,
    outbox: Outbox,
    outcome: Outcome,
}

enum Outcome {
    Fine,
    Failed(Error),
    /// Nobody waits for it.
    Gone,
}

impl Ending {
    /// Returns whether nobody waits for the answer any more.
    pub(super) fn is_gone(&self) -> bool {
        matches!(self.outcome, Outcome::Gone)
    }

    /// Sends what `end` adds to a good ending, and the ending itself.
    pub(super) fn finish(mut self, end: impl FnOnce(&mut Outbox) -> Result<()>) {
        let outcome = match self.outcome {
            Outcome::Fine => end(&mut self.outbox).map_err(unsendable),
            Outcome::Failed(error) => Err(error),
            Outcome::Gone => return,
        };
        let trailers = match outcome {
            Ok(()) => failure::fine(),
            Err(error) => failure::trailers(&error),
        };
        // It fails when the caller is gone.
        let sent = send(&mut self.outbox, &mut self.stream, false);
        let _ = sent.and_then(|()| self.stream.send_trailers(trailers));
    }
}

impl<S, T, F> Pump<S, F>
where
    S: Stream<Item = Result<T>> + Unpin,
    F: FnMut(T, &mut Outbox) -> Result<()> + Unpin,
{
    /// Makes the sender of an accepted call's answer.
    pub(super) fn new(
        stream: SendStream<Bytes>,
        outbox: Outbox,
        sleep: Option<Pin<Box<Sleep>>>,
        items: S,
        encode: F,
    ) -> Self {
        Self { stream: Some(stream), outbox, sleep, items, encode }
    }

    fn poll_outcome(&mut self, cx: &mut Poller<'_>) -> Poll<Outcome> {
        let Some(stream) = &mut self.stream else {
            return Poll::Ready(Outcome::Gone);
        };
        loop {
            if stream.poll_reset(cx).is_ready() {
                return Poll::Ready(Outcome::Gone);
            }
            if let Some(sleep) = &mut self.sleep
                && sleep.as_mut().poll(cx).is_ready()
            {
                return Poll::Ready(Outcome::Failed(deadline::exceeded()));
            }
            if !has_room(stream) {
                match ready!(stream.poll_capacity(cx)) {
                    Some(Ok(_)) => continue,
                    Some(Err(_)) | None => return Poll::Ready(Outcome::Gone),
                }
            }
            let outcome = loop {
                if self.outbox.is_full(BATCH_BYTES) {
                    break None;
                }
                match Pin::new(&mut self.items).poll_next(cx) {
                    Poll::Pending => break Some(Poll::Pending),
                    Poll::Ready(None) => break Some(Poll::Ready(Outcome::Fine)),
                    Poll::Ready(Some(item)) => {
                        let outbox = &mut self.outbox;
                        let add = |item| (self.encode)(item, outbox).map_err(unsendable);
                        if let Err(error) = item.and_then(add) {
                            break Some(Poll::Ready(Outcome::Failed(error)));
                        }
                    }
                }
            };
            if send(&mut self.outbox, stream, false).is_err() {
                return Poll::Ready(Outcome::Gone);
            }
            if let Some(outcome) = outcome {
                return outcome;
            }
        }
    }
}

/// An answer that does not fit through is no fault of the client's.
fn unsendable(error: Error) -> Error {
    match error.kind() {
        ErrorKind::InvalidRequest => {
            Error::internal(format!("the worker's answer cannot be sent: {}", error.message()))
        }
        _ => error,
    }
}

/// Returns whether the caller takes more, and asks for being told when it does.
fn has_room(stream: &mut SendStream<Bytes>) -> bool {
    if stream.capacity() == 0 {
        stream.reserve_capacity(1);
    }
    stream.capacity() > 0
}

impl<S, T, F> Future for Pump<S, F>
where
    S: Stream<Item = Result<T>> + Unpin,
    F: FnMut(T, &mut Outbox) -> Result<()> + Unpin,
{
    type Output = Ending;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Poller<'_>) -> Poll<Ending> {
        let outcome = ready!(self.poll_outcome(cx));
        let outbox = std::mem::replace(&mut self.outbox, Outbox::new(0));
        match self.stream.take() {
            Some(stream) => Poll::Ready(Ending { stream, outbox, outcome }),
            None => Poll::Pending,
        }
    }
}
