//! The answer of a text that one worker computes, asked for anew as long as nothing of it came.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context as Poller, Poll, ready};

use engine::{Context, ErrorKind, GenerateOutput, GenerateRequest, OutputStream, Result};
use futures_util::Stream;

use super::{Disaggregate, Place, WorkerGroup};

/// A worker's answer and where the worker stands.
type Asked = (OutputStream<GenerateRequest>, Place);

type Asking = Pin<Box<dyn Future<Output = Result<Asked>> + Send>>;

/// The answer.
pub(super) struct Whole<E> {
    engine: Disaggregate<E>,
    /// What others would be asked with; none: something of the answer came.
    again: Option<Box<(GenerateRequest, Context)>>,
    state: State,
}

enum State {
    Asking(Asking),
    Answering(Asked),
    Over,
}

impl<E: WorkerGroup> Whole<E> {
    pub(super) fn new(
        engine: Disaggregate<E>,
        again: (GenerateRequest, Context),
        asked: Asked,
    ) -> Self {
        Self { engine, again: Some(Box::new(again)), state: State::Answering(asked) }
    }

    /// Asks who comes after the place of a worker that was lost; returns whether there is anybody.
    fn ask(&mut self, place: Place) -> bool {
        let Some(again) = &self.again else { return false };
        let Some(place) = self.engine.pass(place) else { return false };
        let (engine, (request, context)) = (self.engine.clone(), (**again).clone());
        self.state =
            State::Asking(Box::pin(async move { engine.ask(request, context, place).await }));
        true
    }
}

/// Nothing in it is pinned in place.
impl<E> Unpin for Whole<E> {}

impl<E: WorkerGroup> Stream for Whole<E> {
    type Item = Result<GenerateOutput>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Poller<'_>) -> Poll<Option<Self::Item>> {
        loop {
            let (item, place) = match &mut self.state {
                State::Asking(asking) => match ready!(asking.as_mut().poll(cx)) {
                    Ok(asked) => {
                        self.state = State::Answering(asked);
                        continue;
                    }
                    Err(error) => (Some(Err(error)), None),
                },
                State::Answering((stream, place)) => {
                    let place = *place;
                    (ready!(stream.as_mut().poll_next(cx)), Some(place))
                }
                State::Over => return Poll::Ready(None),
            };
            // An answer has an output at least.
            let is_lost = match &item {
                Some(Ok(_)) => false,
                Some(Err(error)) => error.kind() == ErrorKind::Unavailable,
                None => true,
            };
            match place.filter(|_| is_lost) {
                Some(place) if self.ask(place) => continue,
                _ if matches!(item, Some(Ok(_))) => self.again = None,
                _ => self.state = State::Over,
            }
            return Poll::Ready(item);
        }
    }
}
