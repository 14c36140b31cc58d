//! Bodies of answers that hold memory until they end.

use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::body::{Body, Frame, SizeHint};

use super::Held;

/// A body, and the memory of its call.
pub(crate) struct Kept<B> {
    body: B,
    _held: Held,
}

impl<B> Kept<B> {
    /// Holds the memory for as long as the body is there.
    pub(crate) fn new(body: B, held: Held) -> Self {
        Self { body, _held: held }
    }
}

impl<B: Body + Unpin> Body for Kept<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
