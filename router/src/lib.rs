//! Chooses a worker for each request, by cached prefixes and load.
//!
//! The crate is pure: it has no IO, no threads and no clock. Time is an argument, and random
//! numbers come from a generator that the caller owns, so every decision can be replayed.
//!
//! | part | what it does |
//! |---|---|
//! | [`PrefixIndex`] | knows which worker holds which prefix, from the workers' KV events |
//! | [`PredictedIndex`] | assumes that a routed prompt stays cached for a while |
//! | [`ActiveLoad`] | counts what a worker's requests still have to compute and what they hold |
//! | [`KvConfig`] | turns overlap and load into a cost |
//! | [`Policy`] | chooses among the workers |
#![warn(missing_docs)]

mod active;
mod cost;
mod index;
mod overlap;
mod policy;
mod predicted;
mod worker;

pub use active::{ActiveLoad, Reservation};
pub use cost::{Cost, KvConfig, softmax};
pub use index::{Claim, IndexLimits, Matches, PrefixIndex, Tier};
pub use overlap::Overlap;
pub use policy::{Decision, Kv, LeastLoaded, Policy, PowerOfTwo, Random, RoundRobin, RouteRequest};
pub use predicted::PredictedIndex;
pub use worker::{WorkerId, WorkerState};
