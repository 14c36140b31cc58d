//! The answer of a worker, begun anew at another one if the first is lost before its first output.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context as Poller, Poll, ready};

use engine::{Error, ErrorKind, Request, Result};
use futures_util::Stream;

use super::{Placed, Routable, Search};

/// What another worker is asked with.
pub(super) struct RetryState<R> {
    pub request: R,
    pub search: Search,
    /// Whether no other worker may be asked.
    pub is_last: bool,
}

impl<R> RetryState<R> {
    /// Returns whether the request may be given to somebody again.
    fn is_open(&self, error: &Error) -> bool {
        error.kind() == ErrorKind::Unavailable
            && (!self.is_last || self.search.is_on_its_way(error))
    }
}

/// An answer.
pub(super) struct Routed<R: Request> {
    state: State<R>,
}

type Placing<R> = Pin<Box<dyn Future<Output = Result<Placed<R>>> + Send>>;

enum State<R: Request> {
    /// The worker answers.
    Answering(Placed<R>),
    /// Another one is looked for.
    Placing(Placing<R>),
    Over,
}

impl<R: Routable> Routed<R> {
    pub(super) fn new(placed: Placed<R>) -> Self {
        Self { state: State::Answering(placed) }
    }
}

/// Returns the error of a request to a worker that does not answer. Its code says that this is
/// known, so that nobody is suspected for it.
pub(super) fn silent() -> Error {
    let text = "the worker that has the request does not answer any longer";
    Error::new(ErrorKind::Unavailable, text).with_code("silent")
}

impl<R: Routable> Stream for Routed<R> {
    type Item = Result<R::Output>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Poller<'_>) -> Poll<Option<Self::Item>> {
        loop {
            let placed = match &mut self.state {
                State::Answering(placed) => placed,
                State::Placing(placing) => {
                    self.state = match ready!(placing.as_mut().poll(cx)) {
                        Ok(placed) => State::Answering(placed),
                        Err(error) => {
                            self.state = State::Over;
                            return Poll::Ready(Some(Err(error)));
                        }
                    };
                    continue;
                }
                State::Over => return Poll::Ready(None),
            };
            let item = match placed.stream.as_mut().poll_next(cx) {
                Poll::Ready(item) => item,
                Poll::Pending => {
                    ready!(placed.silence.as_mut().poll(cx));
                    Some(Err(silent()))
                }
            };
            let again = placed.again.take();
            let error = match item {
                Some(Ok(output)) => {
                    placed.worker.progress(R::tokens(&output));
                    return Poll::Ready(Some(Ok(output)));
                }
                Some(Err(error)) => error,
                None => {
                    self.state = State::Over;
                    return Poll::Ready(None);
                }
            };
            // Nothing of the answer was seen as long as it may be asked for again.
            match again.filter(|again| again.is_open(&error)) {
                Some(again) => {
                    let RetryState { request, mut search, .. } = *again;
                    search.note(placed.worker.candidate(), error);
                    self.state = State::Placing(Box::pin(search.place(request)));
                }
                None => {
                    placed.route.mind(placed.worker.candidate(), &error);
                    self.state = State::Over;
                    return Poll::Ready(Some(Err(error)));
                }
            }
        }
    }
}
