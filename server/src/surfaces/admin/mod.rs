//! The operator's door: metrics and probes.

mod metrics;
mod triton;

pub(crate) use metrics::{Exporter, probes, router};
pub(crate) use triton::Processor;
