//! HTTP/1.1 and HTTP/2 on one port, told apart by the first bytes (and ALPN under TLS).
//!
//! A connection that sends no whole request in time is closed, whichever version it began to speak.
//! When the server shuts down, HTTP/2 says so at once. HTTP/1.1 can say it in an answer alone, so its
//! connections stay for a moment in which answers do, and are closed then.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use engine::{Error, Tasks};
use futures_util::future::BoxFuture;
use http::header::{CONNECTION, HOST};
use http::{HeaderValue, Request, StatusCode, Version};
use hyper::body::{Body as _, Incoming};
use hyper::service::Service;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tower::ServiceExt;

use super::lingering::Lingering;
use super::{Answered, Asked, Call, Caller, Protocol, Seat, Transport};
use crate::serving::shared::shutting_down;
use crate::support::buffers::{Buffers, FOLLOWED_BYTES, Foreseen, IsLone};

/// How long a connection of clients may be idle before a request, and the request's headers take.
pub(crate) const HEADER_TIMEOUT: Duration = Duration::from_secs(75);

/// How long a ping over HTTP/2 may go unanswered; it is sent after the same silence as above.
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// Largest header list of a request over HTTP/2, in bytes.
const MAX_HEADER_LIST_BYTES: u32 = 64 << 10;

/// What is read ahead of a connection over HTTP/1.1, which its headers have to fit in, in bytes.
const MAX_HEAD_BYTES: usize = 64 << 10;

/// Open requests of one HTTP/2 connection.
const MAX_STREAMS: u32 = 1024;

/// HTTP/2 windows in bytes: of a request, and of all of a connection's requests.
const WINDOW_BYTES: (u32, u32) = (1 << 20, 4 << 20);

/// Makes the answer to a request on a path that is not served: it outlives the grace of a shutdown,
/// or there is no memory for its answer.
pub(crate) type Refuse = Arc<dyn Fn(&str, &Error) -> Response + Send + Sync>;

/// HTTP, answered by a router.
#[derive(Clone)]
pub(crate) struct Http {
    pub router: Router,
    /// How long a connection may be idle before a request, and the request's headers take.
    pub header_timeout: Duration,
    /// How long requests over HTTP/1.1 are taken in a shutdown.
    pub farewell: Duration,
    pub refuse: Refuse,
    /// The memory for answers, if they count.
    pub buffers: Option<Arc<Buffers>>,
}

impl Protocol for Http {
    const TASK: &'static str = "http connection";

    async fn serve(self, transport: Transport, seat: &Seat, accepting: Tasks) {
        let is_http2 = Arc::<AtomicBool>::default();
        let builder = builder(self.header_timeout);
        let service = Begun {
            router: self.router,
            is_http2: is_http2.clone(),
            ending: accepting.clone(),
            caller: seat.caller(),
            refuse: self.refuse,
            buffers: self.buffers,
        };
        let mut served = pin!(builder.serve_connection(TokioIo::new(transport), service));
        let silence = async {
            tokio::time::sleep(self.header_timeout).await;
            if seat.has_called() {
                std::future::pending::<()>().await;
            }
        };
        let result = tokio::select! {
            result = served.as_mut() => Some(result),
            () = silence => return,
            () = seat.gives_way() => {
                if !seat.has_called() {
                    return;
                }
                served.as_mut().graceful_shutdown();
                seat.see_out(served).await
            }
            () = accepting.cancelled() => {
                let farewell = async {
                    if !is_http2.load(Relaxed) {
                        tokio::time::sleep(self.farewell).await;
                    }
                };
                tokio::select! {
                    biased;
                    result = served.as_mut() => Some(result),
                    () = farewell => {
                        served.as_mut().graceful_shutdown();
                        seat.see_out(served).await
                    }
                }
            }
        };
        if let Some(Err(error)) = result {
            tracing::debug!(%error, "connection failed");
        }
    }
}

