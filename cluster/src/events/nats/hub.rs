//! What a frontend hears over NATS: one subscription for each namespace, and who wants what of it.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::Message as NatsMessage;
use async_nats::jetstream;
use async_nats::jetstream::consumer::{DeliverPolicy, push};
use async_trait::async_trait;
use bytes::Bytes;
use engine::{Error, ErrorKind, KvSnapshot, Result, Tasks};
use futures_util::stream::{self, BoxStream, StreamExt};
use prost::Message;
use proto::worker as wire;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use wire::worker_event::Event;

use super::super::{Listen, Position, Told, Watch};
use super::{kv_subject, load_subject, stream_name};
use crate::instance::InstanceId;
use crate::nats::Connection;
use crate::request::{event_of, load_of};

/// What waits for one listener; what comes beyond that is lost, which its numbers tell.
const MAX_WAITING: usize = 1024;

/// How often a stream is looked for that was not there: a worker may have made it since.
const LOOK: Duration = Duration::from_secs(5);

/// The wait before a subscription that ended is made again.
const AGAIN: Duration = Duration::from_millis(200);

/// The event plane of a frontend. Clones are the same.
#[derive(Clone)]
pub struct NatsEvents {
    shared: Arc<Shared>,
}

type Key = (InstanceId, String);

struct Shared {
    connection: Connection,
    tasks: Tasks,
    /// The namespaces that are heard, by what their subjects begin with.
    hearings: Mutex<BTreeMap<String, Hearing>>,
    listeners: Mutex<BTreeMap<Key, mpsc::Sender<Told>>>,
}

/// A namespace that is heard.
struct Hearing {
    /// How many listeners want it.
    wanted: usize,
    task: Tasks,
}

/// What a listener wants of a namespace, which is heard no more when the last one is dropped.
struct Interest {
    shared: Arc<Shared>,
    prefix: String,
}

impl NatsEvents {
    /// Makes the plane; its tasks belong to `tasks`.
    pub fn new(connection: &Connection, tasks: &Tasks) -> Self {
        let (connection, tasks) = (connection.clone(), tasks.clone());
        let (hearings, listeners) = Default::default();
        Self { shared: Arc::new(Shared { connection, tasks, hearings, listeners }) }
    }

    /// Returns whether NATS can be reached, as far as is known.
    pub fn is_connected(&self) -> bool {
        self.shared.connection.is_connected()
    }

    /// Returns the listener to a model of a worker, whose subjects begin with `prefix`; snapshots
    /// are asked for by `watch`, which also says what is wanted.
    pub fn model(&self, worker: InstanceId, prefix: &str, watch: Watch) -> NatsModel {
        NatsModel { plane: self.clone(), worker, prefix: prefix.to_owned(), watch }
    }
}

/// Listens to a model of a worker over NATS.
#[derive(Clone)]
pub struct NatsModel {
    plane: NatsEvents,
    worker: InstanceId,
    prefix: String,
    watch: Watch,
}

#[async_trait]
impl Listen for NatsModel {
    async fn listen(&self) -> Result<BoxStream<'static, Result<Told>>> {
        if !self.plane.is_connected() {
            return Err(Error::new(ErrorKind::Unavailable, "nats cannot be reached"));
        }
        let receiver = self.plane.shared.listen((self.worker, self.watch.model.clone()));
        let interest = self.plane.shared.hear(&self.prefix);
        // The first head tells that all is missing.
        let told = stream::unfold((receiver, interest), |(mut receiver, interest)| async move {
            let told = receiver.recv().await?;
            Some((told, (receiver, interest)))
        });
        let has_kv = self.watch.kv_events;
        let is_wanted = move |told: &Told| has_kv || matches!(told, Told::Load(_) | Told::Draining);
        Ok(told.filter(move |told| std::future::ready(is_wanted(told))).map(Ok).boxed())
    }

    async fn snapshot(&self) -> Result<KvSnapshot> {
        self.watch.snapshot().await
    }
}

impl Shared {
    fn listeners(&self) -> MutexGuard<'_, BTreeMap<Key, mpsc::Sender<Told>>> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a listener, in place of an earlier one; forgets those that are gone.
    fn listen(&self, key: Key) -> mpsc::Receiver<Told> {
        let (sender, receiver) = mpsc::channel(MAX_WAITING);
        let mut listeners = self.listeners();
        listeners.retain(|_, sender| !sender.is_closed());
        listeners.insert(key, sender);
        receiver
    }

    fn hearings(&self) -> MutexGuard<'_, BTreeMap<String, Hearing>> {
        self.hearings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hears a namespace as long as anybody wants that.
    fn hear(self: &Arc<Self>, prefix: &str) -> Interest {
        let begin = || {
            let task = self.tasks.child();
            let (shared, prefix) = (self.clone(), prefix.to_owned());
            task.spawn("nats event plane", async move { shared.run(&prefix).await });
            Hearing { wanted: 0, task }
        };
        self.hearings().entry(prefix.to_owned()).or_insert_with(begin).wanted += 1;
        Interest { shared: self.clone(), prefix: prefix.to_owned() }
    }

    async fn run(&self, prefix: &str) {
        let mut last = None;
        loop {
            if timeout(self.connection.config.away_timeout, self.connected()).await.is_err() {
                self.listeners().clear();
                self.connected().await;
            }
            if let Err(error) = self.hear_until_lost(prefix, &mut last).await {
                tracing::debug!(%error, "the event plane of nats was interrupted");
            }
            sleep(AGAIN).await;
        }
    }

