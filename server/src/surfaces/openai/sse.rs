//! Streams of events: frames as the text grows, comments or pings while it does not.
//!
//! The head goes out with the first news, so an error before it has a status of its own; but not
//! later than the first comment is due, since clients and proxies give up on silence.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context as Poller, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use engine::{Error, OutputStream, Result};
use futures_util::future::BoxFuture;
use futures_util::{Stream, StreamExt};
use http::{HeaderValue, header};
use openai_bridge::api::Form;
use openai_bridge::{Completion, TextOutput};
use tokio::time::{Instant, Sleep, sleep, timeout};

use super::OpenAi;
use super::answer::value;
use super::store::Keep;
use crate::serving::inference::Observation;
use crate::serving::shared::shutting_down;
use crate::support::status::Dialect;

/// Frames that are ready at once leave together, up to about this many bytes.
const CHUNK_BYTES: usize = 16 << 10;

/// Returns a frame that says nothing.
fn silence(dialect: Dialect) -> &'static [u8] {
    match dialect {
        Dialect::OpenAi => b": keep-alive\n\n",
        Dialect::Anthropic => b"event: ping\ndata: {\"type\": \"ping\"}\n\n",
    }
}

/// Answers as the text grows.
///
/// Errors: the engine's, if it fails before the first news.
pub(super) async fn answer(
    door: &OpenAi,
    dialect: Dialect,
    mut stream: OutputStream<Completion>,
    form: Box<dyn Form>,
    mut observation: Observation,
    keep: Option<Keep>,
) -> Result<Response> {
    let patience = door.config.keep_alive.unwrap_or(Duration::MAX);
    let first = match timeout(patience, stream.next()).await {
        Err(_) => None,
        Ok(Some(Ok(output))) => Some(output),
        Ok(Some(Err(error))) => {
            observation.end(Err(&error));
            return Err(error);
        }
        Ok(None) => {
            let error = Error::internal("the engine ended without an answer");
            observation.end(Err(&error));
            return Err(error);
        }
    };
    let frames = Frames {
        stream: Some(stream),
        first,
        form,
        observation,
        dialect,
        keep_alive: door.config.keep_alive.map(|pause| (pause, Box::pin(sleep(pause)))),
        keep,
        ending: Box::pin(door.shared.answering.cancelled()),
    };
    let mut response = Response::new(Body::from_stream(frames));
    let headers = response.headers_mut();
    let kind = HeaderValue::from_static("text/event-stream; charset=utf-8");
    headers.insert(header::CONTENT_TYPE, kind);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Proxies of the nginx family would collect the frames.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

/// The frames of one answer; dropping it cancels the request.
struct Frames {
    stream: Option<OutputStream<Completion>>,
    first: Option<TextOutput>,
    form: Box<dyn Form>,
    observation: Observation,
    dialect: Dialect,
    keep_alive: Option<(Duration, Pin<Box<Sleep>>)>,
    keep: Option<Keep>,
    /// The end of a shutdown's grace.
    ending: BoxFuture<'static, ()>,
}

impl Frames {
    fn tell(&mut self, output: TextOutput, out: &mut Vec<u8>) {
        self.observation.told(&output);
        let is_last = output.is_last;
        self.form.write(output, out);
        if is_last {
            self.form.end(out);
            self.over(Ok(()));
        }
    }

    fn fail(&mut self, error: &Error, out: &mut Vec<u8>) {
        self.form.fail(&value(self.dialect, error), out);
        self.over(Err(error));
    }

    fn over(&mut self, result: std::result::Result<(), &Error>) {
        self.stream = None;
        self.observation.end(result);
        if let Some((keep, record)) = self.keep.take().zip(self.form.record()) {
            keep(record);
        }
    }

    /// Writes what is ready.
    fn collect(&mut self, cx: &mut Poller<'_>, out: &mut Vec<u8>) {
        if let Some(first) = self.first.take() {
            self.tell(first, out);
        }
        while out.len() < CHUNK_BYTES {
            let Some(stream) = &mut self.stream else { return };
            match stream.as_mut().poll_next(cx) {
                Poll::Pending => return,
                Poll::Ready(Some(Ok(output))) => self.tell(output, out),
                Poll::Ready(Some(Err(error))) => self.fail(&error, out),
                Poll::Ready(None) => {
                    self.fail(&Error::internal("the engine ended without a finish"), out);
                }
            }
        }
    }

    /// Writes a comment if nothing was written for long.
    fn comment(&mut self, cx: &mut Poller<'_>, out: &mut Vec<u8>) {
        let Some((pause, timer)) = &mut self.keep_alive else { return };
        while timer.as_mut().poll(cx).is_ready() {
            out.extend_from_slice(silence(self.dialect));
            timer.as_mut().reset(Instant::now() + *pause);
        }
    }
}

impl Stream for Frames {
    type Item = std::result::Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Poller<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        let mut out = Vec::new();
        this.collect(cx, &mut out);
        if this.stream.is_some() && this.ending.as_mut().poll(cx).is_ready() {
            this.fail(&shutting_down(), &mut out);
        }
        if this.stream.is_none() {
            return Poll::Ready((!out.is_empty()).then(|| Ok(out.into())));
        }
        if out.is_empty() {
            this.comment(cx, &mut out);
        } else if let Some((pause, timer)) = &mut this.keep_alive {
            timer.as_mut().reset(Instant::now() + *pause);
        }
        match out.is_empty() {
            true => Poll::Pending,
            false => Poll::Ready(Some(Ok(out.into()))),
        }
    }
}
