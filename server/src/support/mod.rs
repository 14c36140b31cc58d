//! What every floor above uses: configuration errors, error codes and statuses, memory, metrics,
//! logs and traces.

pub(crate) mod buffers;
pub(crate) mod codes;
pub(crate) mod forwarding;
pub mod invalid;
pub(crate) mod metrics;
pub(crate) mod preparing;
pub mod shared_memory;
pub(crate) mod stall_timer;
pub(crate) mod statistics;
pub(crate) mod status;
pub mod telemetry;
pub mod trace;
pub(crate) mod unpack;