fn builder(header_timeout: Duration) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(header_timeout)
        .max_buf_size(MAX_HEAD_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .initial_stream_window_size(WINDOW_BYTES.0)
        .initial_connection_window_size(WINDOW_BYTES.1)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADER_LIST_BYTES)
        .keep_alive_interval(header_timeout)
        .keep_alive_timeout(PING_TIMEOUT);
    builder
}

/// A router that tells of requests.
struct Begun {
    router: Router,
    is_http2: Arc<AtomicBool>,
    /// Cancelled when answers over HTTP/1.1 say that the connection ends.
    ending: Tasks,
    caller: Caller,
    refuse: Refuse,
    buffers: Option<Arc<Buffers>>,
}

impl Service<Request<Incoming>> for Begun {
    type Response = Response<Answered<Body>>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let is_http2 = request.version() == Version::HTTP_2;
        self.is_http2.store(is_http2, Relaxed);
        let call = self.caller.begin();
        if let Err(count) = check_host(&request) {
            let text = format!("expected one Host header, got {count} (RFC 9112, section 3.2)\n");
            let mut refusal = Response::new(Body::from(text));
            *refusal.status_mut() = StatusCode::BAD_REQUEST;
            let refusal = refusal.map(|body| Answered::new(body, call));
            return Box::pin(std::future::ready(Ok(refusal)));
        }
        let uri = request.uri().clone();
        let (request, unread) = Lingering::of(request.map(|body| Asked::new(body, call.clone())));
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(IsLone(call.is_lone()));
        let answer = self.router.clone().oneshot(request);
        let (ending, refuse) = (self.ending.clone(), self.refuse.clone());
        let buffers = self.buffers.clone();
        Box::pin(async move {
            let mut answer = tokio::select! {
                biased;
                answer = answer => answer?,
                () = call.ending().cancelled() => refuse(uri.path(), &shutting_down()),
            };
            unread.drain(call.ending(), &ending);
            if let Err(error) = keep(buffers, &mut answer, &call) {
                answer = refuse(uri.path(), &error);
            }
            if !is_http2 && ending.is_cancelled() {
                answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok(answer.map(|body| Answered::new(body, call)))
        })
    }
}

/// Holds memory for an answer that is whole, until it is written; some of it may be held already.
///
/// Errors: there is not as much.
fn keep(buffers: Option<Arc<Buffers>>, answer: &mut Response, call: &Call) -> engine::Result<()> {
    let foreseen = Foreseen::take(answer.extensions_mut());
    let bytes = answer.body().size_hint().exact().unwrap_or_default();
    let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
    let Some(buffers) = buffers.filter(|_| bytes >= FOLLOWED_BYTES) else { return Ok(()) };
    let mut held = foreseen.unwrap_or_else(|| buffers.hold_for(call.is_lone()));
    held.fit(bytes)?;
    call.keep(held);
    Ok(())
}

