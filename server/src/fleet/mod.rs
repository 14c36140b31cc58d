//! The roles of a fleet: workers compute models, frontends serve them.
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
mod many;
mod news;
mod peers;
mod planes;
mod pool;
mod roster;
#[cfg(test)]
mod simulation;
mod sockets;
mod store;
mod tables;
mod worker;

pub use config::{FleetConfig, Part, Repeated, Routing, WorkerConfig};
pub(crate) use follow::Fleet;
pub(crate) use peers::Peers;
pub(crate) use planes::nats_config;
pub use planes::{Plane, PlanesConfig};
pub use store::Store;
pub(crate) use tables::Tables;
pub use worker::work;
