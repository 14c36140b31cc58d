//! The worker's side of the calls beside inference.

use std::sync::Arc;
use std::time::Duration;

use engine::{Error, KvEventReader, KvNews, Result, WorkerLoad};
use futures_util::{Stream, stream};
use prost::Message;
use proto::worker as wire;
use tokio::sync::watch::Receiver;
use tokio::time::{Interval, MissedTickBehavior, interval};
use wire::worker_event::Event;

use super::super::call::{Call, Tried};
use super::super::codec::{Lane, event_to, load_to};
use super::super::outbox::Outbox;
use super::super::served::Served;

/// The bytes of one piece of a file.
const CHUNK_BYTES: usize = 256 << 10;

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
    let served = call.shared.served(&request.model)?;
    let every = Duration::from_millis(request.load_interval_ms.into());
    let load = served.load.clone().filter(|_| !every.is_zero()).map(|load| {
        let mut ticks = interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        (ticks, load)
    });
    let events = served.events.as_ref().filter(|_| request.kv_events);
    let watched = Watched {
        load,
        events: events.map(|events| events.subscribe()),
        draining: call.shared.draining(),
        sequence: 0,
        is_over: false,
    };
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

type Load = Arc<dyn Fn() -> WorkerLoad + Send + Sync>;

/// What is watched of a model.
struct Watched {
    load: Option<(Interval, Load)>,
    events: Option<KvEventReader>,
    draining: Receiver<bool>,
    sequence: u64,
    is_over: bool,
}

impl Watched {
    /// Waits for what comes next; none: nothing does any more.
    async fn next(&mut self) -> Option<wire::WorkerEvent> {
        if self.is_over {
            return None;
        }
        let event = tokio::select! {
            load = next_load(&mut self.load) => Event::Load(load_to(load)),
            news = next_event(&mut self.events) => match news? {
                KvNews::Event(event) => {
                    self.sequence += 1;
                    Event::Kv(event_to(event))
                }
                KvNews::Missed(count) => {
                    self.sequence += count;
                    Event::Gap(count)
                }
            },
            _ = self.draining.wait_for(|is_draining| *is_draining) => {
                self.is_over = true;
                Event::Draining(wire::Draining {})
            }
        };
        let is_numbered = matches!(event, Event::Kv(_) | Event::Gap(_));
        let sequence = if is_numbered { self.sequence } else { 0 };
        Some(wire::WorkerEvent { event: Some(event), sequence })
    }
}

async fn next_load(load: &mut Option<(Interval, Load)>) -> WorkerLoad {
    match load {
        Some((ticks, load)) => {
            ticks.tick().await;
            load()
        }
        None => std::future::pending().await,
    }
}

async fn next_event(events: &mut Option<KvEventReader>) -> Option<KvNews> {
    match events {
        Some(events) => events.next().await,
        None => std::future::pending().await,
    }
}
