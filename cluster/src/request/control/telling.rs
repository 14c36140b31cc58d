//! The worker's side of the calls beside inference.

use std::sync::{Arc, Weak};
use std::time::Duration;

use engine::{Error, KvEventReader, KvEvents, KvNews, KvSnapshot, Result, WorkerLoad};
use futures_util::{Stream, stream};
use prost::Message;
use proto::worker as wire;
use tokio::sync::watch::Receiver;
use wire::worker_event::Event;

use super::super::call::{Call, Tried};
use super::super::codec::{Lane, event_to, load_to};
use super::super::loads::{Loads, next_load};
use super::super::outbox::Outbox;
use super::super::served::Served;
use super::super::shared::Shared;

/// The bytes of one piece of a file.
const CHUNK_BYTES: usize = 256 << 10;

/// The names of one part of a snapshot.
const SNAPSHOT_BLOCKS: usize = 32 << 10;

/// Answers `Describe`.
pub(in crate::request) async fn describe(call: &mut Call) -> Tried<()> {
    let wire::DescribeRequest {} = call.asked().await?;
    let model = |(name, served): (String, Arc<Served>)| wire::ServedModel {
        name,
        card: served.card.clone(),
        load: served.load.as_ref().map(|load| load_to(load())),
    };
    let models = call.shared.all().into_iter().map(model).collect();
    let is_draining = call.shared.is_draining();
    reply(call, stream::iter([Ok(wire::Description { models, is_draining })])).await
}

/// Answers `Drain`.
pub(in crate::request) async fn drain(call: &mut Call) -> Tried<()> {
    let wire::DrainRequest {} = call.asked().await?;
    let open_calls = call.shared.drain() as u64;
    tracing::info!(open_calls, "draining, as a frontend asks");
    reply(call, stream::iter([Ok(wire::DrainReply { open_calls })])).await
}

/// Answers `Fetch`.
pub(in crate::request) async fn fetch(call: &mut Call) -> Tried<()> {
    let request: wire::FetchRequest = call.asked().await?;
    let artifacts = call.shared.artifacts.clone().ok_or_else(|| {
        Error::not_found(format!("the worker has no files, asked for `{}`", request.hash))
    })?;
    let shared = call.shared.clone();
    let read = call.attend(async move {
        let unread = |error| Error::internal("cannot read a file").with_source(error);
        let place = shared.reads.clone().acquire_owned().await;
        let read = tokio::task::spawn_blocking(move || {
            // It is held as long as the thread works, whoever still waits for it.
            let _place = place;
            artifacts.artifact(&request.hash)
        });
        read.await.map_err(unread)?
    });
    let data = read.await??;
    let chunks = stream::unfold(data, |mut rest| async move {
        (!rest.is_empty()).then(|| {
            let data = rest.split_to(CHUNK_BYTES.min(rest.len()));
            (Ok(wire::Chunk { data }), rest)
        })
    });
    reply(call, Box::pin(chunks)).await
}

/// Answers `Watch`.
pub(in crate::request) async fn watch(call: &mut Call) -> Tried<()> {
    let request: wire::WatchRequest = call.asked().await?;
    let changes = call.shared.changes();
    let served = call.shared.served(&request.model)?;
    let model = Model::new(call.shared.clone(), request.model, &served, changes);
    let every = Duration::from_millis(request.load_interval_ms.into());
    let load = served.load.clone().filter(|_| !every.is_zero());
    let load = load.map(|load| Loads::new(load, every, &call.shared));
    let events = served.events.as_ref().filter(|_| request.kv_events);
    let (held, events) = match events {
        Some(events) if request.snapshot => {
            let (held, events) = events.snapshot();
            (Some(held), Some(events))
        }
        events => (None, events.map(KvEvents::subscribe)),
    };
    // Without a snapshot numbers are the stream's own.
    let first = events.as_ref().filter(|_| held.is_none()).map(KvEventReader::sequence);
    let draining = call.shared.draining();
    // Who watches keeps no model that is replaced.
    drop(served);
    let watched = Watched { model, load, held, events, first, draining, is_over: false };
    let news = stream::unfold(watched, |mut watched| async move {
        let event = watched.next().await?;
        Some((Ok(event), watched))
    });
    reply(call, Box::pin(news)).await
}

