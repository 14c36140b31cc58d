//! A set of connections to one worker: opened when they are wanted, replaced when they end.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use engine::{Error, ErrorKind, Result};
use h2::client::SendRequest;
use http::Request;
use tokio::sync::watch;

use super::ClientConfig;
use super::dial::{Dial, Outcome, stream_window};
use super::ended::Ended;
use super::peer::Peer;
use super::places::{Place, Places};

/// Streams of a connection that calls leave to probes and news, if the worker takes many.
const RESERVED_STREAMS: usize = 64;

/// What a stream is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// A request to an engine.
    Call,
    /// What is asked beside those, which a busy worker must answer as well.
    Control,
}

/// The way to send on an open connection.
#[derive(Clone)]
pub(super) struct Live {
    /// Dropped before the sender, whose end wakes the connection when nothing else is left.
    ended: Arc<Ended>,
    sender: SendRequest<Bytes>,
    number: u64,
    streams: Places,
}

impl Live {
    pub(super) fn new(sender: SendRequest<Bytes>, number: u64) -> Self {
        Self { ended: Arc::default(), sender, number, streams: Places::default() }
    }

    /// Takes one of the streams that the worker lets be open at once; none: they are taken.
    fn stream(&self, what_for: Use) -> Option<Place> {
        let most = self.sender.current_max_send_streams();
        let kept = match what_for {
            Use::Call => RESERVED_STREAMS.min(most / 8),
            Use::Control => 0,
        };
        self.streams.take(most - kept)
    }
}

/// A place for one connection.
#[derive(Default)]
pub(super) struct Slot {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    state: State,
    /// The number of the next connection.
    next: u64,
    failed_in_row: u32,
}

#[derive(Default)]
enum State {
    #[default]
    Empty,
    /// Opening failed, and is not tried again before a moment.
    Failed {
        not_before: Option<Instant>,
        why: String,
    },
    /// A task opens it.
    Opening(watch::Receiver<Outcome>),
    Open(Live),
}

impl Slot {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts an open connection into its place.
    pub(super) fn set(&self, live: Live) {
        let mut inner = self.inner();
        inner.failed_in_row = 0;
        inner.state = State::Open(live);
    }

    /// Records that it could not be opened.
    pub(super) fn fail(&self, why: &str, config: &ClientConfig) {
        let mut inner = self.inner();
        let wait = backoff(inner.failed_in_row, config);
        inner.failed_in_row = inner.failed_in_row.saturating_add(1);
        let not_before = Instant::now().checked_add(wait);
        inner.state = State::Failed { not_before, why: why.to_owned() };
    }

    /// Forgets a connection, if it is still the one in place.
    pub(super) fn forget(&self, number: u64) {
        let mut inner = self.inner();
        if matches!(&inner.state, State::Open(live) if live.number == number) {
            inner.state = State::Empty;
        }
    }

    /// Returns the connection if it is open.
    fn live(&self) -> Option<Live> {
        match &self.inner().state {
            State::Open(live) => Some(live.clone()),
            _ => None,
        }
    }
}

/// Twice as long after each failure, up to the limit, and less by up to a half by chance, so
/// that frontends do not come all at once.
fn backoff(failed: u32, config: &ClientConfig) -> Duration {
    let wait = config.backoff_first.saturating_mul(1 << failed.min(20)).min(config.backoff_max);
    wait.mul_f64(1.0 - fastrand::f64() / 2.0)
}

/// The connections of one lane.
pub(super) struct Link {
    peer: Arc<Peer>,
    window_bytes: u32,
    slots: Vec<Arc<Slot>>,
    next: AtomicUsize,
}

impl Link {
    pub(super) fn new(peer: Arc<Peer>, window_bytes: u32) -> Self {
        let slots = (0..peer.config.connections.max(1)).map(|_| Arc::default()).collect();
        let window_bytes = stream_window(window_bytes, peer.config.max_in_flight);
        Self { peer, window_bytes, slots, next: AtomicUsize::new(0) }
    }

    /// Returns how many connections it may have.
    pub(super) fn size(&self) -> usize {
        self.slots.len()
    }

