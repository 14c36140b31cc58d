//! The operator's door: metrics.

mod metrics;

pub(crate) use metrics::{Exporter, router};
