//! What every call of every door shares.

use std::sync::Arc;

use engine::{BusyPoll, Error, ErrorKind, Result, Tasks};

use crate::models::registry::Models;
use crate::models::repository::Repository;
use crate::support::buffers::Buffers;
use crate::support::metrics::Metrics;
use crate::support::shared_memory::Regions;
use crate::support::telemetry::Logging;
use crate::support::trace::Traces;

/// The server, as its doors see it.
pub(crate) struct Shared {
    pub models: Arc<Models>,
    pub repository: Arc<Repository>,
    pub regions: Arc<Regions>,
    pub traces: Arc<Traces>,
    pub logging: Logging,
    pub metrics: Arc<Metrics>,
    /// The memory for what clients send and are sent.
    pub buffers: Arc<Buffers>,
    /// Cancelled when the server begins to shut down.
    pub accepting: Tasks,
    /// Cancelled when it refuses requests, a moment later.
    pub admitting: Tasks,
    /// Cancelled at the end of the grace, when calls under way are answered by an error.
    pub answering: Tasks,
    pub busy_poll: BusyPoll,
    pub max_stream_requests: usize,
    pub server_name: String,
}

impl Shared {
    /// Returns whether the server shuts down.
    pub(crate) fn is_ending(&self) -> bool {
        self.accepting.is_cancelled()
    }

    /// Refuses requests once clients can know that the server shuts down.
    pub(crate) fn admit(&self) -> Result<()> {
        admitted(&self.admitting)
    }

    /// Refuses changes of what is served from the moment in which the server shuts down.
    pub(crate) fn admit_change(&self) -> Result<()> {
        admitted(&self.accepting)
    }
}

fn admitted(group: &Tasks) -> Result<()> {
    match group.is_cancelled() {
        false => Ok(()),
        true => Err(shutting_down()),
    }
}

/// Makes the answer to what comes too late in a shutdown, or takes too long; in Triton's words.
pub(crate) fn shutting_down() -> Error {
    Error::new(
        ErrorKind::Unavailable,
        "GRPC server is shutting down and has stopped accepting new requests.",
    )
}
