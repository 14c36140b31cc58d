//! What all connections to one worker have in common, and what is known of the worker by them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use engine::{Error, ErrorKind, Tasks};
use tokio::sync::watch;

use super::ClientConfig;
use super::connector::Connector;
use super::places::Places;

/// What is known of a worker by its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// None was opened yet, or those that were ended with what carried them, which says nothing of
    /// the worker.
    Idle,
    /// At least one is open: the worker spoke HTTP/2 and answered a ping.
    Open,
    /// The last one ended, or none could be opened. The next call tries anew.
    Lost,
}

/// What all connections to a worker have in common.
pub(super) struct Peer {
    pub(super) connector: Arc<dyn Connector>,
    pub(super) config: ClientConfig,
    pub(super) tasks: Tasks,
    /// Requests to its engines that are open.
    pub(super) calls: Places,
    /// Open connections. It stays locked while a change is told, so that states are told in the
    /// order in which they came.
    open: Mutex<usize>,
    state: watch::Sender<LinkState>,
}

impl Peer {
    pub(super) fn new(connector: Arc<dyn Connector>, config: ClientConfig, tasks: Tasks) -> Self {
        let (open, state) = (Mutex::new(0), watch::Sender::new(LinkState::Idle));
        Self { connector, config, tasks, calls: Places::default(), open, state }
    }

    pub(super) fn state(&self) -> watch::Receiver<LinkState> {
        self.state.subscribe()
    }

    /// Counts a connection as open while the value lives.
    pub(super) fn opened(self: &Arc<Self>) -> Opened {
        let mut open = self.open();
        *open += 1;
        self.tell(LinkState::Open);
        Opened { peer: self.clone(), end: LinkState::Lost }
    }

    /// Says that a connection could not be opened.
    pub(super) fn failed(&self) {
        let open = self.open();
        if *open == 0 {
            self.tell(LinkState::Lost);
        }
    }

    fn open(&self) -> MutexGuard<'_, usize> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, state: LinkState) {
        self.state.send_if_modified(|now| std::mem::replace(now, state) != state);
    }

    /// Returns the error of a call that the worker has not accepted.
    pub(super) fn unreachable(&self, why: impl std::fmt::Display) -> Error {
        let address = self.connector.address();
        Error::new(ErrorKind::Unavailable, format!("worker `{address}` cannot be reached: {why}"))
    }
}

/// A connection that counts as open.
pub(super) struct Opened {
    peer: Arc<Peer>,
    /// What is known of the worker when the last one ends.
    end: LinkState,
}

impl Opened {
    /// Notes that what carried the connection was lost, and not the worker.
    pub(super) fn spare_worker(&mut self) {
        self.end = LinkState::Idle;
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        let mut open = self.peer.open();
        *open -= 1;
        if *open == 0 {
            self.peer.tell(self.end);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Tcp;
    use super::*;

    #[test]
    fn states_are_told_in_the_order_of_what_happened() {
        let config = ClientConfig::default();
        let peer = Arc::new(Peer::new(Arc::new(Tcp::new("worker:1")), config, Tasks::new()));
        let state = peer.state();
        for round in 0..5_000 {
            // One connection ends while another one opens, and perhaps a third one fails.
            let old = peer.opened();
            let new = std::thread::scope(|scope| {
                let ending = scope.spawn(move || drop(old));
                let failing = (round % 2 == 0).then(|| scope.spawn(|| peer.failed()));
                let new = peer.opened();
                ending.join().unwrap();
                failing.into_iter().for_each(|thread| thread.join().unwrap());
                new
            });
            assert_eq!(*state.borrow(), LinkState::Open, "in round {round}");
            drop(new);
            assert_eq!(*state.borrow(), LinkState::Lost, "in round {round}");
        }
    }
}
