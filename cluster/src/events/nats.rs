//! The event plane over NATS: what workers publish, and what frontends hear of it.
//!
//! KV events go into a stream of JetStream, one for each namespace and bounded in bytes and age, so
//! that a frontend that was cut off hears what it missed; what is too old for that is a gap. Loads
//! are worth nothing later and go by themselves. Without JetStream all is the same, but for what is
//! heard after having been cut off. Nobody waits for NATS: what cannot be published is a gap.

mod hub;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::jetstream::{self, stream};
use engine::{KvEventReader, KvNews, Tasks, WorkerLoad};
use prost::Message;
use proto::worker as wire;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, timeout};
use wire::worker_event::Event;

use super::listen::{news, position};
use super::{Publish, Source};
use crate::instance::{InstanceId, Namespace};
use crate::nats::{Connection, token};
use crate::request::{Loads, WorkerServer, event_to, load_to, next_load};

pub use hub::{NatsEvents, NatsModel};

/// The time between two loads of a worker that has work.
const LOAD_INTERVAL: Duration = Duration::from_millis(250);

/// The time between two loads of one that has none: by these a frontend that comes later, or that
/// lost an event, hears how far events are.
const REST_INTERVAL: Duration = Duration::from_secs(2);

/// The most KV events of one message. They also have at most half as many bytes as NATS takes; one
/// event that is larger than that is a message of its own.
const MAX_BATCH: usize = 128;

/// The bounds of a namespace's stream: what is older, or in front of so much, is gone.
const STREAM_MAX_BYTES: i64 = 64 << 20;
const STREAM_MAX_AGE: Duration = Duration::from_secs(300);

/// The wait before JetStream is asked again that did not answer.
const JETSTREAM_AGAIN: Duration = Duration::from_secs(10);

/// Returns what the subjects of a namespace's events begin with.
pub fn event_subject(namespace: &Namespace) -> String {
    format!("stator.{}.events", token(namespace))
}

/// Returns the name of the stream of these subjects, which may have no dots.
fn stream_name(prefix: &str) -> String {
    prefix.replace('.', "-")
}

fn kv_subject(prefix: &str, last: &str) -> String {
    format!("{prefix}.kv.{last}")
}

fn load_subject(prefix: &str, last: &str) -> String {
    format!("{prefix}.load.{last}")
}

/// Publishes what becomes of a worker's models.
pub struct NatsPublisher {
    connection: Connection,
    subjects: Subjects,
    server: WorkerServer,
    models: Mutex<BTreeMap<String, Teller>>,
    tasks: Tasks,
}

#[derive(Clone)]
struct Subjects {
    kv: String,
    load: String,
}

/// A model that is told of, and the task that does.
struct Teller {
    source: Source,
    task: Tasks,
}

impl NatsPublisher {
    /// Makes the publisher of a worker of a namespace; nothing is told yet. That `server` drains is
    /// told at once. Its tasks belong to `tasks`.
    pub fn new(
        connection: &Connection,
        (namespace, instance): (&Namespace, InstanceId),
        server: &WorkerServer,
        tasks: &Tasks,
    ) -> Self {
        let prefix = event_subject(namespace);
        let last = instance.to_string();
        let subjects =
            Subjects { kv: kv_subject(&prefix, &last), load: load_subject(&prefix, &last) };
        let keeping = connection.clone();
        tasks.spawn("nats event stream", async move { keep_stream(&keeping, &prefix).await });
        let (connection, server, tasks) = (connection.clone(), server.clone(), tasks.clone());
        Self { connection, subjects, server, models: Mutex::default(), tasks }
    }

    fn begin(&self, model: &str, source: Source) -> Teller {
        let task = self.tasks.child();
        let loads = source.load.clone().map(|load| self.server.loads(load, LOAD_INTERVAL));
        let telling = Telling {
            connection: self.connection.clone(),
            subjects: self.subjects.clone(),
            model: model.to_owned(),
            reader: source.events.as_ref().map(|events| events.subscribe()),
            source: source.clone(),
            loads,
        };
        task.spawn("nats events", telling.tell(self.server.draining()));
        Teller { source, task }
    }
}

impl Publish for NatsPublisher {
    fn set(&self, models: Vec<(String, Source)>) {
        let mut told = self.models.lock().unwrap_or_else(PoisonError::into_inner);
        let mut before = std::mem::take(&mut *told);
        for (name, source) in models {
            let same = before.remove(&name).filter(|told| is_same(&told.source, &source));
            let now = same.unwrap_or_else(|| self.begin(&name, source));
            told.insert(name, now);
        }
    }
}

impl Drop for Teller {
    fn drop(&mut self) {
        self.task.cancel();
    }
}

