//! Serves: listens, translates, stacks the pipeline, wires a role, shuts down.

mod admin;
pub mod args;
mod banner;
pub mod config;
mod hub;
mod inference;
mod kserve;
mod load;
mod metrics;
mod models;
mod pipeline;
pub mod serve;
mod shutdown;
pub mod source;
mod statistics;
mod status;
pub mod telemetry;
mod text;