    async fn connected(&self) {
        while !self.connection.is_connected() {
            sleep(AGAIN).await;
        }
    }

    /// Hears a namespace; `last` is the number of the last message in its stream.
    async fn hear_until_lost(
        &self,
        prefix: &str,
        last: &mut Option<u64>,
    ) -> std::result::Result<(), async_nats::Error> {
        let mut losses = self.connection.losses();
        let client = &self.connection.client;
        let wait = self.connection.config.jetstream_timeout;
        let replayed = timeout(wait, self.replayed(prefix, *last)).await;
        let replayed = replayed.map_err(Into::into).and_then(|replayed| replayed);
        let mut is_replayed = replayed.is_ok();
        let mut appears = pin!(self.appears(prefix));
        let mut events = match replayed {
            Ok(events) => events,
            Err(error) => {
                tracing::debug!(%error, "no stream of events at nats: nothing is heard twice");
                *last = None;
                let events = client.subscribe(kv_subject(prefix, "*")).await?;
                events.map(|message| Ok((message, None))).boxed()
            }
        };
        // The first loads tell how far events should be, so they come behind these.
        let mut loads = client.subscribe(load_subject(prefix, "*")).await?;
        loop {
            tokio::select! {
                // The events that a load tells of came before it, and wait here.
                biased;
                event = events.next() => match event {
                    Some(event) => {
                        let (message, number) = event?;
                        *last = number.or(*last);
                        self.tell(&message.subject, message.payload);
                    }
                    None => return Ok(()),
                },
                load = loads.next() => match load {
                    Some(load) => self.tell(&load.subject, load.payload),
                    None => return Ok(()),
                },
                _ = losses.changed() => return Ok(()),
                found = appears.as_mut(), if !is_replayed => {
                    (events, is_replayed) = (found, true);
                }
            }
        }
    }

    /// Waits until a namespace has a stream, and opens it.
    async fn appears(&self, prefix: &str) -> BoxStream<'static, Heard> {
        loop {
            sleep(LOOK).await;
            let wait = self.connection.config.jetstream_timeout;
            if let Ok(Ok(events)) = timeout(wait, self.replayed(prefix, None)).await {
                return events;
            }
        }
    }

    /// Opens a namespace's stream behind the message `last`.
    async fn replayed(
        &self,
        prefix: &str,
        last: Option<u64>,
    ) -> std::result::Result<BoxStream<'static, Heard>, async_nats::Error> {
        let client = &self.connection.client;
        let stream = jetstream::new(client.clone()).get_stream(stream_name(prefix)).await?;
        // A stream that was made anew counts from 1.
        let there = stream.cached_info().state.last_sequence;
        let deliver_policy = match last.filter(|last| *last <= there) {
            Some(last) => DeliverPolicy::ByStartSequence { start_sequence: last + 1 },
            None => DeliverPolicy::New,
        };
        let config = push::OrderedConfig {
            deliver_subject: client.new_inbox(),
            filter_subject: kv_subject(prefix, "*"),
            deliver_policy,
            ..push::OrderedConfig::default()
        };
        let messages = stream.create_consumer(config).await?.messages().await?;
        let heard = messages.map(|message| {
            let message = message?;
            let number = message.info()?.stream_sequence;
            Ok((message.message, Some(number)))
        });
        Ok(heard.boxed())
    }

    /// Tells listeners what a worker published.
    fn tell(&self, subject: &str, payload: Bytes) {
        let worker = subject.rsplit('.').next().and_then(|last| last.parse().ok());
        let (Some(worker), Ok(events)) = (worker, wire::ModelEvents::decode(payload)) else {
            return tracing::debug!(subject, "a message of events cannot be read");
        };
        let key = (worker, events.model);
        let Some(listener) = self.listeners().get(&key).cloned() else {
            return;
        };
        let head = Position { epoch: events.head_epoch, sequence: events.head_sequence };
        let mut has_kv = false;
        for event in events.events {
            let position = Position { epoch: event.epoch, sequence: event.sequence };
            let told = match event.event {
                Some(Event::Kv(event)) => match event_of(event) {
                    Ok(Some(event)) => Told::Kv(position, event),
                    _ => Told::Gap,
                },
                Some(Event::Load(load)) => Told::Load(load_of(load)),
                Some(Event::Draining(_)) => Told::Draining,
                Some(Event::Gap(_)) => Told::Gap,
                Some(Event::Snapshot(_)) | None => continue,
            };
            has_kv |= matches!(told, Told::Kv(..));
            // The numbers, or the next load, tell of what finds no room.
            let _ = listener.try_send(told);
        }
        if !has_kv && head != Position::default() {
            let _ = listener.try_send(Told::Head(head));
        }
    }
}

impl Drop for Interest {
    fn drop(&mut self) {
        let mut hearings = self.shared.hearings();
        let Some(hearing) = hearings.get_mut(&self.prefix) else { return };
        hearing.wanted -= 1;
        if hearing.wanted == 0 {
            hearing.task.cancel();
            hearings.remove(&self.prefix);
        }
    }
}

/// A message, and its number in the stream if it has one.
type Heard = std::result::Result<(NatsMessage, Option<u64>), async_nats::Error>;
