//! Simulated time: it goes on when nobody has anything to do.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};

/// Time in ticks. Clones are the same clock.
#[derive(Clone, Default)]
pub(super) struct Clock(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    now: u64,
    /// Counts sleepers: those of one tick wake in their order.
    number: u64,
    sleepers: BTreeMap<(u64, u64), Waker>,
}

impl Clock {
    /// Waits some ticks.
    pub(super) fn sleep(&self, ticks: u64) -> Sleep {
        let mut state = self.0.lock().unwrap();
        state.number += 1;
        Sleep { clock: self.clone(), key: (state.now + ticks, state.number) }
    }

    /// Runs until all have ended. Panics if they wait for what never comes.
    pub(super) fn run(&self, mut tasks: FuturesUnordered<BoxFuture<'static, ()>>) {
        let mut context = Context::from_waker(Waker::noop());
        loop {
            match tasks.poll_next_unpin(&mut context) {
                Poll::Ready(None) => return,
                Poll::Ready(Some(())) => {}
                Poll::Pending => {
                    let mut state = self.0.lock().unwrap();
                    let (key, waker) = state.sleepers.pop_first().expect("somebody hangs");
                    state.now = state.now.max(key.0);
                    drop(state);
                    waker.wake();
                }
            }
        }
    }
}

/// A wait; dropping it ends it.
pub(super) struct Sleep {
    clock: Clock,
    key: (u64, u64),
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.clock.0.lock().unwrap();
        if state.now >= self.key.0 {
            return Poll::Ready(());
        }
        state.sleepers.insert(self.key, cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.clock.0.lock().unwrap().sleepers.remove(&self.key);
    }
}
