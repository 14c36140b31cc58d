//! Follows the events of one engine.

use std::io;
use std::time::Duration;

use engine::{KvEvent, KvEvents};
use tokio::time::{sleep, timeout};

use super::batch::read;
use super::names::Names;
use super::zmtp::{Connection, Socket};

/// How long connecting, and each message of a replay, may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// The waits between attempts to connect: the first, and the longest.
const WAITS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

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
    let mut wait = WAITS.0;
    loop {
        let Err(error) = follower.hold(&mut wait).await;
        tracing::warn!(address = follower.config.address, %error, "KV events are not there");
        sleep(wait).await;
        wait = (wait * 2).min(WAITS.1);
    }
}

struct Follower {
    config: Config,
    events: KvEvents,
    names: Names,
    /// The number of the message that was told last.
    last: Option<u64>,
}

impl Follower {
    /// Connects and tells what comes, until something fails.
    async fn hold(&mut self, wait: &mut Duration) -> io::Result<std::convert::Infallible> {
        let address = self.config.address.clone();
        let mut connection = patient(Connection::open(&address, Socket::Sub)).await?;
        connection.subscribe(&self.config.topic).await?;
        tracing::info!(address, "KV events are there");
        *wait = WAITS.0;
        loop {
            let message = connection.receive().await?;
            let [_, number, batch] = &message[..] else {
                return Err(wrong("a message has not three parts"));
            };
            let number = number_of(number)?;
            if self.last.map_or(0, |last| last.wrapping_add(1)) != number {
                self.recover(number).await;
            }
            self.tell(number, batch);
        }
    }

    /// Makes up for what is missing before a message.
    async fn recover(&mut self, number: u64) {
        let first = match self.last {
            Some(last) if last < number => last + 1,
            // It counts anew: this is another engine.
            Some(_) => {
                self.forget();
                0
            }
            None => 0,
        };
        let is_whole = match self.replay(first, number).await {
            Ok(is_whole) => is_whole,
            Err(error) => {
                tracing::debug!(%error, "KV events cannot be repeated");
                false
            }
        };
        if !is_whole && self.last.is_some() {
            tracing::warn!(missed = number - first, "KV events were missed: all is forgotten");
            self.forget();
        }
    }

    fn forget(&mut self) {
        let cleared = self.names.clear();
        self.events.publish(|| cleared);
    }

    /// Asks for messages again; returns whether all of them came.
    async fn replay(&mut self, first: u64, end: u64) -> io::Result<bool> {
        let Some(address) = self.config.replay.clone() else { return Ok(false) };
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
                return Ok(next == end);
            }
            if number >= next {
                // It does not remember what is before that.
                if number > next {
                    self.forget();
                }
                self.tell(number, batch);
                next = number + 1;
            }
        }
    }

    fn tell(&mut self, number: u64, batch: &[u8]) {
        self.last = Some(number);
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
