//! One call at the worker: read, look up, accept or refuse, answer.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context as Poller, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use engine::{
    EmbedRequest, EmbedTextRequest, Error, ErrorKind, GenerateRequest, InferRequest, OutputStream,
    Result, TextRequest,
};
use h2::RecvStream;
use h2::server::SendResponse;
use http::{HeaderMap, HeaderValue, Request, Response, header};
use prost::Message;
use proto::{BadPrefix, Payload, Received};
use tokio::time::{Sleep, sleep, sleep_until};

use super::codec::{Lane, Wire, message};
use super::control;
use super::outbox::Outbox;
use super::pump::{Ending, Pump};
use super::served::Offered;
use super::shared::{Held, OpenCall, Shared};
use super::{deadline, failure};

/// The longest request of a call beside inference, in bytes: it has a name or a hash.
const MAX_ASKED_BYTES: usize = 64 << 10;

/// What the tokens of a message take beside it, at most: a byte becomes a number of four.
const DECODED_FACTOR: usize = 4;

/// Answers a call to its end.
pub(super) async fn answer(
    shared: Arc<Shared>,
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
) {
    let (parts, body) = request.into_parts();
    let until = deadline::read(&parts.headers);
    let mut call = Call { shared, body: Some(body), respond, until: None, sleep: None };
    let result = match until {
        Ok(until) => {
            call.until = until;
            call.sleep = until.map(|at| Box::pin(sleep_until(at.into())));
            call.run(parts.uri.path()).await
        }
        Err(error) => Err(error.into()),
    };
    match result {
        Ok(()) => {}
        Err(Stop::Refused(error)) => call.refuse(&error),
        Err(Stop::Gone) => note_cancelled(),
    }
}

/// What a step towards acceptance comes to.
pub(super) type Tried<T> = std::result::Result<T, Stop>;

