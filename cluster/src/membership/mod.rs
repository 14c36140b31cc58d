//! Who can be called for what, now: one task owns the live set and publishes snapshots.
//!
//! [`Core`] decides, this file only carries: events of discovery and suspicions of the request
//! plane in, probes out, snapshots to whoever reads them.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use engine::Tasks;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{info, warn};

use crate::discovery::{Backoff, Discovery, Query, Watch};
use crate::instance::{Instance, InstanceId};

mod core;
mod snapshot;

pub use core::{Change, Core};
pub use snapshot::{Conflict, Member, Model, Snapshot};

/// Events that are taken together before a snapshot is made.
const BATCH: usize = 1024;
/// The most suspicions that wait for the task; more are members that will be found dead again.
const MAX_SUSPICIONS: usize = 65_536;
/// Probes that run at the same time.
const MAX_PROBES: usize = 64;

/// How suspects are looked after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// The waits between probes of a suspect; default 200 ms to 5 s.
    pub probe: Backoff,
    /// How long a probe may take; default 2 s.
    pub probe_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        let probe = Backoff { first: Duration::from_millis(200), ..Backoff::default() };
        Self { probe, probe_timeout: Duration::from_secs(2) }
    }
}

/// Asks a suspect whether it is well: the request plane connects and calls it.
#[async_trait]
pub trait Probe: Send + Sync + fmt::Debug {
    /// Returns whether the instance answers as the one it was registered as.
    async fn is_well(&self, instance: &Instance) -> bool;
}

/// The live set; clones are handles of the same.
#[derive(Clone, Debug)]
pub struct Membership {
    snapshots: watch::Receiver<Arc<Snapshot>>,
    suspicions: Arc<Suspicions>,
}

#[derive(Debug, Default)]
struct Suspicions {
    ids: Mutex<BTreeSet<InstanceId>>,
    news: Notify,
}

impl Membership {
    /// Starts the task that follows a discovery.
    pub fn start(
        discovery: &dyn Discovery,
        query: Query,
        probe: Arc<dyn Probe>,
        config: Config,
        tasks: &Tasks,
    ) -> Self {
        let (sender, snapshots) = watch::channel(Arc::default());
        let suspicions = Arc::<Suspicions>::default();
        let keeper = Keeper {
            core: Core::new(config),
            watch: discovery.watch(query),
            suspicions: suspicions.clone(),
            probe,
            config,
            snapshots: sender,
            epoch: Instant::now(),
        };
        tasks.spawn("membership", keeper.run());
        Self { snapshots, suspicions }
    }

    /// Returns what may be served now.
    pub fn now(&self) -> Arc<Snapshot> {
        self.snapshots.borrow().clone()
    }

    /// Returns the snapshots as they come.
    pub fn snapshots(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshots.clone()
    }

    /// Says that the connection to an instance died: it is not called until it is known to be
    /// well. Never blocks.
    pub fn suspect(&self, id: InstanceId) {
        let mut ids = self.suspicions.ids.lock().unwrap_or_else(PoisonError::into_inner);
        if ids.len() < MAX_SUSPICIONS {
            ids.insert(id);
        }
        drop(ids);
        self.suspicions.news.notify_one();
    }
}

struct Keeper {
    core: Core,
    watch: Watch,
    suspicions: Arc<Suspicions>,
    probe: Arc<dyn Probe>,
    config: Config,
    snapshots: watch::Sender<Arc<Snapshot>>,
    epoch: Instant,
}

impl Keeper {
    async fn run(mut self) {
        let mut probes = FuturesUnordered::new();
        let mut events = Vec::with_capacity(BATCH);
        loop {
            let due = self.core.next_due().filter(|_| probes.len() < MAX_PROBES);
            let due = due.map(|due| self.epoch + due);
            let mut changes = Vec::new();
            tokio::select! {
                count = self.watch.next_many(&mut events, BATCH) => {
                    if count == 0 {
                        return;
                    }
                    for event in events.drain(..) {
                        changes.extend(self.core.apply(event));
                    }
                }
                () = self.suspicions.news.notified() => {
                    let ids = &self.suspicions.ids;
                    let ids = std::mem::take(&mut *ids.lock().unwrap_or_else(PoisonError::into_inner));
                    for id in ids {
                        changes.extend(self.core.suspect(id, self.epoch.elapsed()));
                    }
                }
                Some((id, is_well, began)) = probes.next() => {
                    let times = (began, self.epoch.elapsed());
                    changes.extend(self.core.probed(id, is_well, times));
                }
                () = sleep_until(due.unwrap_or(self.epoch)), if due.is_some() => {
                    let most = MAX_PROBES - probes.len();
                    let began = self.epoch.elapsed();
                    for instance in self.core.take_due(began, most) {
                        let (probe, limit) = (self.probe.clone(), self.config.probe_timeout);
                        probes.push(async move {
                            let answer = timeout(limit, probe.is_well(&instance)).await;
                            (instance.id, answer.unwrap_or(false), began)
                        });
                    }
                }
            }
            if !changes.is_empty() {
                changes.iter().for_each(log);
                let snapshot = Arc::new(self.core.snapshot());
                self.snapshots.send_replace(snapshot);
            }
        }
    }
}

fn log(change: &Change) {
    match change {
        Change::Joined(instance) => {
            let models: Vec<&str> = instance.cards.iter().map(|card| card.name.as_str()).collect();
            let (address, namespace) = (&instance.address, &instance.namespace);
            info!(instance = %instance.id, address, %namespace, ?models, "worker joined");
        }
        Change::Updated(instance) => {
            let is_draining = instance.is_draining;
            info!(instance = %instance.id, is_draining, "worker changed its registration");
        }
        Change::Left(id) => info!(instance = %id, "worker left"),
        Change::Suspected(id) => warn!(instance = %id, "worker is not called: connection died"),
        Change::Cleared(id) => info!(instance = %id, "worker is called again"),
        Change::ModelAdded(name) => info!(name, "name is registered"),
        Change::ModelRemoved(name) => info!(name, "name is registered no more"),
        Change::Conflict(conflict) => warn!(name = conflict.name, "{conflict}"),
        Change::ConflictEnded(conflict) => {
            info!(name = conflict.name, instance = %conflict.instance, "conflict of cards is over");
        }
        Change::Synced => info!("registered workers are known"),
        Change::Stale => warn!("discovery is lost: the last known workers stay"),
        Change::Fresh => info!("discovery is there again"),
    }
}

#[cfg(test)]
mod tests;
