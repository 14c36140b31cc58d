//! Serves: listens, translates, stacks the pipeline, wires a role, shuts down.

pub mod args;
pub mod cli;
pub mod fleet;
pub mod models;
mod pipeline;
pub mod roles;
pub mod security;
mod serving;
pub mod support;
pub mod surfaces;
pub mod upstream;
