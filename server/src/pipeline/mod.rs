//! The decorators around an engine, one a file, and the order in which they are stacked.

mod adapt;
mod admit;
mod deadline;
mod disaggregate;
mod migrate;
mod observe;
mod queue;
mod route;
mod sequence;
#[cfg(test)]
pub(crate) mod testing;

pub(crate) use adapt::Adapt;
pub(crate) use admit::{EachLoad, Limits, PrefillTracker, Thresholds};
pub(crate) use deadline::Deadline;
pub(crate) use disaggregate::{Counts, Disaggregate, SplitConfig};
pub(crate) use migrate::Migrate;
pub(crate) use observe::{Observe, TokenMetrics};
pub(crate) use queue::{Queued, max_waiting};
pub(crate) use route::{
    Candidate, Engines, Prefixes, RetryAccepted, Route, RouteConfig, RouteMetrics, RouterMode,
    Workers,
};
pub(crate) use sequence::{SequenceOptions, Sequences};
