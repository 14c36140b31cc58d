//! The rest of a request's body that its handler left unread. It is read and thrown away after the
//! answer, since a client that writes its whole body before it reads would find the connection
//! closed in the place of a refusal (RFC 9112, section 9.6).

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use engine::Tasks;
use http::header::EXPECT;
use http::{HeaderMap, Request};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::oneshot;
use tokio::time::sleep;

/// How long the rest of a body is read at most.
const LINGER: Duration = Duration::from_secs(30);

/// How long it is read once the server shuts down.
const LINGER_AT_END: Duration = Duration::from_secs(1);

/// A body that gives itself back when it is dropped unread.
pub(super) struct Lingering<B> {
    body: Option<B>,
    left: Option<oneshot::Sender<B>>,
    /// The client sends its body only once it is asked for it.
    is_expecting: bool,
}

/// Receives the unread rest of a body.
pub(super) struct Unread<B>(oneshot::Receiver<B>);

impl<B> Lingering<B> {
    /// Follows the body of a request with these headers.
    fn new(body: B, headers: &HeaderMap) -> (Self, Unread<B>) {
        let (left, unread) = oneshot::channel();
        let is_expecting = headers.contains_key(EXPECT);
        (Self { body: Some(body), left: Some(left), is_expecting }, Unread(unread))
    }

    /// Follows the body of a request.
    pub(super) fn of(request: Request<B>) -> (Request<Self>, Unread<B>) {
        let (parts, body) = request.into_parts();
        let (body, unread) = Self::new(body, &parts.headers);
        (Request::from_parts(parts, body), unread)
    }
}

impl<B> Drop for Lingering<B> {
    fn drop(&mut self) {
        if !self.is_expecting
            && let Some((body, left)) = self.body.take().zip(self.left.take())
        {
            // Nobody waits for it if the answer was dropped first.
            drop(left.send(body));
        }
    }
}

impl<B> Unread<B>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Send,
{
    /// Reads what is left of the body once its handler has dropped it, in a task of `tasks`. The
    /// task ends soon after `accepting` is cancelled.
    pub(super) fn drain(mut self, tasks: &Tasks, accepting: &Tasks) {
        let Ok(mut body) = self.0.try_recv() else { return };
        if body.is_end_stream() {
            return;
        }
        let shutdown = accepting.cancelled();
        tasks.spawn("rest of a body", async move {
            let drained = async { while let Some(Ok(_)) = body.frame().await {} };
            let shutdown = async {
                shutdown.await;
                sleep(LINGER_AT_END).await;
            };
            tokio::select! {
                () = drained => {}
                () = sleep(LINGER) => {}
                () = shutdown => {}
            }
        });
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Lingering<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        self.is_expecting = false;
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let frame = Pin::new(body).poll_frame(cx);
        if let Poll::Ready(None | Some(Err(_))) = frame {
            self.body = None;
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Error as IoError;

    use axum::body::Body as AnyBody;
    use futures_util::{StreamExt, stream};
    use tokio::sync::mpsc;
    use tokio::time::Instant;

    use super::*;

    /// Lets a body of these pieces be dropped unread. Returns how many of them are read, and how
    /// long that takes.
    async fn drained(
        pieces: impl stream::Stream<Item = Bytes> + Send + 'static,
        headers: &[(&'static str, &'static str)],
        is_ending: bool,
    ) -> (usize, Duration) {
        let (read, mut reads) = mpsc::channel(1000);
        let pieces = pieces.map(move |piece| {
            read.try_send(()).unwrap();
            Ok::<_, IoError>(piece)
        });
        let mut request = Request::new(AnyBody::from_stream(pieces));
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.parse().unwrap());
        }
        let (request, unread) = Lingering::of(request);
        drop(request);
        let (tasks, accepting, started) = (Tasks::new(), Tasks::new(), Instant::now());
        unread.drain(&tasks, &accepting);
        if is_ending {
            accepting.cancel();
        }
        let mut count = 0;
        while reads.recv().await.is_some() {
            count += 1;
        }
        (count, started.elapsed())
    }

    fn piece() -> Bytes {
        Bytes::from_static(&[7; 4096])
    }

    /// Returns a body without end, a piece each tenth of a second.
    fn endless() -> impl stream::Stream<Item = Bytes> {
        stream::repeat(piece()).then(|piece| async {
            sleep(Duration::from_millis(100)).await;
            piece
        })
    }

    #[tokio::test(start_paused = true)]
    async fn an_unread_body_is_read_to_its_end() {
        let (count, time) = drained(stream::iter(vec![piece(); 1000]), &[], false).await;
        assert_eq!((count, time), (1000, Duration::ZERO));
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_without_end_is_read_for_so_long_alone() {
        let (count, time) = drained(endless(), &[], false).await;
        assert!((290..=300).contains(&count), "{count} pieces");
        assert_eq!(time.as_secs(), LINGER.as_secs());
        let (_, time) = drained(endless(), &[], true).await;
        assert_eq!(time.as_secs(), LINGER_AT_END.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_waits_to_be_asked_is_not_asked() {
        let body = stream::iter(vec![piece(); 10]);
        assert_eq!(drained(body, &[("expect", "100-continue")], false).await.0, 0);
    }
}
