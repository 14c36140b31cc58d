//! The answer of a request whose continuations go on wherever they can.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context as Poller, Poll};
use std::time::Duration;

use engine::{
    Context, Engine, Error, ErrorKind, GenerateOutput, GenerateRequest, OutputStream, Result,
};
use futures_util::Stream;

use super::Migrate;
use super::continuation::{Continuation, lacks_room};

type Calling = Pin<Box<dyn Future<Output = Result<OutputStream<GenerateRequest>>> + Send>>;

/// The answer.
pub(super) struct Migrating<E> {
    migrate: Migrate<E>,
    request: GenerateRequest,
    context: Context,
    continuations: Vec<Continuation>,
    attempts: Vec<Attempt>,
    /// The attempt that is looked at first, so that none starves.
    first: usize,
    /// What this end has to say by itself.
    own: VecDeque<GenerateOutput>,
    /// Of the first attempt, once it is known.
    queue_time: Option<Duration>,
}

/// A call to the engine below, for one continuation or for all.
struct Attempt {
    /// The place of the continuation it is for; none: for all of them.
    place: Option<usize>,
    state: State,
}

enum State {
    Calling(Calling),
    Answering(OutputStream<GenerateRequest>),
}

/// What an attempt has to say.
enum News {
    Output(GenerateOutput),
    /// It ended, with what it says of that.
    End(Option<Error>),
    /// No worker took it.
    Refused(Error),
}

impl Attempt {
    fn poll(&mut self, cx: &mut Poller<'_>) -> Poll<News> {
        loop {
            match &mut self.state {
                State::Calling(call) => match std::task::ready!(call.as_mut().poll(cx)) {
                    Ok(stream) => self.state = State::Answering(stream),
                    Err(error) => return Poll::Ready(News::Refused(error)),
                },
                State::Answering(stream) => {
                    return stream.as_mut().poll_next(cx).map(|item| match item {
                        Some(Ok(output)) => News::Output(output),
                        Some(Err(error)) => News::End(Some(error)),
                        None => News::End(None),
                    });
                }
            }
        }
    }
}

impl<E: Engine<GenerateRequest> + Clone> Migrating<E> {
    pub(super) fn new(
        migrate: Migrate<E>,
        (request, context): (GenerateRequest, Context),
        stream: OutputStream<GenerateRequest>,
    ) -> Self {
        let continuations = (0..request.choices.get()).map(Continuation::new).collect();
        let attempts = vec![Attempt { place: None, state: State::Answering(stream) }];
        let (first, own, queue_time) = Default::default();
        Self { migrate, request, context, continuations, attempts, first, own, queue_time }
    }

    /// Takes an output of an attempt. Errors: it is of a continuation that was not asked for.
    fn take(&mut self, place: Option<usize>, output: GenerateOutput) -> Result<GenerateOutput> {
        let index = place.unwrap_or(output.index as usize);
        let Some(continuation) = self.continuations.get_mut(index) else {
            let text =
                format!("a worker answered with continuation {index}, which nobody asked for");
            return Err(Error::internal(text));
        };
        let queue_time = *self.queue_time.get_or_insert(output.queue_time);
        let output = GenerateOutput { queue_time, ..output };
        Ok(continuation.take(&self.request, output))
    }

    /// Lets what an attempt has not finished go on elsewhere.
    ///
    /// Errors: a continuation did so too often, or the end was no loss.
    fn end(&mut self, attempt: usize, error: Option<Error>) -> Result<()> {
        if let Some(error) = error.as_ref().filter(|error| error.kind() != ErrorKind::Unavailable) {
            return self.refuse(attempt, error.clone());
        }
        let Attempt { place, .. } = self.attempts.swap_remove(attempt);
        let places = match place {
            Some(place) => place..place + 1,
            None => 0..self.continuations.len(),
        };
        for place in places {
            let continuation = &mut self.continuations[place];
            if continuation.is_over {
                continue;
            }
            if let Some(mut last) = continuation.end(&self.request) {
                last.queue_time = self.queue_time.unwrap_or_default();
                self.own.push_back(last);
                continue;
            }
            if continuation.migrations >= self.migrate.limit {
                return Err(error.unwrap_or_else(lost));
            }
            let rest = continuation.rest(&self.request);
            self.migrate.count.inc();
            let (engine, context) = (self.migrate.engine.clone(), self.context.clone());
            tracing::debug!(
                request = context.id(),
                tokens = rest.generated,
                "a continuation goes on elsewhere"
            );
            let call = Box::pin(async move { engine.call(rest, context).await });
            self.attempts.push(Attempt { place: Some(place), state: State::Calling(call) });
        }
        Ok(())
    }

    /// Ends a continuation that there is no room for, as the worker does that it began at; it may
    /// have been lost before it could say so.
    ///
    /// Errors: the refusal, if it is for another reason or nothing was drawn.
    fn refuse(&mut self, attempt: usize, error: Error) -> Result<()> {
        let place = self.attempts[attempt].place.filter(|_| lacks_room(&error));
        let exhausted = place.and_then(|place| self.continuations[place].exhaust(&self.request));
        let mut last = exhausted.ok_or(error)?;
        last.queue_time = self.queue_time.unwrap_or_default();
        self.own.push_back(last);
        self.attempts.swap_remove(attempt);
        Ok(())
    }

    /// Drops all that is worked on.
    fn close(&mut self) {
        self.attempts.clear();
        self.own.clear();
    }

    /// Returns the next item; none: there is nothing yet, and all attempts will wake the reader.
    fn next(&mut self, cx: &mut Poller<'_>) -> Option<Option<Result<GenerateOutput>>> {
        let mut idle = 0;
        loop {
            if let Some(output) = self.own.pop_front() {
                return Some(Some(Ok(output)));
            }
            if self.attempts.is_empty() {
                return Some(None);
            }
            if idle >= self.attempts.len() {
                return None;
            }
            self.first = (self.first + 1) % self.attempts.len();
            let (at, attempt) = (self.first, &mut self.attempts[self.first]);
            let outcome = match attempt.poll(cx) {
                Poll::Pending => {
                    idle += 1;
                    continue;
                }
                Poll::Ready(News::Output(output)) => {
                    let place = attempt.place;
                    return Some(Some(self.take(place, output)));
                }
                Poll::Ready(News::End(error)) => self.end(at, error),
                Poll::Ready(News::Refused(error)) => self.refuse(at, error),
            };
            // New attempts have not been looked at.
            idle = 0;
            if let Err(error) = outcome {
                return Some(Some(Err(error)));
            }
        }
    }
}

/// Nothing in it is pinned in place.
impl<E> Unpin for Migrating<E> {}

impl<E: Engine<GenerateRequest> + Clone> Stream for Migrating<E> {
    type Item = Result<GenerateOutput>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Poller<'_>) -> Poll<Option<Self::Item>> {
        let Some(item) = self.next(cx) else {
            return Poll::Pending;
        };
        if let Some(Err(_)) = &item {
            self.close();
        }
        Poll::Ready(item)
    }
}

fn lost() -> Error {
    Error::new(ErrorKind::Unavailable, "the worker was lost before the end of its answer")
}