fn is_same(one: &Source, other: &Source) -> bool {
    let epoch = |source: &Source| source.events.as_ref().map(|events| events.epoch());
    let is_same_load = match (&one.load, &other.load) {
        (Some(one), Some(other)) => Arc::ptr_eq(one, other),
        (None, None) => true,
        _ => false,
    };
    is_same_load && epoch(one) == epoch(other)
}

/// Sees to it that a namespace has its stream, until the future is dropped.
async fn keep_stream(connection: &Connection, prefix: &str) {
    let context = jetstream::new(connection.client.clone());
    loop {
        let mut losses = connection.losses();
        let config = stream::Config {
            name: stream_name(prefix),
            subjects: vec![kv_subject(prefix, "*")],
            storage: stream::StorageType::Memory,
            discard: stream::DiscardPolicy::Old,
            max_bytes: STREAM_MAX_BYTES,
            max_age: STREAM_MAX_AGE,
            ..stream::Config::default()
        };
        let made = context.get_or_create_stream(config);
        let made = timeout(connection.config.jetstream_timeout, made).await;
        let again = match made {
            Ok(Ok(_)) => Duration::MAX,
            Ok(Err(error)) => {
                tracing::debug!(%error, "no stream of events at nats");
                JETSTREAM_AGAIN
            }
            Err(_) => JETSTREAM_AGAIN,
        };
        // A server that comes back may have lost it.
        if let Ok(Err(_)) = timeout(again, losses.changed()).await {
            return;
        }
    }
}

/// Tells of one model.
struct Telling {
    connection: Connection,
    subjects: Subjects,
    model: String,
    source: Source,
    loads: Option<Loads>,
    reader: Option<KvEventReader>,
}

impl Telling {
    async fn tell(mut self, mut draining: watch::Receiver<bool>) {
        let mut rests = interval(REST_INTERVAL);
        rests.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut is_draining = false;
        loop {
            tokio::select! {
                news = news(&mut self.reader) => match news {
                    Some(news) => self.tell_events(news).await,
                    None => self.reader = None,
                },
                load = next_load(&mut self.loads) => {
                    rests.reset();
                    self.tell_load(Some(load)).await;
                }
                _ = rests.tick() => self.tell_load(self.source.load.as_ref().map(|load| load())).await,
                () = drains(&mut draining), if !is_draining => {
                    is_draining = true;
                    let event = Event::Draining(wire::Draining {});
                    self.publish(false, vec![numbered(event, 0, 0)]).await;
                }
            }
        }
    }

    /// Tells an event and those that are there already.
    async fn tell_events(&mut self, first: KvNews) {
        let most = self.connection.client.max_payload() / 2;
        let (mut events, mut bytes, mut told) = (Vec::new(), 0, 0);
        let mut next = Some(first);
        while let Some(news) = next
            && let Some(reader) = &mut self.reader
        {
            let at = position(reader);
            // What was missed here is missing there, and the numbers tell.
            if let KvNews::Event(event) = news {
                let event = numbered(Event::Kv(event_to(event)), at.sequence, at.epoch);
                bytes += event.encoded_len();
                if bytes > most && !events.is_empty() {
                    self.publish(true, std::mem::take(&mut events)).await;
                    bytes = event.encoded_len();
                }
                events.push(event);
                told += 1;
            }
            let reader = self.reader.as_mut().filter(|_| told < MAX_BATCH);
            next = reader.and_then(KvEventReader::try_next);
        }
        if !events.is_empty() {
            self.publish(true, events).await;
        }
    }

    async fn tell_load(&mut self, load: Option<WorkerLoad>) {
        let event = load.map(|load| numbered(Event::Load(load_to(load)), 0, 0));
        self.publish(false, event.into_iter().collect()).await;
    }

    async fn publish(&self, is_kv: bool, events: Vec<wire::WorkerEvent>) {
        if !self.connection.is_connected() {
            return;
        }
        let head = self.reader.as_ref().map(position).unwrap_or_default();
        let message = wire::ModelEvents {
            model: self.model.clone(),
            events,
            head_sequence: head.sequence,
            head_epoch: head.epoch,
        };
        let subject = if is_kv { &self.subjects.kv } else { &self.subjects.load };
        let payload = message.encode_to_vec().into();
        if let Err(error) = self.connection.client.publish(subject.clone(), payload).await {
            tracing::debug!(%error, "events cannot be published");
        }
    }
}

async fn drains(draining: &mut watch::Receiver<bool>) {
    // It fails when the worker is no more, which is the same.
    let _ = draining.wait_for(|is_draining| *is_draining).await;
}

fn numbered(event: Event, sequence: u64, epoch: u64) -> wire::WorkerEvent {
    wire::WorkerEvent { event: Some(event), sequence, epoch }
}
