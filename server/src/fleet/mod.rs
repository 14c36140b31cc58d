//! What frontends and workers of a fleet are made of: frontends serve models, workers compute them.
//!
//! A worker tells by a card what it has; a frontend makes of each card the model that `stator
//! serve` would have made, with a route to workers where that has an engine.

mod bridges;
mod canary;
mod cards;
mod config;
mod follow;
mod handoff;
mod maker;
mod news;
mod peers;
mod planes;
mod pool;
mod roster;
#[cfg(test)]
mod simulation;
mod sockets;
mod store;

use std::time::Duration;

pub(crate) use cards::{Aliases, Files, Formats, Offer, offers};
pub use config::FleetConfig;
pub(crate) use config::namespace;
pub(crate) use follow::Fleet;
pub(crate) use handoff::Handoffs;
pub(crate) use peers::Peers;
pub use planes::PlanesConfig;
pub(crate) use planes::{Planes, nats_config, publish};
pub use store::Store;

/// How long frontends get to hear of the end before calls are refused; those that come in between
/// are taken.
pub(crate) const LEAVE_WAIT: Duration = Duration::from_millis(500);

/// The schemes of workers' addresses: in the clear, and by TLS.
pub(crate) const PLAIN: &str = "grpc://";
pub(crate) const SECURE: &str = "grpcs://";
