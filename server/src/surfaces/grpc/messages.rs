//! gRPC messages as they come in HTTP/2 frames, of every call: nothing is set aside for what a
//! prefix only promises, and what is compressed is whole and plain before anybody sees it.
//!
//! Each message is one byte that says whether it is compressed, four bytes of length, and the
//! message ("Length-Prefixed-Message" of gRPC over HTTP/2).

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{BufMut, Bytes, BytesMut};
use engine::Tasks;
use futures_util::future::BoxFuture;
use futures_util::{Stream, StreamExt};
use http::{Extensions, HeaderMap};
use hyper::body::{Body, Frame, SizeHint};
use proto::{BadPrefix, Cost, Envelope, PREFIX_BYTES, Payload, Received, cost_of};
use tonic::Status;

use super::stream::Inferred;
use crate::serving::inference::heavy;
use crate::support::buffers::{Buffers, Held};
use crate::support::stall_timer::{Slow, StallTimer};
use crate::support::status;
use crate::support::unpack::{Encoding, Unpackable, unpack};

/// What `grpc-accept-encoding` of an answer says.
pub(super) const ACCEPTED: &str = "gzip,deflate,zstd,identity";

/// What a decoded message takes is not looked at up to this length, nor held up to this much.
const LIGHT_BYTES: usize = 1 << 10;

/// A message up to this length is looked at while others wait.
const QUICK_BYTES: usize = 1 << 20;

/// What a byte of a message without tensors and files may take once it is decoded: an entry of a
/// map has four and takes some 200.
const CONTROL_COST: usize = 64;

/// What a call's messages may be.
#[derive(Clone)]
pub(super) struct Rules {
    /// The largest message, compressed and decompressed.
    pub max_bytes: usize,
    /// How messages are compressed that say they are.
    pub encoding: Option<Encoding>,
    /// Whether the call has one message, which is due from the start; others may come at any time.
    pub is_unary: bool,
    /// Whether the call is the only one of its connection.
    pub is_lone: bool,
    /// What they take once they are decoded, where they may be large.
    pub cost: Option<Cost>,
    /// The memory for them.
    pub buffers: Arc<Buffers>,
    /// Cancelled when the server shuts down and has less patience.
    pub accepting: Tasks,
}

impl Rules {
    /// Sets memory aside for what a message is decoded to, and for `copied` bytes more.
    ///
    /// Errors: RESOURCE_EXHAUSTED where there is not as much.
    fn set_aside(&self, message: &Payload, copied: usize) -> Result<Option<Held>, Status> {
        let length = message.len();
        if length <= LIGHT_BYTES {
            return Ok(None);
        }
        let decoded = match self.cost {
            None => CONTROL_COST * length,
            Some(cost) if length <= QUICK_BYTES => cost_of(message, cost),
            Some(cost) => heavy(length, || cost_of(message, cost)),
        };
        let bytes = decoded.saturating_add(copied);
        if bytes <= LIGHT_BYTES {
            return Ok(None);
        }
        let mut held = self.buffers.hold_for(self.is_lone);
        held.grow(bytes).map_err(|error| status::grpc(&error))?;
        Ok(Some(held))
    }

    /// Decodes a request for inference.
    fn decode(&self, message: Payload) -> Result<Inferred, Status> {
        let held = self.set_aside(&message, 0)?;
        let bytes = held.as_ref().map_or(0, Held::bytes);
        let envelope = heavy(bytes, || Envelope::decode(message)).map_err(status::undecodable)?;
        Ok((envelope, held))
    }
}

/// The memory for the decoded messages of a call that tonic decodes, in their order; it is in the
/// extensions of the request.
#[derive(Clone, Default)]
pub(super) struct Costs(Arc<Mutex<VecDeque<Option<Held>>>>);

impl Costs {
    /// Returns those of a request.
    pub(super) fn of(extensions: &Extensions) -> Self {
        extensions.get::<Self>().cloned().unwrap_or_default()
    }

    /// Takes the memory of the next message, if that is much.
    pub(super) fn next(&self) -> Option<Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop_front().flatten()
    }

    fn push(&self, held: Option<Held>, is_taken: bool) {
        let mut costs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !is_taken {
            costs.clear();
        }
        costs.push_back(held);
    }
}

/// Reads how a call's messages are compressed from its headers.
///
/// Errors: UNIMPLEMENTED for an encoding that is not known.
pub(super) fn encoding(headers: &HeaderMap) -> Result<Option<Encoding>, Status> {
    let Some(name) = headers.get("grpc-encoding") else { return Ok(None) };
    match name.as_bytes() {
        b"identity" => Ok(None),
        b"gzip" => Ok(Some(Encoding::Gzip)),
        b"deflate" => Ok(Some(Encoding::Deflate)),
        b"zstd" => Ok(Some(Encoding::Zstd)),
        other => Err(status::unknown_encoding(&other.escape_ascii().to_string(), ACCEPTED)),
    }
}

/// The messages of a call, plain and whole.
pub(super) struct Messages<B> {
    body: B,
    rules: Rules,
    received: Received,
    /// The memory of what is received.
    held: Held,
    unpacking: Option<BoxFuture<'static, Result<Payload, Unpackable>>>,
    stall: StallTimer,
    count: usize,
    is_over: bool,
}

