//! The buffer between the scheduler's thread and the reader of one request.
//!
//! Tokens of one continuation that nobody has read yet become one output, so the buffer is
//! bounded by the request's own token limit. The end of a continuation wakes the reader at once,
//! tokens when the scheduler says so: see [`Output::wake`]. Dropping the reader is seen by the scheduler before
//! its next step; dropping the last writer ends the reader.

use std::collections::VecDeque;
use std::marker::PhantomData;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use engine::{Embedding, Error, FinishReason, GenerateOutput, TokenId, TokenLogprobs, Usage};
use futures_util::Stream;

use super::waiting::Ticket;

/// The writer's side: the request waits or runs as long as somebody holds it.
///
/// A request that is lost, as by a panic between the queue and the batch, ends with an error: nobody
/// waits for ever.
#[derive(Debug)]
pub(super) struct Writer(Arc<Output>);

impl Writer {
    /// Makes the writer of a request of some continuations.
    pub(super) fn new(choices: u32) -> Arc<Self> {
        Arc::new(Self(Output::new(choices)))
    }

    /// Returns the buffer, for the reader.
    pub(super) fn output(&self) -> Arc<Output> {
        self.0.clone()
    }
}

impl Deref for Writer {
    type Target = Output;

    fn deref(&self) -> &Output {
        &self.0
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.0.fail(Error::internal("the request was lost in the engine"));
    }
}

/// What is written and not read yet.
#[derive(Debug)]
pub(super) struct Output {
    state: Mutex<State>,
    is_dropped: AtomicBool,
}

/// What is between the two.
#[derive(Debug, Default)]
pub(super) struct State {
    /// At most one entry for each continuation.
    pending: VecDeque<GenerateOutput>,
    /// The answer of a request for an embedding.
    embedding: Option<Embedding>,
    /// Continuations that have not ended.
    open: u32,
    error: Option<Error>,
    queue_time: Duration,
    waker: Option<Waker>,
}

/// A token that is handed out, and what was asked about it.
pub(super) type Told = (TokenId, Option<TokenLogprobs>);

/// What one step adds to a continuation.
#[derive(Debug, Default)]
pub(super) struct Addition {
    pub token: Option<Told>,
    /// The token that ended it, which is not handed out.
    pub end_logprobs: Option<(TokenId, TokenLogprobs)>,
    /// Of the prompt, once.
    pub prompt_logprobs: Vec<Option<TokenLogprobs>>,
    pub end: Option<(FinishReason, Usage)>,
}

impl Output {
    /// Makes a buffer for a request of some continuations.
    fn new(choices: u32) -> Arc<Self> {
        let state = State { open: choices, ..State::default() };
        Arc::new(Self { state: Mutex::new(state), is_dropped: AtomicBool::new(false) })
    }

    /// Adds a token to a continuation, ends it, or both at once. An end wakes the reader.
    pub(super) fn push(&self, index: u32, addition: Addition) {
        let is_end = addition.end.is_some();
        let mut state = self.lock();
        let output = state.entry(index);
        output.prompt_logprobs.extend(addition.prompt_logprobs);
        if let Some((token, logprobs)) = addition.token {
            output.tokens.push(token);
            output.logprobs.extend(logprobs);
        }
        if let Some((reason, usage)) = addition.end {
            output.end_logprobs = addition.end_logprobs;
            output.finish = Some(reason);
            output.usage = Some(usage);
            state.open = state.open.saturating_sub(1);
        }
        drop(state);
        if is_end {
            self.wake();
        }
    }

    /// Answers a request for an embedding, which ends it.
    pub(super) fn embed(&self, embedding: Embedding) {
        let mut state = self.lock();
        state.embedding = Some(embedding);
        state.open = 0;
        drop(state);
        self.wake();
    }

    /// Notes how long the request waited for its place in the batch.
    pub(super) fn admitted(&self, queue_time: Duration) {
        self.lock().queue_time = queue_time;
    }

