//! Response bodies that end with the server: a Watch or a reflection stream never ends by itself,
//! and would hold the shutdown for its whole grace time.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use engine::{Error, ErrorKind};
use futures_util::future::BoxFuture;
use http::HeaderMap;
use hyper::body::{Body as HttpBody, Frame};
use tonic::body::Body;

use crate::status;

/// A body that ends with UNAVAILABLE, after what it has to say, once `end` is over.
pub(super) struct Ending {
    body: Body,
    end: BoxFuture<'static, ()>,
    is_over: bool,
}

impl Ending {
    /// Makes the body.
    pub(super) fn new(body: Body, end: BoxFuture<'static, ()>) -> Self {
        Self { body, end, is_over: false }
    }
}

impl HttpBody for Ending {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if polled.is_ready() || self.end.as_mut().poll(cx).is_pending() {
            return polled;
        }
        self.is_over = true;
        let error = Error::new(ErrorKind::Unavailable, "the server is shutting down");
        let mut trailers = HeaderMap::new();
        Poll::Ready(Some(
            status::grpc(&error).add_header(&mut trailers).map(|()| Frame::trailers(trailers)),
        ))
    }

    /// An answer that is only headers has to stay one.
    fn is_end_stream(&self) -> bool {
        self.is_over || self.body.is_end_stream()
    }
}
