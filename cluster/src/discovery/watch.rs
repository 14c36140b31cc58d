//! The task behind a watcher: reads a store's changes, keeps the view, tells the differences.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use engine::{Result, Tasks};
use futures_util::Stream;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info, warn};

use super::{Backoff, Event, Query, View};
use crate::instance::{Instance, InstanceId};

/// Events that wait for a reader; a slower one gets later changes together.
pub const WATCH_BUFFER: usize = 256;

/// How a store tells of its instances.
#[async_trait]
pub(super) trait Source: Send + 'static {
    /// Returns the next change; the first one, and the first one after an error, is a listing.
    ///
    /// # Errors
    /// The store cannot be reached. The next call tries it again.
    async fn next(&mut self) -> Result<Change>;
}

/// What a store tells.
#[derive(Debug)]
pub(super) enum Change {
    /// These are all.
    Listing(Vec<Arc<Instance>>),
    /// These became so, in this order.
    Changes(Vec<Difference>),
}

/// One change of one instance.
#[derive(Debug)]
pub(super) enum Difference {
    Put(Arc<Instance>),
    Remove(InstanceId),
}

/// A stream of [`Event`]s. It ends when discovery shuts down; dropping it ends the watch.
#[derive(Debug)]
pub struct Watch(mpsc::Receiver<Event>);

impl Watch {
    /// Returns the next event.
    pub async fn next(&mut self) -> Option<Event> {
        self.0.recv().await
    }

    /// Adds the events that are there, at least one and at most `limit`, to `events`; returns how
    /// many, which is none when discovery has shut down.
    pub async fn next_many(&mut self, events: &mut Vec<Event>, limit: usize) -> usize {
        self.0.recv_many(events, limit).await
    }
}

impl Stream for Watch {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Event>> {
        self.0.poll_recv(context)
    }
}

/// Starts the task of a watcher.
///
/// After an outage what is gone is believed to be gone only after `grace`, since workers need
/// that time to register again.
pub(super) fn start(
    query: Query,
    source: impl Source,
    backoff: Backoff,
    grace: Duration,
    tasks: &Tasks,
) -> Watch {
    let (events, reader) = mpsc::channel(WATCH_BUFFER);
    let watcher = Watcher { view: View::new(query, grace), events, backoff };
    tasks.spawn("discovery watch", watcher.run(source));
    Watch(reader)
}

struct Watcher {
    view: View,
    events: mpsc::Sender<Event>,
    backoff: Backoff,
}

impl Watcher {
    async fn run(mut self, mut source: impl Source) {
        let epoch = Instant::now();
        let mut failures = 0;
        loop {
            let Some(change) = self.next(&mut source, epoch).await else { return };
            let events = match change {
                Ok(change) => {
                    if failures > 0 {
                        info!(failures, "discovery store is there again");
                    }
                    failures = 0;
                    self.view.apply(change, epoch.elapsed())
                }
                Err(error) => {
                    if failures == 0 {
                        warn!(%error, "discovery store is lost, the last known view stays");
                    }
                    failures += 1;
                    self.view.lose()
                }
            };
            if !self.tell(events).await {
                return;
            }
            if failures > 0 {
                tokio::select! {
                    () = self.backoff.sleep(failures) => {}
                    () = self.events.closed() => return,
                }
            }
        }
    }

    /// Returns the store's next change; removals that fall due meanwhile are told.
    async fn next(&mut self, source: &mut impl Source, epoch: Instant) -> Option<Result<Change>> {
        let mut change = source.next();
        loop {
            let due = self.view.due();
            tokio::select! {
                change = &mut change => return Some(change),
                () = self.events.closed() => return None,
                () = sleep_until(epoch + due.unwrap_or_default()), if due.is_some() => {}
            }
            let events = self.view.expire(epoch.elapsed());
            if !self.tell(events).await {
                return None;
            }
        }
    }

    async fn tell(&self, events: Vec<Event>) -> bool {
        for event in events {
            debug!(?event, "discovery");
            if self.events.send(event).await.is_err() {
                return false;
            }
        }
        true
    }
}
