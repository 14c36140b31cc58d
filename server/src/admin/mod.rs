//! The operator's door: metrics and probes.

mod metrics;

pub(crate) use metrics::{Exporter, probes, router};
