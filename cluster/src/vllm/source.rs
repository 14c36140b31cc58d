//! Follows the events of one engine.
//!
//! An engine that starts again counts from 0, so what its numbers alone say may be that of another one.
//! After a connection was lost the last message is asked for again: the same engine has the same.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::time::Duration;

use engine::{Flood, KvEvent, KvEvents};
use tokio::time::{sleep, timeout};

use super::batch::read;
use super::names::Names;
use super::zmtp::{Connection, Socket};

/// How long connecting, and each message of a replay, may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// The waits between attempts to connect: the first, and the longest.
const WAITS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// How long the log is silent about an engine that stays away after it told of that.
const SILENCE: Duration = Duration::from_secs(600);

/// The number of the message that ends a replay.
const END: u64 = u64::MAX;

/// Where an engine publishes its events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `HOST:PORT` of its publisher.
    pub address: String,
    /// `HOST:PORT` where it repeats what was missed; none: it does not.
    pub replay: Option<String>,
    /// What the topics begin with that are followed; empty: all.
    pub topic: String,
}

/// Follows an engine's events and tells them, until the future is dropped.
pub async fn follow(config: Config, events: KvEvents) {
    let mut follower = Follower { config, events, names: Names::default(), last: None };
    let (mut wait, mut absences) = (WAITS.0, Flood::every(SILENCE));
    loop {
        let mut is_heard = false;
        let Err(error) = follower.hold(&mut is_heard).await;
        if is_heard {
            (wait, absences) = (WAITS.0, Flood::every(SILENCE));
        }
        if let Some(untold) = absences.admit() {
            let address = &follower.config.address;
            tracing::warn!(address, %error, untold, "KV events cannot be received, trying again");
        }
        sleep(wait).await;
        wait = (wait * 2).min(WAITS.1);
    }
}

struct Follower {
    config: Config,
    events: KvEvents,
    names: Names,
    /// The message that was told last.
    last: Option<Last>,
}

/// A message that was told.
#[derive(Clone, Copy)]
struct Last {
    number: u64,
    digest: u64,
}

/// What came of asking for messages again.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Replayed {
    /// All of them.
    Whole,
    /// Not all, or the engine is not asked.
    Partly,
    /// It has another message in the place of our last one.
    Stranger,
}

impl Follower {
    /// Connects and tells what comes, until something fails; says whether anything came.
    async fn hold(&mut self, is_heard: &mut bool) -> io::Result<std::convert::Infallible> {
        let address = self.config.address.clone();
        let mut connection = patient(Connection::open(&address, Socket::Sub)).await?;
        connection.subscribe(&self.config.topic).await?;
        tracing::info!(address, "subscribed to KV events");
        // It may be another engine than before.
        let mut is_new = true;
        loop {
            let message = connection.receive().await?;
            *is_heard = true;
            let [_, number, batch] = &message[..] else {
                return Err(wrong("a message has not three parts"));
            };
            let number = number_of(number)?;
            let expected = self.last.map_or(0, |last| last.number.wrapping_add(1));
            let is_unsure = std::mem::take(&mut is_new) && self.last.is_some();
            if expected != number || is_unsure {
                self.recover(number).await;
            }
            self.tell(number, batch);
        }
    }

    /// Makes up for what is missing before a message.
    async fn recover(&mut self, number: u64) {
        if self.last.is_some_and(|last| number <= last.number) {
            self.begin_anew();
        }
        let mut replayed = self.ask(number).await;
        if replayed == Replayed::Stranger {
            self.begin_anew();
            replayed = self.ask(number).await;
        }
        if let Some(last) = self.last.filter(|_| replayed != Replayed::Whole) {
            let (last, next) = (last.number, number);
            if last.wrapping_add(1) == next {
                tracing::info!(
                    "KV events come over a new connection, perhaps from another engine: what is \
                     known of its cache is forgotten (--upstream-kv-replay tells them apart)"
                );
            } else {
                tracing::warn!(last, next, "KV events were missed: what is known is forgotten");
            }
            self.forget();
        }
    }

    /// Takes the engine for another one than before.
    fn begin_anew(&mut self) {
        let address = &self.config.address;
        tracing::info!(address, "KV events are those of an engine that was started again");
        self.forget();
        self.last = None;
    }

    async fn ask(&mut self, end: u64) -> Replayed {
        self.replay(end).await.unwrap_or_else(|error| {
            tracing::debug!(%error, "KV events cannot be repeated");
            Replayed::Partly
        })
    }

    fn forget(&mut self) {
        let cleared = self.names.clear();
        self.events.publish(|| cleared);
    }

    /// Asks for the messages from the last one on again, and tells those behind it.
    async fn replay(&mut self, end: u64) -> io::Result<Replayed> {
        let known = self.last;
        let first = known.map_or(0, |last| last.number);
        if first == end {
            return Ok(Replayed::Whole);
        }
        let Some(address) = self.config.replay.clone() else { return Ok(Replayed::Partly) };
        let mut connection = patient(Connection::open(&address, Socket::Dealer)).await?;
        connection.send(&[b"", &first.to_be_bytes()]).await?;
        let mut next = first;
        loop {
            let message = patient(connection.receive()).await?;
            let [_, number, batch] = &message[..] else {
                return Err(wrong("a message of a replay has not three parts"));
            };
            let number = number_of(number)?;
            if number == END || number >= end {
                return Ok(if next == end { Replayed::Whole } else { Replayed::Partly });
            }
            if number < next {
                continue;
            }
            match known.filter(|known| known.number == number) {
                Some(known) if known.digest != digest(batch) => return Ok(Replayed::Stranger),
                Some(_) => {}
                None => {
                    // It does not remember what is before that.
                    if number > next {
                        self.forget();
                    }
                    self.tell(number, batch);
                }
            }
            next = number + 1;
        }
    }

    fn tell(&mut self, number: u64, batch: &[u8]) {
        self.last = Some(Last { number, digest: digest(batch) });
        let Some(told) = read(batch) else {
            tracing::warn!(number, "a batch of KV events cannot be read: all is forgotten");
            return self.forget();
        };
        let events: Vec<KvEvent> =
            told.into_iter().filter_map(|one| self.names.translate(one)).collect();
        for event in events {
            self.events.publish(|| event);
        }
    }
}

fn digest(batch: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    batch.hash(&mut hasher);
    hasher.finish()
}

async fn patient<T>(future: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(PATIENCE, future).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

fn number_of(bytes: &[u8]) -> io::Result<u64> {
    let bytes = bytes.try_into().map_err(|_| wrong("a message's number has not eight bytes"))?;
    Ok(u64::from_be_bytes(bytes))
}

fn wrong(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}