async fn reply<S, M>(call: &mut Call, messages: S) -> Tried<()>
where
    S: Stream<Item = Result<M>> + Unpin,
    M: Message,
{
    let encode = |message: M, outbox: &mut Outbox| outbox.message(&message);
    call.pump(messages, Lane::Control, encode).await?.finish(|_| Ok(()));
    Ok(())
}

/// The model that is watched.
struct Model {
    shared: Arc<Shared>,
    name: String,
    load: Option<Weak<dyn Fn() -> WorkerLoad + Send + Sync>>,
    epoch: Option<u64>,
    changes: Receiver<()>,
}

impl Model {
    fn new(shared: Arc<Shared>, name: String, served: &Served, changes: Receiver<()>) -> Self {
        let (load, epoch) = (served.load.as_ref().map(Arc::downgrade), epoch(served));
        Self { shared, name, load, epoch, changes }
    }

    /// Waits until it is served no more, or another one is under its name.
    async fn replaced(&mut self) {
        while self.is_served() {
            // It cannot fail, since the server is held here.
            if self.changes.changed().await.is_err() {
                return;
            }
        }
    }

    fn is_served(&self) -> bool {
        let Ok(now) = self.shared.served(&self.name) else { return false };
        let is_same_load = match (&self.load, &now.load) {
            (Some(one), Some(other)) => one.ptr_eq(&Arc::downgrade(other)),
            (None, None) => true,
            _ => false,
        };
        is_same_load && self.epoch == epoch(&now)
    }
}

fn epoch(served: &Served) -> Option<u64> {
    served.events.as_ref().map(KvEvents::epoch)
}

/// What is watched of a model.
struct Watched {
    model: Model,
    load: Option<Loads>,
    /// What can be found and was not told yet.
    held: Option<KvSnapshot>,
    events: Option<KvEventReader>,
    /// The worker's number in front of the stream's first, where numbers are the stream's own.
    first: Option<u64>,
    draining: Receiver<bool>,
    is_over: bool,
}

impl Watched {
    /// Waits for what comes next; none: nothing does any more.
    async fn next(&mut self) -> Option<wire::WorkerEvent> {
        if self.is_over {
            return None;
        }
        if let Some(part) = self.next_part() {
            return Some(part);
        }
        let event = tokio::select! {
            load = next_load(&mut self.load) => Event::Load(load_to(load)),
            news = next_event(&mut self.events) => match news? {
                KvNews::Event(event) => Event::Kv(event_to(event)),
                KvNews::Missed(count) => Event::Gap(count),
            },
            () = self.model.replaced() => return None,
            _ = self.draining.wait_for(|is_draining| *is_draining) => {
                self.is_over = true;
                Event::Draining(wire::Draining {})
            }
        };
        let is_numbered = matches!(event, Event::Kv(_) | Event::Gap(_));
        let reader = self.events.as_ref().filter(|_| is_numbered);
        let (sequence, epoch) = match (reader, self.first) {
            (Some(reader), Some(first)) => (reader.sequence() - first, 0),
            (Some(reader), None) => (reader.sequence(), reader.epoch()),
            (None, _) => (0, 0),
        };
        Some(wire::WorkerEvent { event: Some(event), sequence, epoch })
    }

    /// Takes a part of the snapshot, if one was not told yet.
    fn next_part(&mut self) -> Option<wire::WorkerEvent> {
        let held = self.held.as_mut()?;
        let rest = held.blocks.split_off(held.blocks.len().min(SNAPSHOT_BLOCKS));
        let part = std::mem::replace(&mut held.blocks, rest);
        let (sequence, epoch, is_last) = (held.sequence, held.epoch, held.blocks.is_empty());
        if is_last {
            self.held = None;
        }
        let sequences = part.into_iter().map(|block| block.0).collect();
        let event = Event::Snapshot(wire::KvSnapshot { sequences, is_last });
        Some(wire::WorkerEvent { event: Some(event), sequence, epoch })
    }
}

async fn next_event(events: &mut Option<KvEventReader>) -> Option<KvNews> {
    match events {
        Some(events) => events.next().await,
        None => std::future::pending().await,
    }
}
