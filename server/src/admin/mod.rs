//! The operator's door: metrics.

mod metrics;
mod triton;

pub(crate) use metrics::{Exporter, router};
pub(crate) use triton::Processor;
