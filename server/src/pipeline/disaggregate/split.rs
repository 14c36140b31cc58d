//! The answer of a text whose prompt one worker computes and whose rest another one draws.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as Poller, Poll, ready};
use std::time::Duration;

use engine::{
    Context, Error, ErrorKind, FinishReason, GenerateOutput, GenerateRequest, KvHandoff, KvSource,
    OutputStream, Result,
};
use futures_util::Stream;

use super::super::migrate::{Continuation, lacks_room};
use super::{Disaggregate, Place, WorkerGroup, is_elsewhere};

type Calling = Pin<Box<dyn Future<Output = Result<OutputStream<GenerateRequest>>> + Send>>;

/// The answer.
pub(super) struct Split<E> {
    engine: Disaggregate<E>,
    request: GenerateRequest,
    context: Context,
    continuation: Continuation,
    state: State,
    /// Of the prompt, as the prefill worker found it.
    cached_tokens: Option<u32>,
    /// How long the prompt waited.
    queue_time: Option<Duration>,
    /// The others have no room for the rest.
    is_full: bool,
}

enum State {
    /// The prefill worker has it.
    Prompt(OutputStream<GenerateRequest>),
    /// The rest is given to others, or back to the prefill workers.
    Placing(Calling, Place),
    Rest(OutputStream<GenerateRequest>),
    Over,
}

impl<E: WorkerGroup> Split<E> {
    pub(super) fn new(
        engine: Disaggregate<E>,
        (request, context): (GenerateRequest, Context),
        stream: OutputStream<GenerateRequest>,
    ) -> Self {
        let (continuation, state) = (Continuation::new(0), State::Prompt(stream));
        let (cached_tokens, queue_time, is_full) = (None, None, false);
        Self { engine, request, context, continuation, state, cached_tokens, queue_time, is_full }
    }

    /// Takes what the prefill worker says; none: there is nothing in it for the reader.
    fn take_first(&mut self, mut output: GenerateOutput) -> Option<GenerateOutput> {
        let source = output.kv_source.take();
        self.queue_time.get_or_insert(output.queue_time);
        // Its end may come behind its token.
        let has_rest = self.continuation.left(&self.request) > output.tokens.len() as u32;
        // It was allowed one token, so this end is not the text's.
        let goes_on = output.finish == Some(FinishReason::Length) && has_rest;
        if goes_on {
            output.finish = None;
            self.cached_tokens = output.usage.take().map(|usage| usage.cached_tokens);
        }
        let is_over = output.finish.is_some();
        let output = self.continuation.take(&self.request, output);
        if goes_on {
            self.engine.counts.count("split");
            self.place(source, Place::Others);
        } else if is_over {
            self.engine.counts.count("ended");
        }
        (is_over || !output.tokens.is_empty()).then_some(output)
    }

    /// Gives the rest to somebody.
    fn place(&mut self, source: Option<Arc<KvSource>>, place: Place) {
        let mut rest = self.continuation.rest(&self.request);
        rest.handoff = source.map(KvHandoff::At);
        let (engine, context) = (self.engine.at(place), self.context.clone());
        let calling = Box::pin(async move { engine.call(rest, context).await });
        self.state = State::Placing(calling, place);
    }

    /// Makes an output of the rest one of the whole.
    fn take_rest(&mut self, output: GenerateOutput) -> GenerateOutput {
        let output = self.continuation.take(&self.request, output);
        self.dress(output)
    }

    /// Says in an output what is known since the prompt was computed.
    fn dress(&self, mut output: GenerateOutput) -> GenerateOutput {
        output.kv_source = None;
        output.queue_time = self.queue_time.unwrap_or(output.queue_time);
        if let Some((usage, cached_tokens)) = output.usage.as_mut().zip(self.cached_tokens) {
            usage.cached_tokens = cached_tokens;
        }
        output
    }

    /// Asks the next one for a rest that was refused; returns the last output if nobody has room.
    ///
    /// Errors: nobody is left.
    fn refused(&mut self, place: Place, error: Error) -> Result<Option<GenerateOutput>> {
        let is_full = lacks_room(&error);
        match place {
            // A prefill worker took the prompt, so it may take what the others refuse.
            Place::Others if !is_over(&error) => {
                self.engine.counts.count("no_decode");
                self.is_full = is_full;
                self.place(None, Place::Back);
            }
            Place::Back if is_elsewhere(&error) && !self.is_full => {
                self.place(None, Place::Last);
            }
            _ if is_full => {
                let last = self.continuation.exhaust(&self.request).ok_or(error)?;
                self.state = State::Over;
                return Ok(Some(self.dress(last)));
            }
            _ => return Err(error),
        }
        Ok(None)
    }

    /// Ends the answer with an error.
    fn fail(&mut self, error: Error) -> Poll<Option<Result<GenerateOutput>>> {
        self.state = State::Over;
        Poll::Ready(Some(Err(error)))
    }

    /// Goes on without the prefill worker, unless its end was no loss; returns the last output if
    /// nothing may follow.
    fn lose(&mut self, error: Option<Error>) -> Result<Option<GenerateOutput>> {
        if let Some(error) = error.filter(|error| !is_elsewhere(error)) {
            return Err(error);
        }
        self.engine.counts.count("no_prefill");
        let last = self.continuation.end(&self.request);
        match last {
            Some(_) => self.state = State::Over,
            None => self.place(None, Place::Others),
        }
        Ok(last.map(|last| self.dress(last)))
    }
}

/// Returns whether nobody waits for the answer any longer.
fn is_over(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::DeadlineExceeded | ErrorKind::Cancelled)
}

/// Nothing in it is pinned in place.
impl<E> Unpin for Split<E> {}

impl<E: WorkerGroup> Stream for Split<E> {
    type Item = Result<GenerateOutput>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Poller<'_>) -> Poll<Option<Self::Item>> {
        loop {
            match &mut self.state {
                State::Prompt(stream) => match ready!(stream.as_mut().poll_next(cx)) {
                    Some(Ok(output)) => {
                        if let Some(output) = self.take_first(output) {
                            return Poll::Ready(Some(Ok(output)));
                        }
                    }
                    // What has ended is not lost.
                    _ if self.continuation.is_over => self.state = State::Over,
                    end => match self.lose(end.and_then(Result::err)) {
                        Ok(Some(last)) => return Poll::Ready(Some(Ok(last))),
                        Ok(None) => {}
                        Err(error) => return self.fail(error),
                    },
                },
                State::Placing(calling, place) => {
                    let place = *place;
                    match ready!(calling.as_mut().poll(cx)) {
                        Ok(stream) => self.state = State::Rest(stream),
                        Err(error) => match self.refused(place, error) {
                            Ok(Some(last)) => return Poll::Ready(Some(Ok(last))),
                            Ok(None) => {}
                            Err(error) => return self.fail(error),
                        },
                    }
                }
                State::Rest(stream) => {
                    let item = match ready!(stream.as_mut().poll_next(cx)) {
                        Some(Ok(output)) => Some(Ok(self.take_rest(output))),
                        end => {
                            self.state = State::Over;
                            end
                        }
                    };
                    return Poll::Ready(item);
                }
                State::Over => return Poll::Ready(None),
            }
        }
    }
}
