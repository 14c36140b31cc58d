//! gRPC messages as they lie in HTTP/2 frames: the payloads of tensors are handed over both
//! ways, never copied together.
//!
//! Each message is one byte that says whether it is compressed, four bytes of length, and the
//! message ("Length-Prefixed-Message" of gRPC over HTTP/2). Compressed calls do not come here.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::Stream;
use http::HeaderMap;
use hyper::body::{Body, Frame, Incoming};
use proto::{Envelope, PREFIX_BYTES, Payload, Received};
use tonic::Status;

use crate::status;

/// Segments below this size are copied together: one of its own costs more than the copy.
const SMALL_BYTES: usize = 2048;

/// Small messages that are ready together go out in one frame up to this size.
const BATCH_BYTES: usize = 32 << 10;

/// The requests of a call, read from its body.
pub(super) struct Requests {
    body: Incoming,
    received: Received,
    max_bytes: usize,
    is_over: bool,
}

impl Requests {
    /// Reads requests of at most `max_bytes` each.
    pub(super) fn new(body: Incoming, max_bytes: usize) -> Self {
        Self { body, received: Received::default(), max_bytes, is_over: false }
    }

    fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Envelope, Status>>> {
        loop {
            if let Some(message) =
                self.received.message(self.max_bytes).map_err(status::bad_prefix)?
            {
                let envelope = Envelope::decode(message).map_err(status::undecodable);
                return Poll::Ready(Some(envelope));
            }
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.received.push(data);
                    }
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(status::broken(error)))),
                None if self.received.is_empty() => return Poll::Ready(None),
                None => return Poll::Ready(Some(Err(status::cut_off()))),
            }
        }
    }
}

impl Stream for Requests {
    type Item = Result<Envelope, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        let item = ready!(self.poll_message(cx));
        self.is_over = !matches!(item, Some(Ok(_)));
        Poll::Ready(item)
    }
}

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

#[cfg(test)]
mod tests {
    use proto::BadPrefix;

    use super::*;

    fn framed(messages: &[usize]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (index, &length) in messages.iter().enumerate() {
            bytes.put_u8(0);
            bytes.put_u32(length as u32);
            bytes.extend(std::iter::repeat_n(index as u8, length));
        }
        bytes
    }

    #[test]
    fn messages_are_the_same_however_they_are_cut() {
        let lengths = [0, 3, 5000, 1, 0, 2048, 9];
        let bytes = framed(&lengths);
        for cut in [1, 2, 4, 5, 6, 7, 100, 2047, 2048, 4096, bytes.len()] {
            let mut received = Received::default();
            let mut found = Vec::new();
            for piece in bytes.chunks(cut) {
                received.push(Bytes::copy_from_slice(piece));
                while let Some(message) = received.message(5000).unwrap() {
                    found.push(message.to_bytes());
                }
            }
            assert_eq!(found.iter().map(Bytes::len).collect::<Vec<_>>(), lengths, "cut at {cut}");
            let is_own = |(index, bytes): (usize, &Bytes)| bytes.iter().all(|b| *b == index as u8);
            assert!(found.iter().enumerate().all(is_own), "cut at {cut}");
            assert!(received.is_empty());
        }
    }

    #[test]
    fn a_flood_of_tiny_frames_costs_few_segments() {
        let mut received = Received::default();
        framed(&[100_000]).chunks(1).for_each(|piece| received.push(Bytes::copy_from_slice(piece)));
        let message = received.message(100_000).unwrap().unwrap();
        assert!(message.segments().count() <= 3);
    }

    #[test]
    fn a_length_over_the_limit_is_refused_before_its_bytes_come() {
        let mut received = Received::default();
        received.push(Bytes::from_static(&[0, 0xff, 0xff, 0xff, 0xff]));
        let error = received.message(1 << 20).unwrap_err();
        assert_eq!(error, BadPrefix::TooLong { length: 0xffff_ffff, max_bytes: 1 << 20 });
    }
}