/// Why a call ends before it is accepted.
pub(super) enum Stop {
    /// Nobody waits for the answer.
    Gone,
    /// It is refused.
    Refused(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

/// A call that is not accepted yet.
pub(super) struct Call {
    pub(super) shared: Arc<Shared>,
    /// Gone with the message: what a caller sends behind that is let fall.
    body: Option<RecvStream>,
    respond: SendResponse<Bytes>,
    until: Option<Instant>,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Call {
    async fn run(&mut self, path: &str) -> Tried<()> {
        match path {
            GenerateRequest::PATH => self.infer::<GenerateRequest>().await,
            InferRequest::PATH => self.infer::<InferRequest>().await,
            EmbedRequest::PATH => self.infer::<EmbedRequest>().await,
            TextRequest::PATH => self.infer::<TextRequest>().await,
            EmbedTextRequest::PATH => self.infer::<EmbedTextRequest>().await,
            control::WATCH => control::watch(self).await,
            control::DESCRIBE => control::describe(self).await,
            control::FETCH => control::fetch(self).await,
            control::DRAIN => control::drain(self).await,
            control::PULL => control::pull(self).await,
            _ => Err(Error::new(ErrorKind::Unimplemented, format!("no method `{path}`")).into()),
        }
    }

    async fn infer<R: Offered>(&mut self) -> Tried<()> {
        let (message, mut held) = self.message(self.max_bytes(R::LANE)).await?;
        if R::LANE == Lane::Tokens {
            held.grow(message.len().saturating_mul(DECODED_FACTOR))?;
        }
        let (outputs, kept, open) = self.start::<R>(message).await?;
        let encode = |output, outbox: &mut Outbox| R::encode_output(output, outbox);
        let ending = self.pump(outputs, R::LANE, encode).await?;
        // The engine's stream is dropped by now.
        if ending.is_gone() {
            note_cancelled();
        }
        let end = |outbox: &mut Outbox| R::encode_end(&kept, outbox);
        ending.finish(end);
        drop((open, held));
        Ok(())
    }

    /// Hands the request to its engine.
    async fn start<R: Offered>(
        &mut self,
        message: Payload,
    ) -> Tried<(OutputStream<R>, R::Kept, OpenCall)> {
        let arrival = R::decode(message)?;
        // A worker that goes away may have let go of its models already: that it does is the
        // answer, so that the request goes elsewhere.
        let open = self.shared.enter()?;
        let served = self.shared.served(&arrival.model)?;
        let model = &arrival.model;
        let engine = R::engine(&served).ok_or_else(|| {
            let text = format!("model `{model}` does not answer `{}`", R::PATH);
            Error::new(ErrorKind::Unimplemented, text)
        })?;
        let mut request = arrival.request;
        if let Some(id) = arrival.adapter {
            let adapters = served.adapters.as_ref().ok_or_else(|| {
                Error::not_found(format!("model `{model}` has no adapters, asked for {}", id.0))
            })?;
            request.adapt(adapters.adapter(id)?);
        }
        let kept = request.kept();
        let context = arrival.context.with_deadline(self.until);
        let outputs = self.attend(engine.call(request, context)).await??;
        Ok((outputs, kept, open))
    }

    /// Returns the longest message of a lane in bytes.
    fn max_bytes(&self, lane: Lane) -> usize {
        let config = &self.shared.config;
        lane.max_bytes(config.max_message_bytes, config.max_token_message_bytes)
    }

    /// Reads the one message of a call beside inference.
    pub(super) async fn asked<M: Message + Default>(&mut self) -> Tried<M> {
        let (asked, _held) = self.asked_up_to(MAX_ASKED_BYTES).await?;
        Ok(asked)
    }

    /// Reads one of a prompt's size, and the memory that it holds.
    pub(super) async fn asked_of_tokens<M: Message + Default>(&mut self) -> Tried<(M, Held)> {
        let (asked, mut held) = self.asked_up_to::<M>(self.max_bytes(Lane::Tokens)).await?;
        held.grow(asked.encoded_len().saturating_mul(DECODED_FACTOR))?;
        Ok((asked, held))
    }

    async fn asked_up_to<M>(&mut self, max_bytes: usize) -> Tried<(M, Held)>
    where
        M: Message + Default,
    {
        let (payload, held) = self.message(max_bytes).await?;
        Ok((message(&payload)?, held))
    }

    /// Reads the call's one message, and the memory that it holds.
    async fn message(&mut self, max_bytes: usize) -> Tried<(Payload, Held)> {
        let wait = self.shared.config.body_timeout;
        let mut received = Received::default();
        let mut held = Held::new(self.shared.clone())?;
        let mut patience = None;
        let mut body = self.body.take().ok_or_else(|| Error::internal("a message is read once"))?;
        std::future::poll_fn(|cx| {
            if self.poll_late(cx) {
                return Poll::Ready(Err(deadline::exceeded().into()));
            }
            loop {
                if let Some(message) = received.message(max_bytes).map_err(bad)? {
                    return Poll::Ready(Ok(message));
                }
                match body.poll_data(cx) {
                    Poll::Ready(Some(Ok(data))) => {
                        // It fails only for more than there is.
                        let _ = body.flow_control().release_capacity(data.len());
                        held.grow(data.len())?;
                        received.push(data);
                    }
                    Poll::Ready(Some(Err(_))) => return Poll::Ready(Err(Stop::Gone)),
                    Poll::Ready(None) => {
                        let error = Error::invalid("the call has no whole message");
                        return Poll::Ready(Err(error.into()));
                    }
                    Poll::Pending => {
                        let patience = patience.get_or_insert_with(|| Box::pin(sleep(wait)));
                        ready!(patience.as_mut().poll(cx));
                        return Poll::Ready(Err(too_slow(wait).into()));
                    }
                }
            }
        })
        .await
        .map(|message| (message, held))
    }

    fn poll_late(&mut self, cx: &mut Poller<'_>) -> bool {
        self.sleep.as_mut().is_some_and(|sleep| sleep.as_mut().poll(cx).is_ready())
    }

    /// Waits for something as long as somebody waits for the call.
    pub(super) async fn attend<T>(&mut self, future: impl Future<Output = T>) -> Tried<T> {
        let mut future = pin!(future);
        std::future::poll_fn(|cx| {
            if self.respond.poll_reset(cx).is_ready() {
                return Poll::Ready(Err(Stop::Gone));
            }
            if self.poll_late(cx) {
                return Poll::Ready(Err(deadline::exceeded().into()));
            }
            future.as_mut().poll(cx).map(Ok)
        })
        .await
    }

    /// Says that the call is accepted, and sends its answer until it ends.
    pub(super) async fn pump<S, T, F>(&mut self, items: S, lane: Lane, encode: F) -> Tried<Ending>
    where
        S: futures_util::Stream<Item = Result<T>> + Unpin,
        F: FnMut(T, &mut Outbox) -> Result<()> + Unpin,
    {
        let response = response(HeaderMap::new());
        let stream = self.respond.send_response(response, false).map_err(|_| Stop::Gone)?;
        let outbox = Outbox::new(self.max_bytes(lane));
        Ok(Pump::new(stream, outbox, self.sleep.take(), items, encode).await)
    }

    fn refuse(&mut self, error: &Error) {
        // It fails when the caller is gone.
        let _ = self.respond.send_response(response(failure::trailers(error)), true);
    }
}

/// Says that a caller is gone, and that the engine has been told.
fn note_cancelled() {
    tracing::debug!("a call was cancelled");
}

fn response(mut headers: HeaderMap) -> Response<()> {
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    let mut response = Response::new(());
    *response.headers_mut() = headers;
    response
}

fn too_slow(wait: Duration) -> Error {
    let text = format!("the request did not come within {wait:?}");
    Error::new(ErrorKind::DeadlineExceeded, text)
}

fn bad(prefix: BadPrefix) -> Error {
    match prefix {
        BadPrefix::Flag(flag) => Error::new(
            ErrorKind::Unimplemented,
            format!("a message begins with {flag}, expected 0: it may not be compressed"),
        ),
        BadPrefix::TooLong { length, max_bytes } => Error::invalid(format!(
            "a message has {length} bytes, between processes at most {max_bytes} pass"
        )),
    }
}