    /// Returns a place on an open connection, the next one in turn. One that is not open is opened,
    /// which is waited for only if no other one is open and has room.
    ///
    /// Errors: UNAVAILABLE when that fails, or failed a moment ago, and OVERLOADED when the
    /// worker takes no more.
    pub(super) async fn connection(&self, what_for: Use) -> Result<Route> {
        let turn = self.next.fetch_add(1, Relaxed) % self.slots.len();
        let first = &self.slots[turn];
        let opening = match first.live() {
            Some(_) => None,
            None => Some(self.open(first)),
        };
        let mut is_full = false;
        for slot in self.slots.iter().cycle().skip(turn).take(self.slots.len()) {
            let Some(live) = slot.live() else { continue };
            match live.stream(what_for) {
                Some(stream) => return Ok(Route { slot: slot.clone(), live, stream }),
                None => is_full = true,
            }
        }
        let Some(opening) = opening else { return Err(self.full()) };
        match opened(opening).await {
            Ok(live) => match live.stream(what_for) {
                Some(stream) => Ok(Route { slot: first.clone(), live, stream }),
                None => Err(self.full()),
            },
            Err(_) if is_full => Err(self.full()),
            Err(why) => Err(self.peer.unreachable(why)),
        }
    }

    fn full(&self) -> Error {
        let address = self.peer.connector.address();
        let text = format!("worker `{address}` takes no more streams on its connections");
        Error::new(ErrorKind::Overloaded, text)
    }

    /// Returns a connection that is to be waited for, which whoever comes first has a task open.
    fn open(&self, slot: &Arc<Slot>) -> Opening {
        let mut inner = slot.inner();
        match &inner.state {
            State::Open(live) => Opening::Over(Ok(live.clone())),
            State::Failed { not_before: Some(at), why } if Instant::now() < *at => {
                Opening::Over(Err(why.clone()))
            }
            State::Opening(opening) => Opening::Begun(opening.clone()),
            State::Empty | State::Failed { .. } => Opening::Begun(self.dial(slot, &mut inner)),
        }
    }

    fn dial(&self, slot: &Arc<Slot>, inner: &mut Inner) -> watch::Receiver<Outcome> {
        let (outcome, opening) = watch::channel(None);
        let number = inner.next;
        inner.next += 1;
        inner.state = State::Opening(opening.clone());
        let dial = Dial {
            peer: self.peer.clone(),
            window_bytes: self.window_bytes,
            slot: Arc::downgrade(slot),
            number,
            outcome,
        };
        self.peer.tasks.spawn("worker connection", dial.run());
        opening
    }
}

/// A connection that is being opened, or how that went.
enum Opening {
    Begun(watch::Receiver<Outcome>),
    Over(std::result::Result<Live, String>),
}

async fn opened(opening: Opening) -> std::result::Result<Live, String> {
    let mut outcome = match opening {
        Opening::Begun(outcome) => outcome,
        Opening::Over(outcome) => return outcome,
    };
    let over = || "nothing is opened any more".to_owned();
    let outcome = outcome.wait_for(Option::is_some).await.map_err(|_| over())?.clone();
    outcome.unwrap_or_else(|| Err(over()))
}

/// A place on an open connection.
pub(super) struct Route {
    slot: Arc<Slot>,
    live: Live,
    stream: Place,
}

/// A stream that was opened.
pub(super) struct Begun {
    pub(super) response: h2::client::ResponseFuture,
    pub(super) body: h2::SendStream<Bytes>,
    /// The place that it takes.
    pub(super) place: Place,
    /// Where its answer goes at its end.
    pub(super) ended: Arc<Ended>,
}

impl Route {
    /// Opens a stream for a request.
    ///
    /// Errors: the connection takes none any more, so that nothing was sent; nobody else will use
    /// it.
    pub(super) async fn begin(self, request: Request<()>) -> std::result::Result<Begun, h2::Error> {
        let Self { slot, live, stream: place } = self;
        let Live { ended, sender, number, .. } = live;
        let begun = match sender.ready().await {
            Ok(mut sender) => sender.send_request(request, false),
            Err(error) => Err(error),
        };
        match begun {
            Ok((response, body)) => {
                ended.forget();
                Ok(Begun { response, body, place, ended })
            }
            Err(error) => {
                slot.forget(number);
                Err(error)
            }
        }
    }
}