impl<B> Messages<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    /// Reads messages from a body.
    pub(super) fn new(body: B, rules: Rules) -> Self {
        let held = rules.buffers.hold_for(rules.is_lone);
        Self {
            body,
            rules,
            received: Received::default(),
            held,
            unpacking: None,
            stall: StallTimer::default(),
            count: 0,
            is_over: false,
        }
    }

    fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Payload, Status>>> {
        loop {
            if let Some(unpacking) = &mut self.unpacking {
                let unpacked = ready!(unpacking.as_mut().poll(cx));
                self.unpacking = None;
                self.stall.came(0);
                let max_bytes = self.rules.max_bytes;
                return Poll::Ready(Some(
                    unpacked.map_err(|why| status::unpackable(why, max_bytes)),
                ));
            }
            if let Some(message) = self.take()? {
                return Poll::Ready(Some(Ok(message)));
            }
            if self.unpacking.is_some() {
                continue;
            }
            let frame = match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(frame) => frame,
                Poll::Pending => {
                    let slow = ready!(self.poll_slow(cx));
                    return Poll::Ready(Some(Err(status::slow(slow))));
                }
            };
            match frame {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.stall.came(data.len());
                        self.held.grow(data.len()).map_err(|error| status::grpc(&error))?;
                        self.received.push(data);
                    }
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(status::broken(error)))),
                None if self.received.is_empty() => return Poll::Ready(None),
                None => return Poll::Ready(Some(Err(status::cut_off()))),
            }
        }
    }

    /// Takes a message that is whole; one that is compressed is unpacked first.
    fn take(&mut self) -> Result<Option<Payload>, Status> {
        let max_bytes = self.rules.max_bytes;
        let Some((is_compressed, message)) =
            self.received.any_message(max_bytes).map_err(status::bad_prefix)?
        else {
            return Ok(None);
        };
        if self.rules.is_unary && self.count > 0 {
            return Err(status::second_message());
        }
        self.count += 1;
        let held = self.held.split(PREFIX_BYTES + message.len());
        match (is_compressed, self.rules.encoding) {
            (false, _) => Ok(Some(held.follow(message))),
            (true, Some(encoding)) => {
                self.unpacking = Some(Box::pin(unpack((encoding, message), max_bytes, held)));
                Ok(None)
            }
            (true, None) => Err(status::bad_prefix(BadPrefix::Flag(1))),
        }
    }

    /// Is ready when a message takes too long to come.
    fn poll_slow(&mut self, cx: &mut Context<'_>) -> Poll<Slow> {
        if self.received.is_empty() && !self.rules.is_unary {
            self.stall.rest();
            return Poll::Pending;
        }
        self.stall.poll_slow(&self.rules.accepting, cx)
    }
}

impl<B> Stream for Messages<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    type Item = Result<Payload, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        let item = ready!(self.poll_message(cx));
        self.is_over = !matches!(item, Some(Ok(_)));
        Poll::Ready(item)
    }
}

/// The messages of a call as requests for inference.
pub(super) struct Requests<B>(Messages<B>);

impl<B> Requests<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    /// Reads requests from a body.
    pub(super) fn new(body: B, rules: Rules) -> Self {
        Self(Messages::new(body, rules))
    }
}

impl<B> Stream for Requests<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    type Item = Result<Inferred, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let message = ready!(Pin::new(&mut self.0).poll_next(cx));
        let decoded = message.map(|message| self.0.rules.decode(message?));
        if matches!(decoded, Some(Err(_))) {
            self.0.is_over = true;
        }
        Poll::Ready(decoded)
    }
}

/// Reads the one request of a call.
pub(super) async fn only(
    requests: &mut (impl Stream<Item = Result<Inferred, Status>> + Unpin),
) -> Result<Inferred, Status> {
    let first = requests.next().await.unwrap_or_else(|| Err(status::without_message()));
    match requests.next().await {
        None => first,
        Some(second) => first.and(second),
    }
}

/// A body for tonic, which sets memory aside for what a prefix promises: each prefix comes
/// together with all of its message, and none says "compressed".
pub(super) struct Whole<B> {
    messages: Messages<B>,
    /// The rest of a message.
    waiting: VecDeque<Bytes>,
    costs: Costs,
}

impl<B> Whole<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    /// Passes on the messages of a body.
    pub(super) fn new(body: B, rules: Rules) -> Self {
        let costs = Costs::default();
        Self { messages: Messages::new(body, rules), waiting: VecDeque::new(), costs }
    }

    /// Returns the memory that is set aside for what is made of the messages.
    pub(super) fn costs(&self) -> Costs {
        self.costs.clone()
    }
}

impl<B> Body for Whole<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Some(data) = self.waiting.pop_front() {
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        let message = match ready!(Pin::new(&mut self.messages).poll_next(cx)) {
            None => return Poll::Ready(None),
            Some(Err(error)) => return Poll::Ready(Some(Err(error))),
            Some(Ok(message)) => message,
        };
        // Tonic copies it together before it decodes it.
        let rules = &self.messages.rules;
        let is_taken = rules.cost.is_some() && !rules.is_unary;
        let held = rules.set_aside(&message, message.len());
        match held {
            Ok(held) => self.costs.push(held, is_taken),
            Err(refusal) => {
                self.messages.is_over = true;
                return Poll::Ready(Some(Err(refusal)));
            }
        }
        self.waiting.extend(message.segments().cloned());
        Poll::Ready(Some(Ok(Frame::data(prefix(&message).freeze()))))
    }

    fn is_end_stream(&self) -> bool {
        self.messages.is_over && self.waiting.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

/// Returns a message that is not compressed behind its prefix.
pub(super) fn framed(message: &Payload) -> Bytes {
    let mut framed = prefix(message);
    message.segments().for_each(|segment| framed.extend_from_slice(segment));
    framed.freeze()
}

fn prefix(message: &Payload) -> BytesMut {
    let mut prefix = BytesMut::with_capacity(PREFIX_BYTES);
    prefix.put_u8(0);
    // No longer than the limit of its call, which is less.
    prefix.put_u32(message.len() as u32);
    prefix
}

#[cfg(test)]
mod tests;
