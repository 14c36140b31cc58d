//! The caller's end of an answer: messages off an HTTP/2 stream, and how it ended.

use std::io;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as Poller, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use engine::{Error, ErrorKind, Result};
use futures_util::Stream;
use h2::RecvStream;
use prost::Message;
use proto::{BadPrefix, Payload, Received};
use tokio::time::{Sleep, sleep_until};

use super::codec::{Wire, message};
use super::ended::Ended;
use super::{deadline, failure};

/// The code of the error of a call that ended because the server of NATS that carried it was lost or
/// does not answer. Its worker is not known to be lost, and may be called another way.
pub const WAY_LOST: &str = "way_lost";

/// Reads the items of an answer.
pub(super) trait Reader: Unpin {
    /// What the caller gets.
    type Item;

    /// Reads a message; none: there is nothing in it for the caller. Errors: it cannot be read.
    fn read(&mut self, message: Payload) -> Result<Option<Self::Item>>;
}

/// Reads an engine's outputs.
pub(super) struct Outputs<R: Wire>(pub(super) R::Kept);

impl<R: Wire> Reader for Outputs<R> {
    type Item = R::Output;

    fn read(&mut self, message: Payload) -> Result<Option<R::Output>> {
        R::decode_output(message, &self.0)
    }
}

/// Reads messages as they are.
pub(super) struct Plain<M>(PhantomData<fn() -> M>);

impl<M> Default for Plain<M> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<M: Message + Default> Reader for Plain<M> {
    type Item = M;

    fn read(&mut self, payload: Payload) -> Result<Option<M>> {
        message(&payload).map(Some)
    }
}

/// What a worker says wrongly is no fault of the client's.
fn theirs(error: Error) -> Error {
    match error.kind() {
        ErrorKind::InvalidRequest => {
            Error::internal(format!("a worker's answer is wrong: {}", error.message()))
        }
        _ => error,
    }
}

/// A call's place among those in flight, its end of the stream, and its time.
pub(super) struct Answer<D, P> {
    pub(super) reader: D,
    body: Option<RecvStream>,
    /// Where the stream goes at its end.
    ended: Arc<Ended>,
    received: Received,
    max_message_bytes: usize,
    sleep: Option<Pin<Box<Sleep>>>,
    /// Only held.
    _permit: P,
}

impl<D: Reader, P> Answer<D, P> {
    /// Makes the answer of an accepted call.
    pub(super) fn new(
        reader: D,
        (body, ended): (Option<RecvStream>, Arc<Ended>),
        max_message_bytes: usize,
        until: Option<Instant>,
        permit: P,
    ) -> Self {
        let sleep = until.map(|at| Box::pin(sleep_until(at.into())));
        let received = Received::default();
        Self { reader, body, ended, received, max_message_bytes, sleep, _permit: permit }
    }

    fn poll_item(&mut self, cx: &mut Poller<'_>) -> Poll<Option<Result<D::Item>>> {
        let Some(body) = &mut self.body else {
            return Poll::Ready(None);
        };
        loop {
            if let Some(message) = self.received.message(self.max_message_bytes).map_err(bad)? {
                match self.reader.read(message).map_err(theirs)? {
                    Some(item) => return Poll::Ready(Some(Ok(item))),
                    None => continue,
                }
            }
            if let Some(sleep) = &mut self.sleep
                && sleep.as_mut().poll(cx).is_ready()
            {
                return Poll::Ready(Some(Err(deadline::exceeded())));
            }
            match ready!(body.poll_data(cx)) {
                Some(Ok(data)) => {
                    // It fails only for more than there is.
                    let _ = body.flow_control().release_capacity(data.len());
                    self.received.push(data);
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(broken(&error)))),
                None => {
                    let trailers = ready!(body.poll_trailers(cx));
                    let ending = ending(trailers).and_then(|()| match self.received.is_empty() {
                        true => Ok(()),
                        false => Err(cut_off("it ends within a message")),
                    });
                    return Poll::Ready(ending.err().map(Err));
                }
            }
        }
    }
}

impl<D, P> Answer<D, P> {
    /// Lets the stream go, which cancels the call if it is not over.
    fn leave(&mut self) {
        if let Some(body) = self.body.take() {
            self.ended.keep(body);
        }
    }
}

impl<D, P> Drop for Answer<D, P> {
    fn drop(&mut self) {
        self.leave();
    }
}

impl<D: Reader, P: Unpin> Stream for Answer<D, P> {
    type Item = Result<D::Item>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Poller<'_>) -> Poll<Option<Self::Item>> {
        let item = ready!(self.poll_item(cx));
        if !matches!(item, Some(Ok(_))) {
            self.leave();
        }
        Poll::Ready(item)
    }
}

fn ending(trailers: std::result::Result<Option<http::HeaderMap>, h2::Error>) -> Result<()> {
    let trailers = trailers.map_err(|error| broken(&error))?;
    let ending = trailers.as_ref().and_then(failure::read);
    ending.unwrap_or_else(|| Err(cut_off("it has no end")))
}

fn cut_off(how: &str) -> Error {
    Error::new(ErrorKind::Unavailable, format!("a worker's answer was cut off: {how}"))
}

/// Returns the error of an answer whose stream or connection failed.
pub(super) fn broken(error: &h2::Error) -> Error {
    if is_network_down(error) {
        let text = format!("the way to a worker was lost: {error}");
        return Error::new(ErrorKind::Unavailable, text).with_code(WAY_LOST);
    }
    Error::new(ErrorKind::Unavailable, format!("a worker went away: {error}"))
}

/// Returns whether what carries connections failed, and not the worker.
pub(super) fn is_network_down(error: &h2::Error) -> bool {
    error.get_io().is_some_and(|io| io.kind() == io::ErrorKind::NetworkDown)
}

fn bad(prefix: BadPrefix) -> Error {
    match prefix {
        BadPrefix::Flag(flag) => {
            Error::internal(format!("a worker's message begins with {flag}, expected 0"))
        }
        BadPrefix::TooLong { length, max_bytes } => Error::internal(format!(
            "a worker's message has {length} bytes, between processes at most {max_bytes} pass"
        )),
    }
}

/// Hands over what waits; the stream's window has no say, since all of it is in memory anyway.
pub(super) fn send(
    outbox: &mut super::outbox::Outbox,
    stream: &mut h2::SendStream<Bytes>,
    is_whole: bool,
) -> std::result::Result<(), h2::Error> {
    while let Some((frame, is_last)) = outbox.next() {
        stream.send_data(frame, is_whole && is_last)?;
    }
    Ok(())
}
