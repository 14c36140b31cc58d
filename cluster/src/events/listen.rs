//! Listening within one process, and by the call `Watch` of another one.

use std::collections::VecDeque;
use std::time::Duration;

use async_trait::async_trait;
use engine::{Error, ErrorKind, KvEventReader, KvNews, KvSnapshot, Result};
use futures_util::stream::{self, BoxStream, StreamExt};
use tokio::time::{Interval, MissedTickBehavior, interval, timeout};

use super::{Listen, Position, Source, Told};
use crate::request::{News, RemoteWorker, WatchOptions};

/// How long a worker may take to say what can be found.
const SNAPSHOT_WAIT: Duration = Duration::from_secs(10);

/// Listens to a model of this process.
#[derive(Clone)]
pub struct Local {
    /// What there is to tell.
    pub source: Source,
    /// The time between two loads.
    pub load_interval: Duration,
}

/// What is left of listening to this process.
struct Hearing {
    source: Source,
    ticks: Interval,
    reader: Option<KvEventReader>,
    first: VecDeque<Told>,
}

impl Hearing {
    async fn next(&mut self) -> Option<Told> {
        if let Some(told) = self.first.pop_front() {
            return Some(told);
        }
        let load = self.source.load.clone();
        tokio::select! {
            news = news(&mut self.reader) => {
                let position = position(self.reader.as_ref()?);
                Some(match news? {
                    KvNews::Event(event) => Told::Kv(position, event),
                    KvNews::Missed(_) => Told::Gap,
                })
            }
            _ = self.ticks.tick(), if load.is_some() => load.map(|load| Told::Load(load())),
        }
    }
}

/// Returns the place of the last event that a reader told.
pub(super) fn position(reader: &KvEventReader) -> Position {
    Position { epoch: reader.epoch(), sequence: reader.sequence() }
}

/// Waits for the next event; for ever where there are none.
pub(super) async fn news(reader: &mut Option<KvEventReader>) -> Option<KvNews> {
    match reader {
        Some(reader) => reader.next().await,
        None => std::future::pending().await,
    }
}

#[async_trait]
impl Listen for Local {
    async fn listen(&self) -> Result<BoxStream<'static, Result<Told>>> {
        let mut ticks = interval(self.load_interval.max(Duration::from_millis(1)));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let source = self.source.clone();
        let (reader, first) = match &source.events {
            Some(events) => {
                let (held, reader) = events.snapshot();
                (Some(reader), VecDeque::from([Told::Held(held)]))
            }
            None => (None, VecDeque::new()),
        };
        let hearing = Hearing { source, ticks, reader, first };
        let told = stream::unfold(hearing, |mut hearing| async move {
            let told = hearing.next().await?;
            Some((Ok(told), hearing))
        });
        Ok(told.boxed())
    }

    async fn snapshot(&self) -> Result<KvSnapshot> {
        let events = self.source.events.as_ref();
        let held = events.map(|events| events.snapshot().0);
        held.ok_or_else(|| Error::not_found("the model has no KV events"))
    }
}

/// Listens to a worker by its call `Watch`: a stream begins with what can be found.
#[derive(Clone)]
pub struct Watch {
    /// The worker.
    pub worker: RemoteWorker,
    /// The model's name.
    pub model: String,
    /// The time between two loads; none: they are not wanted.
    pub load_interval: Option<Duration>,
    /// Whether KV events are wanted.
    pub kv_events: bool,
}

#[async_trait]
impl Listen for Watch {
    async fn listen(&self) -> Result<BoxStream<'static, Result<Told>>> {
        let options = WatchOptions {
            load_interval: self.load_interval,
            kv_events: self.kv_events,
            snapshot: self.kv_events,
        };
        let news = self.worker.watch(&self.model, options).await?;
        let told = news.map(|news| {
            Ok(match news? {
                News::Load(load) => Told::Load(load),
                News::Held(held) => Told::Held(held),
                News::Kv { epoch, sequence, event } => {
                    Told::Kv(Position { epoch, sequence }, event)
                }
                News::Gap { .. } => Told::Gap,
                News::Draining => Told::Draining,
            })
        });
        Ok(told.boxed())
    }

    async fn snapshot(&self) -> Result<KvSnapshot> {
        let options = WatchOptions { load_interval: None, kv_events: true, snapshot: true };
        let none = |why: &str| {
            let (model, address) = (&self.model, self.worker.address());
            let text = format!("worker `{address}`: no snapshot of model `{model}`: {why}");
            Error::new(ErrorKind::Unavailable, text)
        };
        let asked = async {
            let mut news = self.worker.watch(&self.model, options).await?;
            match news.next().await {
                Some(Ok(News::Held(held))) => Ok(held),
                Some(Ok(_)) => Err(none("it tells other things first")),
                Some(Err(error)) => Err(error),
                None => Err(none("it ended")),
            }
        };
        timeout(SNAPSHOT_WAIT, asked).await.unwrap_or_else(|_| Err(none("it took too long")))
    }
}
