//! Follows one model of one worker: keeps a sink of its blocks right, through gaps too.

use std::future::pending;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use engine::{KvSnapshot, Result};
use futures_util::StreamExt;
use futures_util::future::{BoxFuture, FutureExt};
use tokio::time::sleep;

use super::{BlockSink, Listen, Step, Told, Tracker};
use crate::instance::InstanceId;

/// The wait before a snapshot is asked for again that failed, came too late or is behind already.
const ASK_AGAIN: Duration = Duration::from_millis(200);

/// What was heard, counted.
#[derive(Debug, Default)]
pub struct Counters {
    /// KV events that were applied.
    pub events: AtomicU64,
    /// Times when events were found to be missing.
    pub gaps: AtomicU64,
    /// Snapshots that mended that, or began.
    pub resyncs: AtomicU64,
}

/// Listens to a worker until the plane ends or `heard` returns false, and keeps `sink` as the worker
/// tells. `heard` gets everything that comes.
///
/// Errors: those of listening.
pub async fn follow<L: Listen + ?Sized>(
    listen: &L,
    worker: InstanceId,
    (sink, counters): (&dyn BlockSink, &Counters),
    mut heard: impl FnMut(&Told) -> bool,
) -> Result<()> {
    let mut follower = Follower::new(sink, counters);
    let mut stream = pin!(listen.listen().await?);
    let mut asking: BoxFuture<'_, Result<KvSnapshot>> = pending().boxed();
    loop {
        let is_missing = tokio::select! {
            told = stream.next() => match told {
                None => return Ok(()),
                Some(Err(error)) => return Err(error),
                Some(Ok(told)) => {
                    if !heard(&told) {
                        return Ok(());
                    }
                    match follower.take(told) {
                        true => Some(Duration::ZERO),
                        false => None,
                    }
                }
            },
            answer = &mut asking => {
                asking = pending().boxed();
                let is_behind = match answer {
                    Ok(snapshot) => follower.catch_up(&snapshot),
                    Err(error) => {
                        tracing::debug!(%worker, %error, "no snapshot of a worker's blocks");
                        follower.tracker.is_waiting()
                    }
                };
                is_behind.then_some(ASK_AGAIN)
            }
        };
        if let Some(wait) = is_missing {
            let ask = async move {
                sleep(wait).await;
                listen.snapshot().await
            };
            asking = ask.boxed();
        }
    }
}

/// What is known of one worker, without IO.
pub(super) struct Follower<'a> {
    sink: &'a dyn BlockSink,
    counters: &'a Counters,
    pub(super) tracker: Tracker,
}

impl<'a> Follower<'a> {
    pub(super) fn new(sink: &'a dyn BlockSink, counters: &'a Counters) -> Self {
        Self { sink, counters, tracker: Tracker::default() }
    }

    /// Takes what was heard; returns whether a snapshot is to be asked for.
    pub(super) fn take(&mut self, told: Told) -> bool {
        let step = match told {
            Told::Kv(position, event) => self.tracker.take(position, event),
            Told::Head(head) => self.tracker.head(head),
            Told::Gap => self.tracker.lost(),
            Told::Held(snapshot) => return self.catch_up(&snapshot),
            Told::Load(_) | Told::Draining => Step::Nothing,
        };
        match step {
            Step::Nothing => false,
            Step::Apply(event) => {
                self.counters.events.fetch_add(1, Relaxed);
                self.sink.apply(&event);
                false
            }
            Step::Ask => {
                self.counters.gaps.fetch_add(1, Relaxed);
                true
            }
        }
    }

    /// Takes a snapshot; returns whether another one is to be asked for.
    pub(super) fn catch_up(&mut self, snapshot: &KvSnapshot) -> bool {
        let Some(caught) = self.tracker.catch_up(snapshot) else {
            return self.tracker.is_waiting();
        };
        self.counters.resyncs.fetch_add(1, Relaxed);
        self.counters.events.fetch_add(caught.events.len() as u64, Relaxed);
        self.sink.replace(&snapshot.blocks);
        caught.events.iter().for_each(|event| self.sink.apply(event));
        caught.is_behind
    }
}
