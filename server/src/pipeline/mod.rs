//! The decorators around an engine, one a file, and the order in which they are stacked.

mod adapt;
mod admit;
mod deadline;
#[expect(dead_code, reason = "the role `frontend` will use it")]
mod migrate;
mod observe;
#[cfg_attr(not(test), expect(dead_code, reason = "the role `frontend` will use it"))]
mod route;
mod sequence;

pub(crate) use adapt::Adapt;
pub(crate) use admit::{Admit, Limits, Thresholds};
pub(crate) use deadline::Deadline;
#[expect(unused_imports, reason = "the role `frontend` will use it")]
pub(crate) use migrate::Migrate;
pub(crate) use observe::{Observe, TokenMetrics};
#[expect(unused_imports, reason = "the role `frontend` will use it")]
pub(crate) use route::{Candidate, Engines, Policy, RetryAccepted, Route, RouteConfig, Workers};
pub(crate) use sequence::{SequenceOptions, Sequences};
