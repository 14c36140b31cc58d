//! Serves: listens, translates, stacks the pipeline, wires a role, shuts down.

mod admin;
pub mod args;
mod backend;
mod banner;
mod catalog;
pub mod config;
mod control;
mod forwarding;
mod hub;
mod inference;
mod kserve;
mod metrics;
mod models;
mod orca;
mod pipeline;
pub mod repository;
pub mod restriction;
pub mod serve;
mod shared;
pub mod shared_memory;
mod shutdown;
pub mod source;
mod statistics;
mod status;
pub mod telemetry;
mod text;
pub mod trace;
