//! Streams that have ended, of one connection, until that is woken anyway.
//!
//! Dropping the last handle of a stream wakes its connection, which has nothing to do then but to
//! forget it. Whoever got the answer wakes the client's connection in the same moment, and two
//! tasks that wake together wake a second thread, which one request at a time has no use for. The
//! next request wakes the connection, and takes them along.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};

use h2::RecvStream;

/// The most streams that are kept; others are dropped at once.
const MOST: usize = 64;

/// Handles of streams that have ended.
#[derive(Default)]
pub(super) struct Ended(Mutex<Vec<RecvStream>>);

impl Ended {
    /// Keeps a stream if it has ended, and else drops it, which cancels it.
    pub(super) fn keep(&self, mut stream: RecvStream) {
        // Who has the last output often asks for no more, and has not seen the end behind it.
        let _ = stream.poll_trailers(&mut Context::from_waker(Waker::noop()));
        if !stream.is_end_stream() {
            return;
        }
        let mut kept = self.kept();
        if kept.len() < MOST {
            kept.push(stream);
        }
    }

    /// Drops what is kept. The connection has just been woken.
    pub(super) fn forget(&self) {
        self.kept().clear();
    }

    fn kept(&self) -> MutexGuard<'_, Vec<RecvStream>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