/// Checks that a request over HTTP/1.1 names its host once.
///
/// Errors: how often it does.
fn check_host<B>(request: &Request<B>) -> Result<(), usize> {
    match request.headers().get_all(HOST).iter().count() {
        1 => Ok(()),
        _ if request.version() != Version::HTTP_11 => Ok(()),
        count => Err(count),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use axum::routing::get;
    use prometheus_client::metrics::counter::Counter;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::super::seats::{SILENCE, Seats};
    use super::*;

    const TIMEOUT: Duration = Duration::from_millis(300);

    /// Longer than anything here takes.
    const LONG: Duration = Duration::from_secs(60);

    async fn seat() -> Seat {
        let counter = Counter::default();
        Seats::new(("test", 1), counter, SILENCE, Tasks::new()).take().await.unwrap()
    }

    fn http(header_timeout: Duration, farewell: Duration) -> Http {
        let router = Router::new().route("/", get(|| async { "hello" }));
        let refuse: Refuse = Arc::new(|_, error| {
            let mut refusal = Response::new(Body::from(error.message().to_owned()));
            *refusal.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            refusal
        });
        Http { router, header_timeout, farewell, refuse, buffers: None }
    }

    /// Returns what the server says to these bytes until it closes the connection, and how long
    /// that takes.
    async fn ask(bytes: &[u8]) -> (Vec<u8>, Duration) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let http = http(TIMEOUT, Duration::ZERO);
        let serve = async move {
            let (stream, _) = listener.accept().await.unwrap();
            http.serve(Transport::plain(stream), &seat().await, Tasks::new()).await;
        };
        let client = async {
            // The server may count from the moment of the connection.
            let started = Instant::now();
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(bytes).await.unwrap();
            let mut said = Vec::new();
            let _ = stream.read_to_end(&mut said).await;
            (said, started.elapsed())
        };
        let both = async { tokio::join!(serve, client).1 };
        tokio::time::timeout(LONG, both).await.expect("the connection was not closed")
    }

    #[tokio::test]
    async fn a_connection_without_a_whole_request_is_closed_in_time() {
        let begun: [&[u8]; 5] = [
            b"",
            b"P",
            b"PRI * HTTP/2.0\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
            b"GET / HTTP/1.1\r\nhost:",
        ];
        for bytes in begun {
            let (said, time) = ask(bytes).await;
            let shown = String::from_utf8_lossy(bytes);
            assert!(time >= TIMEOUT, "{shown:?} was closed after {time:?}");
            assert!(!String::from_utf8_lossy(&said).contains("200 OK"), "{shown:?}");
        }
    }

    #[tokio::test]
    async fn a_request_is_answered_and_then_the_connection_may_idle_as_long() {
        let (said, time) = ask(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        assert!(String::from_utf8_lossy(&said).starts_with("HTTP/1.1 200 OK"));
        assert!(time >= TIMEOUT, "{time:?}");
    }

    #[tokio::test]
    async fn a_request_that_comes_in_a_shutdown_is_answered_with_a_farewell() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let http = http(HEADER_TIMEOUT, HEADER_TIMEOUT);
        let accepting = Tasks::new();
        let serve = async {
            let (stream, _) = listener.accept().await.unwrap();
            http.serve(Transport::plain(stream), &seat().await, accepting.clone()).await;
        };
        let client = async {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let (asked, mut said) = (b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", vec![0; 4096]);
            stream.write_all(asked).await.unwrap();
            let count = stream.read(&mut said).await.unwrap();
            let first = String::from_utf8_lossy(&said[..count]).to_lowercase();
            assert!(first.contains("200 ok") && !first.contains("connection: close"), "{first}");
            accepting.cancel();
            stream.write_all(asked).await.unwrap();
            let mut said = Vec::new();
            stream.read_to_end(&mut said).await.unwrap();
            let second = String::from_utf8_lossy(&said).to_lowercase();
            assert!(second.contains("200 ok") && second.contains("connection: close"), "{second}");
        };
        tokio::join!(serve, client);
    }

    #[tokio::test]
    async fn an_answer_counts_until_it_is_read_and_is_refused_without_memory() {
        const BYTES: usize = 32 << 20;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let buffers = Buffers::new(BYTES * 3 / 2, Counter::default());
        let router = Router::new().route("/", get(|| async { vec![7; BYTES] }));
        let plain = http(LONG, Duration::ZERO);
        let http = Http { router, buffers: Some(buffers.clone()), ..plain };
        let tasks = Tasks::new();
        let serve = async {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let http = http.clone();
                tasks.spawn("connection", async move {
                    http.serve(Transport::plain(stream), &seat().await, Tasks::new()).await;
                });
            }
        };
        let begin = async || {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
            let mut said = vec![0; 12];
            stream.read_exact(&mut said).await.unwrap();
            (stream, String::from_utf8(said).unwrap())
        };
        let client = async {
            let (mut first, said) = begin().await;
            assert_eq!((&*said, buffers.held_bytes()), ("HTTP/1.0 200", BYTES));
            let (_second, said) = begin().await;
            assert_eq!(said, "HTTP/1.0 503");
            first.read_to_end(&mut Vec::new()).await.unwrap();
            drop(first);
            while buffers.held_bytes() > 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let both = async {
            tokio::select! {
                () = serve => {},
                () = client => {},
            }
        };
        tokio::time::timeout(LONG, both).await.expect("the memory is given back");
    }
}