    /// Ends the request with an error, after what is already there.
    pub(super) fn fail(&self, error: Error) {
        let mut state = self.lock();
        if state.open > 0 {
            state.open = 0;
            state.error.get_or_insert(error);
        }
        drop(state);
        self.wake();
    }

    /// Wakes the reader, if it waits and there is something for it.
    pub(super) fn wake(&self) {
        let waker = {
            let mut state = self.lock();
            let has_news = !state.pending.is_empty() || state.open == 0;
            if has_news { state.waker.take() } else { None }
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Returns whether nobody will read any more.
    pub(super) fn is_dropped(&self) -> bool {
        self.is_dropped.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Returns the unread output of a continuation.
    fn entry(&mut self, index: u32) -> &mut GenerateOutput {
        let place = self.pending.iter().position(|output| output.index == index);
        let place = place.unwrap_or_else(|| {
            self.pending.push_back(GenerateOutput { index, ..GenerateOutput::default() });
            self.pending.len() - 1
        });
        &mut self.pending[place]
    }
}

/// What a reader reads.
pub(super) trait News: Sized {
    /// Takes what is there.
    fn take(state: &mut State) -> Option<Self>;
}

impl News for GenerateOutput {
    fn take(state: &mut State) -> Option<Self> {
        let queue_time = state.queue_time;
        state.pending.pop_front().map(|output| Self { queue_time, ..output })
    }
}

impl News for Embedding {
    fn take(state: &mut State) -> Option<Self> {
        state.embedding.take()
    }
}

/// The reader's side. Dropping it takes the request out of the queue or the batch.
#[derive(Debug)]
pub(super) struct Reader<T> {
    output: Arc<Output>,
    ticket: Ticket,
    news: PhantomData<fn() -> T>,
}

impl<T> Reader<T> {
    /// Makes the reader of a request that waits under `ticket`.
    pub(super) fn new(output: Arc<Output>, ticket: Ticket) -> Self {
        Self { output, ticket, news: PhantomData }
    }
}

impl<T: News> Stream for Reader<T> {
    type Item = Result<T, Error>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut state = self.output.lock();
        if let Some(news) = T::take(&mut state) {
            return Poll::Ready(Some(Ok(news)));
        }
        if let Some(error) = state.error.take() {
            return Poll::Ready(Some(Err(error)));
        }
        if state.open == 0 {
            return Poll::Ready(None);
        }
        match &mut state.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            None => state.waker = Some(cx.waker().clone()),
        }
        Poll::Pending
    }
}

impl<T> Drop for Reader<T> {
    fn drop(&mut self) {
        self.output.is_dropped.store(true, Ordering::Relaxed);
        self.ticket.withdraw();
    }
}

#[cfg(test)]
mod tests {
    use engine::ErrorKind;

    use super::*;

    /// Reads what is there; none if the reader would wait.
    fn read(output: &Arc<Output>) -> Option<Option<Result<GenerateOutput, Error>>> {
        let mut reader = Reader::new(output.clone(), Ticket::unqueued());
        match Pin::new(&mut reader).poll_next(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(news) => Some(news),
            Poll::Pending => None,
        }
    }

    #[test]
    fn a_request_that_is_lost_ends_with_an_error() {
        let writer = Writer::new(2);
        let (output, other) = (writer.output(), writer.clone());
        let end = Some((FinishReason::Stop, Usage::default()));
        writer.push(0, Addition { end, ..Addition::default() });
        drop(writer);
        assert!(matches!(read(&output), Some(Some(Ok(output))) if output.finish.is_some()));
        assert!(read(&output).is_none(), "the other continuation is still written");
        drop(other);
        let error = read(&output).unwrap().unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Internal);
        assert!(matches!(read(&output), Some(None)));
    }

    #[test]
    fn a_request_that_has_ended_is_not_lost() {
        let writer = Writer::new(1);
        let output = writer.output();
        let end = Some((FinishReason::Stop, Usage::default()));
        writer.push(0, Addition { end, ..Addition::default() });
        drop(writer);
        assert!(matches!(read(&output), Some(Some(Ok(_)))));
        assert!(matches!(read(&output), Some(None)));
    }
}
