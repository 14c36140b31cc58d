//! One accept loop for every door: a bounded number of connections, TLS where it is wanted, an
//! end that lets calls finish.
//!
//! A connection has a place from the moment it is accepted, so a slow handshake takes no more than
//! its own.

mod calls;
mod http;
mod lingering;
mod seats;
mod transport;

use std::future::Future;
use std::time::Duration;

use engine::{Flood, Tasks};
use prometheus_client::metrics::counter::Counter;
use tokio::net::{TcpListener, TcpStream};

use crate::security::Acceptor;

use seats::{SILENCE, Seats};

pub(crate) use calls::{Answered, Asked, Call, Caller};
pub(crate) use http::{HEADER_TIMEOUT, Http, Refuse};
pub(crate) use seats::Seat;
pub(crate) use transport::Transport;

/// Waits after a failed accept, which mostly means that file descriptors ran out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

/// How long a TLS handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// An open port and the rules for its connections.
pub(crate) struct Listener {
    pub socket: TcpListener,
    /// What makes TLS of a connection; none serves it in the clear.
    pub tls: Option<Acceptor>,
    /// What the log calls it.
    pub name: &'static str,
    /// Open connections; one more waits for a place, the others in the listen queue.
    pub max_connections: usize,
    /// Counts the connections that had to wait.
    pub waited: Counter,
    /// TCP_NODELAY.
    pub has_nodelay: bool,
}

/// The ends of what a listener does, in their order.
#[derive(Clone, Default)]
pub(crate) struct Ends {
    /// No connection is accepted any more, and those that are there finish their calls.
    pub accepting: Tasks,
    /// Calls that are still open are answered by an error.
    pub answering: Tasks,
    /// What is left is dropped.
    pub work: Tasks,
}

/// What is spoken on a connection.
pub(crate) trait Protocol: Clone + Send + Sync + 'static {
    /// What a connection's task is called.
    const TASK: &'static str;

    /// Serves a connection to its end; asks it to end once its seat gives way or `accepting` is
    /// cancelled.
    fn serve(
        self,
        transport: Transport,
        seat: &Seat,
        accepting: Tasks,
    ) -> impl Future<Output = ()> + Send;
}

/// Accepts connections until the first of the ends; each is a task and gets to finish its calls.
pub(crate) async fn accept<P: Protocol>(listener: Listener, protocol: P, ends: Ends) {
    let Ends { accepting, answering, work } = ends;
    let places = (listener.name, listener.max_connections);
    let mut seats = Seats::new(places, listener.waited.clone(), SILENCE, answering);
    let mut failures = Flood::default();
    loop {
        match listener.socket.accept().await {
            Ok((stream, peer)) => {
                if let Err(error) = stream.set_nodelay(listener.has_nodelay) {
                    tracing::debug!(%error, "cannot set TCP_NODELAY");
                }
                let Some(seat) = seats.take().await else { return };
                let (protocol, tls) = (protocol.clone(), listener.tls.clone());
                let accepting = accepting.clone();
                work.spawn(P::TASK, async move {
                    tracing::debug!(%peer, "connection opened");
                    if let Some(transport) = secure(stream, tls, &seat, &accepting).await {
                        protocol.serve(transport.telling(seat.shared()), &seat, accepting).await;
                    }
                    tracing::debug!(%peer, "connection closed");
                });
            }
            Err(error) => {
                if let Some(untold) = failures.admit() {
                    tracing::warn!(%error, untold, "cannot accept a connection");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Shakes hands, if the listener does; none when that failed or took too long.
async fn secure(
    stream: TcpStream,
    tls: Option<Acceptor>,
    seat: &Seat,
    accepting: &Tasks,
) -> Option<Transport> {
    let Some(tls) = tls else {
        return Some(Transport::plain(stream));
    };
    let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(stream));
    let shaken = tokio::select! {
        shaken = handshake => shaken,
        () = seat.gives_way() => return None,
        () = accepting.cancelled() => return None,
    };
    match shaken {
        Ok(Ok(stream)) => Some(Transport::tls(stream)),
        Ok(Err(error)) => {
            tracing::debug!(%error, "TLS handshake failed");
            None
        }
        Err(_) => {
            tracing::debug!("TLS handshake took too long");
            None
        }
    }
}
