//! Ends a request when its own deadline passes, whatever the engine below is doing.
//!
//! It stands outermost, so that waiting anywhere below counts; dropping the inner future or
//! stream is what stops the work.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context as Poller, Poll};

use async_trait::async_trait;
use engine::{Context, Engine, Error, ErrorKind, OutputStream, Request, Result};
use futures_util::Stream;
use tokio::time::{Sleep, sleep_until, timeout_at};

/// An engine whose requests end at their deadline.
#[derive(Debug)]
pub(crate) struct Deadline<E>(pub E);

#[async_trait]
impl<R: Request, E: Engine<R>> Engine<R> for Deadline<E> {
    async fn call(&self, request: R, context: Context) -> Result<OutputStream<R>> {
        let Some(deadline) = context.deadline() else {
            return self.0.call(request, context).await;
        };
        let deadline = deadline.into();
        match timeout_at(deadline, self.0.call(request, context)).await {
            Err(_) => Err(exceeded()),
            Ok(Err(error)) => Err(error),
            Ok(Ok(stream)) => Ok(Box::pin(Limited::<R> {
                stream: Some(stream),
                sleep: Box::pin(sleep_until(deadline)),
            })),
        }
    }
}

fn exceeded() -> Error {
    Error::new(ErrorKind::DeadlineExceeded, "Deadline Exceeded: the request's own time is over")
}

struct Limited<R: Request> {
    stream: Option<OutputStream<R>>,
    sleep: Pin<Box<Sleep>>,
}

impl<R: Request> Stream for Limited<R> {
    type Item = Result<R::Output>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Poller<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        let Some(stream) = &mut this.stream else {
            return Poll::Ready(None);
        };
        if this.sleep.as_mut().poll(cx).is_ready() {
            this.stream = None;
            return Poll::Ready(Some(Err(exceeded())));
        }
        stream.as_mut().poll_next(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use engine::InferRequest;
    use engine::testing::{Scripted, Step};
    use futures_util::StreamExt;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_late_stream_ends_with_the_deadline_and_drops_the_work() {
        let engine = Deadline(Scripted::<InferRequest>::new(vec![
            Step::Output(engine::InferOutput::default()),
            Step::Sleep(Duration::from_secs(60)),
        ]));
        let deadline = Instant::now() + Duration::from_millis(20);
        let context = Context::new("late").with_deadline(Some(deadline));
        let mut stream = engine.call(InferRequest::default(), context).await.unwrap();
        assert!(stream.next().await.unwrap().is_ok());
        let error = stream.next().await.unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
        assert_eq!(engine.0.live_streams(), 0, "the inner stream is dropped at once");
        assert!(stream.next().await.is_none());
    }
}
