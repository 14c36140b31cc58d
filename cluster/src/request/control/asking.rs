//! The frontend's side of the calls beside inference.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use engine::{Error, KvSnapshot, Result, SequenceHash};
use futures_util::{Stream, StreamExt};
use prost::Message;
use proto::{Payload, worker as wire};
use wire::worker_event::Event;

use super::super::answer::{Plain, Reader};
use super::super::client::RemoteWorker;
use super::super::codec::{Lane, event_of, load_of, message};
use super::{DESCRIBE, DRAIN, Described, DescribedModel, FETCH, News, WATCH, WatchOptions};

impl RemoteWorker {
    /// Asks what the worker serves and how it is.
    ///
    /// Errors: UNAVAILABLE, DEADLINE_EXCEEDED after `timeout`.
    pub async fn describe(&self, timeout: Duration) -> Result<Described> {
        let request = wire::DescribeRequest {};
        let wire: wire::Description = self.ask(DESCRIBE, &request, timeout).await?;
        let model = |model: wire::ServedModel| DescribedModel {
            name: model.name,
            card: model.card,
            load: model.load.map(load_of),
        };
        let models = wire.models.into_iter().map(model).collect();
        Ok(Described { models, is_draining: wire.is_draining })
    }

    /// Tells the worker to accept nothing new; returns how many calls are still open there.
    ///
    /// Errors: UNAVAILABLE, DEADLINE_EXCEEDED after `timeout`.
    pub async fn drain(&self, timeout: Duration) -> Result<u64> {
        let reply: wire::DrainReply = self.ask(DRAIN, &wire::DrainRequest {}, timeout).await?;
        Ok(reply.open_calls)
    }

    /// Fetches a file by the hash of its content, which is for the caller to check.
    ///
    /// Errors: NOT_FOUND, an INTERNAL one when it has more than `max_bytes`, UNAVAILABLE,
    /// DEADLINE_EXCEEDED after `timeout`.
    pub async fn fetch(&self, hash: &str, max_bytes: usize, timeout: Duration) -> Result<Bytes> {
        let until = Instant::now().checked_add(timeout);
        let mut outbox = self.outbox(Lane::Files);
        outbox.message(&wire::FetchRequest { hash: hash.to_owned() })?;
        let reader = Plain::<wire::Chunk>::default();
        let mut chunks = self.open((FETCH, Lane::Files), outbox, until, reader).await?;
        let mut data = BytesMut::new();
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk?.data;
            if chunk.len() > max_bytes - data.len() {
                let text = format!("file `{hash}` of a worker: expected at most {max_bytes} bytes");
                return Err(Error::internal(text));
            }
            data.extend_from_slice(&chunk);
        }
        Ok(data.freeze())
    }

    /// Hears of a model until the stream is dropped or the worker goes away.
    ///
    /// Errors: NOT_FOUND, UNAVAILABLE; the stream's: UNAVAILABLE.
    pub async fn watch(
        &self,
        model: &str,
        options: WatchOptions,
    ) -> Result<impl Stream<Item = Result<News>> + Send + Unpin + use<>> {
        let interval = options.load_interval.map_or(0, |time| time.as_millis().max(1));
        let mut outbox = self.outbox(Lane::Control);
        outbox.message(&wire::WatchRequest {
            model: model.to_owned(),
            load_interval_ms: u32::try_from(interval).unwrap_or(u32::MAX),
            kv_events: options.kv_events,
            snapshot: options.snapshot,
        })?;
        self.open((WATCH, Lane::Control), outbox, None, Hearing::default()).await
    }

    /// Makes a call that has one answer.
    async fn ask<M>(&self, path: &'static str, request: &impl Message, wait: Duration) -> Result<M>
    where
        M: Message + Default + 'static,
    {
        let until = Instant::now().checked_add(wait);
        let mut outbox = self.outbox(Lane::Control);
        outbox.message(request)?;
        let mut answer =
            self.open((path, Lane::Control), outbox, until, Plain::<M>::default()).await?;
        let none = || Err(Error::internal("a worker's answer is empty"));
        answer.next().await.unwrap_or_else(none)
    }
}

/// The most prefixes of a worker's snapshot: 64 million tokens in blocks of 16.
const MAX_HELD: usize = 4 << 20;

/// Reads a worker's news and minds their numbers.
#[derive(Default)]
struct Hearing {
    last: u64,
    /// The parts of a snapshot that came so far.
    held: Vec<SequenceHash>,
}

impl Hearing {
    fn gap(&mut self, sequence: u64) -> Option<News> {
        let missed = sequence.saturating_sub(std::mem::replace(&mut self.last, sequence));
        Some(News::Gap { sequence, missed })
    }

    fn part(&mut self, part: wire::KvSnapshot, sequence: u64, epoch: u64) -> Result<Option<News>> {
        if self.held.len().saturating_add(part.sequences.len()) > MAX_HELD {
            let text = format!("a worker's snapshot: expected at most {MAX_HELD} prefixes");
            return Err(Error::internal(text));
        }
        self.held.extend(part.sequences.into_iter().map(SequenceHash));
        if !part.is_last {
            return Ok(None);
        }
        self.last = sequence;
        let blocks = std::mem::take(&mut self.held);
        Ok(Some(News::Held(KvSnapshot { epoch, sequence, blocks })))
    }
}

impl Reader for Hearing {
    type Item = News;

    fn read(&mut self, payload: Payload) -> Result<Option<News>> {
        let wire::WorkerEvent { event, sequence, epoch } = message(&payload)?;
        Ok(match event {
            Some(Event::Load(load)) => Some(News::Load(load_of(load))),
            Some(Event::Draining(_)) => Some(News::Draining),
            Some(Event::Gap(_)) => self.gap(sequence),
            Some(Event::Snapshot(part)) => self.part(part, sequence, epoch)?,
            Some(Event::Kv(event)) if Some(sequence) == self.last.checked_add(1) => {
                match event_of(event)? {
                    Some(event) => {
                        self.last = sequence;
                        Some(News::Kv { epoch, sequence, event })
                    }
                    None => self.gap(sequence),
                }
            }
            Some(Event::Kv(_)) => self.gap(sequence),
            None => None,
        })
    }
}
