//! One watcher of etcd: lists, watches from the listing's revision on, and begins anew whenever
//! the watch breaks.
//!
//! Always listing after a break, instead of resuming at a revision, costs one read and makes
//! four cases one: a short break, a compaction meanwhile, a cluster that was restored from a
//! backup and so counts from further back, and another cluster altogether.

use std::sync::Arc;

use async_trait::async_trait;
use engine::{Error, ErrorKind, Result};
use futures_util::{StreamExt, stream};
use tokio::time::{Instant, sleep_until};
use tonic::Streaming;
use tracing::{debug, info, warn};

use super::connection::{Connection, Connector, failed};
use super::wire::{
    DELETE, KeyValue, RangeRequest, RangeResponse, WatchCreateRequest, WatchRequest, WatchResponse,
};
use super::{Config, Keys, RANGE};
use crate::discovery::watch::{Change, Difference, Source};
use crate::instance::{Instance, InstanceId};

const WATCH: &str = "/etcdserverpb.Watch/Watch";
/// Records of one page of a listing.
const PAGE: i64 = 64;

/// Reads etcd for one watcher.
pub(super) struct Reader {
    pub(super) config: Arc<Config>,
    pub(super) connector: Connector,
    pub(super) keys: Keys,
    pub(super) open: Option<Open>,
    /// Whether the last listing followed a compaction, and nothing has come since.
    pub(super) is_relisting: bool,
}

/// A watch that runs.
pub(super) struct Open {
    connection: Connection,
    answers: Streaming<WatchResponse>,
    /// When etcd is asked next whether it is there: a frozen one would otherwise go unnoticed.
    probe: Instant,
}

#[async_trait]
impl Source for Reader {
    async fn next(&mut self) -> Result<Change> {
        let change = self.advance().await;
        if change.is_err() {
            (self.open, self.is_relisting) = (None, false);
        }
        change
    }
}

impl Reader {
    async fn advance(&mut self) -> Result<Change> {
        loop {
            let pause = self.config.ttl / 3;
            let Some(open) = &mut self.open else {
                return self.begin_anywhere().await;
            };
            tokio::select! {
                answer = open.answers.message() => {
                    let answer = answer.map_err(|status| failed(WATCH, &status))?;
                    let ended = || Error::new(ErrorKind::Unavailable, "etcd: the watch has ended");
                    let answer = answer.ok_or_else(ended)?;
                    if answer.is_canceled {
                        self.check_cancel(&answer)?;
                    } else if !answer.events.is_empty() {
                        self.is_relisting = false;
                        return Ok(Change::Changes(self.differences(answer)));
                    }
                }
                () = sleep_until(open.probe) => {
                    let probe = RangeRequest {
                        key: self.keys.from.clone(),
                        limit: 1,
                        ..RangeRequest::default()
                    };
                    let _: RangeResponse = open.connection.call(RANGE, probe).await?;
                    open.probe = Instant::now() + pause;
                    self.is_relisting = false;
                }
            }
        }
    }

    /// Leads to a new listing after a compaction, which is no outage; but one that hits a watch
    /// again before anything came of it is, so that nobody lists without a pause.
    pub(super) fn check_cancel(&mut self, answer: &WatchResponse) -> Result<()> {
        let was_in_vain = std::mem::replace(&mut self.is_relisting, true);
        if answer.compact_revision == 0 || was_in_vain {
            let text = format!("etcd: the watch was cancelled: {}", answer.cancel_reason);
            return Err(Error::new(ErrorKind::Unavailable, text));
        }
        info!(revision = answer.compact_revision, "etcd was compacted, listing anew");
        self.open = None;
        Ok(())
    }

    /// Begins at the first member that lets it; each is tried once.
    async fn begin_anywhere(&mut self) -> Result<Change> {
        let mut outcome = self.begin().await;
        for _ in 1..self.connector.members() {
            let Err(error) = &outcome else { break };
            debug!(%error, "trying the next member of etcd");
            outcome = self.begin().await;
        }
        outcome
    }

    /// Lists what is there and watches from then on.
    async fn begin(&mut self) -> Result<Change> {
        let connection = self.connector.connect().await?;
        let (mut listing, mut revision, mut from) = (Vec::new(), 0, self.keys.from.clone());
        loop {
            let page =
                RangeRequest { key: from, range_end: self.keys.to.clone(), limit: PAGE, revision };
            let page: RangeResponse = connection.call(RANGE, page).await?;
            if revision == 0 {
                revision = page.header.map_or(0, |header| header.revision);
            }
            let last = page.kvs.last().map(|record| record.key.clone());
            listing.extend(page.kvs.iter().filter_map(|record| self.understand(record)));
            match last {
                Some(last) if page.more => from = [last.as_slice(), &[0]].concat(),
                _ => break,
            }
        }
        let create = WatchCreateRequest {
            key: self.keys.from.clone(),
            range_end: self.keys.to.clone(),
            start_revision: revision + 1,
        };
        let request = WatchRequest { create: Some(create) };
        // The stream of requests stays open, since its end would end the watch.
        let requests = stream::once(std::future::ready(request)).chain(stream::pending());
        let answers = connection.open(WATCH, requests).await?;
        let probe = Instant::now() + self.config.ttl / 3;
        self.open = Some(Open { connection, answers, probe });
        Ok(Change::Listing(listing))
    }

    fn differences(&self, answer: WatchResponse) -> Vec<Difference> {
        let mut differences = Vec::new();
        for event in answer.events {
            let Some(record) = event.kv else { continue };
            let Some(id) = self.keys.id(&record.key) else { continue };
            let instance = match event.kind {
                DELETE => None,
                _ => self.understand(&record),
            };
            // A record that cannot be understood any more is not the one that was told.
            differences.push(instance.map_or(Difference::Remove(id), Difference::Put));
        }
        differences
    }

    /// Returns the instance of a record; one that cannot be understood is reported and left out.
    fn understand(&self, record: &KeyValue) -> Option<Arc<Instance>> {
        match understand(&self.keys, record) {
            Ok(instance) => Some(Arc::new(instance)),
            Err(error) => {
                let key = String::from_utf8_lossy(&record.key);
                warn!(%key, %error, "registration left out");
                None
            }
        }
    }
}

fn understand(keys: &Keys, record: &KeyValue) -> Result<Instance> {
    let instance = Instance::from_json(&record.value)?;
    match keys.key(&instance) == record.key {
        true => Ok(instance),
        false => {
            let InstanceId(id) = instance.id;
            Err(Error::invalid(format!("instance {id:016x}: lies under the key of another")))
        }
    }
}
