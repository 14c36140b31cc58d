//! HTTP/1.1 and HTTP/2 on one port, told apart by the first bytes (and ALPN under TLS).
//!
//! A connection that sends no whole request in time is closed, whichever version it began to speak.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::response::Response;
use engine::Tasks;
use futures_util::future::BoxFuture;
use http::Request;
use hyper::body::Incoming;
use hyper::service::Service;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tower::ServiceExt;

use super::{Protocol, Transport};

/// How long a connection may be idle before a request, and the request's headers take.
const HEADER_TIMEOUT: Duration = Duration::from_secs(75);

/// How long a ping over HTTP/2 may go unanswered; it is sent after the same silence as above.
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// Largest header list of a request over HTTP/2, in bytes.
const MAX_HEADER_LIST_BYTES: u32 = 64 << 10;

/// Open requests of one HTTP/2 connection.
const MAX_STREAMS: u32 = 1024;

/// HTTP/2 windows in bytes: of a request, and of all of a connection's requests.
const WINDOW_BYTES: (u32, u32) = (1 << 20, 4 << 20);

/// HTTP, answered by a router.
#[derive(Clone)]
pub(crate) struct Http(pub Router);

impl Protocol for Http {
    const TASK: &'static str = "http connection";

    async fn serve(self, transport: Transport, accepting: Tasks) {
        let has_begun = Arc::new(AtomicBool::new(false));
        let builder = builder();
        let service = Begun { router: self.0, has_begun: has_begun.clone() };
        let mut served = pin!(builder.serve_connection(TokioIo::new(transport), service));
        let silence = async {
            tokio::time::sleep(HEADER_TIMEOUT).await;
            if has_begun.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
        };
        let result = tokio::select! {
            result = served.as_mut() => result,
            () = silence => return,
            () = accepting.cancelled() => {
                served.as_mut().graceful_shutdown();
                served.await
            }
        };
        if let Err(error) = result {
            tracing::debug!(%error, "connection failed");
        }
    }
}

fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .initial_stream_window_size(WINDOW_BYTES.0)
        .initial_connection_window_size(WINDOW_BYTES.1)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADER_LIST_BYTES)
        .keep_alive_interval(HEADER_TIMEOUT)
        .keep_alive_timeout(PING_TIMEOUT);
    builder
}

/// A router that tells of the first request.
struct Begun {
    router: Router,
    has_begun: Arc<AtomicBool>,
}

impl Service<Request<Incoming>> for Begun {
    type Response = Response;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response, Infallible>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        self.has_begun.store(true, Ordering::Relaxed);
        Box::pin(self.router.clone().oneshot(request.map(axum::body::Body::new)))
    }
}
