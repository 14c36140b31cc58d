//! The answers of a call as gRPC messages in HTTP/2 frames: the payloads of tensors are handed
//! over, never copied together. Answers that are compressed do not come here.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::Stream;
use http::HeaderMap;
use hyper::body::{Body, Frame};
use proto::{PREFIX_BYTES, Payload};
use tonic::Status;

use crate::support::status;

/// Segments below this size are copied together: one of its own costs more than the copy.
const SMALL_BYTES: usize = 2048;

/// Small messages that are ready together go out in one frame up to this size.
const BATCH_BYTES: usize = 32 << 10;

/// The answers of a call as its response body.
pub(super) struct Answers<S> {
    replies: S,
    max_bytes: usize,
    /// Frames to send before anything else.
    waiting: VecDeque<Bytes>,
    /// Small messages and prefixes, not yet a frame.
    batch: BytesMut,
    /// How the call ended, once it has.
    ending: Option<Result<(), Status>>,
    is_over: bool,
}

impl<S> Answers<S>
where
    S: Stream<Item = Result<Payload, Status>> + Unpin,
{
    /// Sends replies of at most `max_bytes` each.
    pub(super) fn new(replies: S, max_bytes: usize) -> Self {
        let (waiting, batch) = (VecDeque::new(), BytesMut::new());
        Self { replies, max_bytes, waiting, batch, ending: None, is_over: false }
    }

    fn push(&mut self, payload: &Payload) -> Result<(), Status> {
        let length = payload.len();
        if length > self.max_bytes {
            return Err(status::too_large(length, self.max_bytes));
        }
        let prefix = u32::try_from(length).map_err(|_| status::too_large(length, self.max_bytes));
        self.batch.reserve(PREFIX_BYTES + length.min(SMALL_BYTES));
        self.batch.put_u8(0);
        self.batch.put_u32(prefix?);
        for segment in payload.segments() {
            if segment.len() < SMALL_BYTES {
                self.batch.extend_from_slice(segment);
            } else {
                self.flush();
                self.waiting.push_back(segment.clone());
            }
        }
        Ok(())
    }

    fn flush(&mut self) {
        if !self.batch.is_empty() {
            self.waiting.push_back(self.batch.split().freeze());
        }
    }

    /// Takes replies that are ready until there is enough for a frame.
    fn fill(&mut self, cx: &mut Context<'_>) {
        while self.ending.is_none() && self.waiting.is_empty() && self.batch.len() < BATCH_BYTES {
            let result = match Pin::new(&mut self.replies).poll_next(cx) {
                Poll::Pending => break,
                Poll::Ready(None) => Err(Ok(())),
                Poll::Ready(Some(Err(error))) => Err(Err(error)),
                Poll::Ready(Some(Ok(reply))) => self.push(&reply).map_err(Err),
            };
            self.ending = result.err();
        }
        self.flush();
    }
}

impl<S> Body for Answers<S>
where
    S: Stream<Item = Result<Payload, Status>> + Unpin,
{
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        if self.waiting.is_empty() {
            self.fill(cx);
        }
        if let Some(frame) = self.waiting.pop_front() {
            return Poll::Ready(Some(Ok(Frame::data(frame))));
        }
        match self.ending.take() {
            None => Poll::Pending,
            Some(ending) => {
                self.is_over = true;
                let mut trailers = HeaderMap::new();
                let ending = ending.err().unwrap_or_else(status::fine);
                let added = ending.add_header(&mut trailers);
                Poll::Ready(Some(added.map(|()| Frame::trailers(trailers))))
            }
        }
    }
}
