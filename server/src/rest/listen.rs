//! The HTTP listener: HTTP/1.1 in the clear, a bounded number of connections.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use engine::Tasks;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// How long a connection may be idle before a request, and the request's headers take.
const HEADER_TIMEOUT: Duration = Duration::from_secs(75);

/// Waits after a failed accept, which mostly means that file descriptors ran out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

/// Accepts connections until `accepting` is cancelled; each is a task of `work` and gets to
/// finish its requests.
pub(crate) async fn listen(
    listener: TcpListener,
    router: Router,
    max_connections: usize,
    (accepting, work): (Tasks, Tasks),
) {
    let permits = Arc::new(Semaphore::new(max_connections));
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let (router, accepting) = (router.clone(), accepting.clone());
                work.spawn("http connection", async move {
                    serve(stream, router, &accepting).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve(stream: TcpStream, router: Router, accepting: &Tasks) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY");
    }
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    let service = TowerToHyperService::new(router);
    let mut served = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let result = tokio::select! {
        result = served.as_mut() => result,
        () = accepting.cancelled() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "connection failed");
    }
}
