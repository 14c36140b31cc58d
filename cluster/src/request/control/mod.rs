//! The calls beside inference: what a worker serves, its files, its end, its news.

mod asking;
mod blocks;
mod telling;

use std::time::Duration;

use bytes::Bytes;
use engine::{KvEvent, KvSnapshot, WorkerLoad};

pub(super) use blocks::pull;
pub use blocks::{MAX_BLOCK_BYTES, Wanted};
pub(super) use telling::{describe, drain, fetch, watch};

pub(super) const DESCRIBE: &str = "/stator.worker.v1.Worker/Describe";
pub(super) const DRAIN: &str = "/stator.worker.v1.Worker/Drain";
pub(super) const FETCH: &str = "/stator.worker.v1.Worker/Fetch";
pub(super) const PULL: &str = "/stator.worker.v1.Worker/PullBlocks";
pub(super) const WATCH: &str = "/stator.worker.v1.Worker/Watch";

/// What a worker serves and how it is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Described {
    /// The models, by name.
    pub models: Vec<DescribedModel>,
    /// Nothing new is accepted.
    pub is_draining: bool,
}

/// A model of a worker.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DescribedModel {
    /// The name that requests give.
    pub name: String,
    /// The model's card, as JSON.
    pub card: Bytes,
    /// How busy it is, if the worker knows.
    pub load: Option<WorkerLoad>,
}

/// What to hear of a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WatchOptions {
    /// The time between two snapshots of the load, in whole milliseconds; none: no snapshots.
    pub load_interval: Option<Duration>,
    /// Whether to hear what becomes of KV blocks.
    pub kv_events: bool,
    /// Whether to hear first what can be found already; events have the worker's numbers then.
    pub snapshot: bool,
}

/// What is heard of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// How busy it is.
    Load(WorkerLoad),
    /// What can be found, before any event.
    Held(KvSnapshot),
    /// What became of KV blocks.
    Kv {
        /// The numbering, as [`KvSnapshot::epoch`] has it.
        epoch: u64,
        /// The event's number; without a snapshot the first of a stream is 1.
        sequence: u64,
        /// The event.
        event: KvEvent,
    },
    /// Events were lost: what the worker's cache holds is not known any more.
    Gap {
        /// The number of the last event lost.
        sequence: u64,
        /// How many were lost.
        missed: u64,
    },
    /// The worker goes away; the stream ends.
    Draining,
}
