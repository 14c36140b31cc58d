//! Response bodies that end with the server or with their client's patience: a Watch or a
//! reflection stream never ends by itself, and would hold the shutdown for its whole grace time.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use engine::Tasks;
use futures_util::future::BoxFuture;
use http::HeaderMap;
use hyper::body::{Body as HttpBody, Frame};
use tokio::time::{Sleep, sleep_until};
use tonic::Status;
use tonic::body::Body;

use crate::serving::shared::shutting_down;
use crate::support::status;

/// How many frames pass before the end is looked at.
const FRAMES: u32 = 16;

/// A body that ends with UNAVAILABLE, after what it has to say, once a group of tasks does.
pub(super) struct Ending {
    body: Body,
    group: Tasks,
    /// The end of the group, once somebody waits for it.
    end: Option<BoxFuture<'static, ()>>,
    /// Frames that were there at once since the end was looked at.
    frames: u32,
    /// When the client stops waiting.
    deadline: Option<Pin<Box<Sleep>>>,
    is_over: bool,
}

impl Ending {
    /// Makes the body.
    pub(super) fn new(body: Body, group: Tasks) -> Self {
        Self { body, group, end: None, frames: 0, deadline: None, is_over: false }
    }

    /// Ends the body with DEADLINE_EXCEEDED at a moment.
    pub(super) fn until(self, deadline: Option<Instant>) -> Self {
        Self { deadline: deadline.map(|at| Box::pin(sleep_until(at.into()))), ..self }
    }

    /// Is ready with the reason to end.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Status> {
        let group = &self.group;
        let end = self.end.get_or_insert_with(|| Box::pin(group.cancelled()));
        if end.as_mut().poll(cx).is_ready() {
            return Poll::Ready(status::grpc(&shutting_down()));
        }
        match &mut self.deadline {
            Some(deadline) => deadline.as_mut().poll(cx).map(|()| status::late()),
            None => Poll::Pending,
        }
    }
}

impl Ending {
    fn end(&mut self, status: &Status) -> Result<Frame<Bytes>, Status> {
        self.is_over = true;
        self.body = Body::empty();
        let mut trailers = HeaderMap::new();
        status.add_header(&mut trailers).map(|()| Frame::trailers(trailers))
    }
}

impl HttpBody for Ending {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        // A body that always has a frame ends as well.
        if self.frames >= FRAMES {
            self.frames = 0;
            if let Poll::Ready(status) = self.poll_end(cx) {
                return Poll::Ready(Some(self.end(&status)));
            }
        }
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            self.frames += 1;
            return Poll::Ready(frame);
        }
        self.poll_end(cx).map(|status| Some(self.end(&status)))
    }

    /// An answer that is only headers has to stay one.
    fn is_end_stream(&self) -> bool {
        self.is_over || self.body.is_end_stream()
    }
}
