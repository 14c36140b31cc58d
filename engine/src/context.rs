//! What travels beside a request: who it is and how long it may take.

use std::sync::Arc;
use std::time::Instant;

use crate::Meter;

/// The context of one request: goes down with it, never back; cheap to clone.
///
/// ```
/// let context = engine::Context::new("request-1");
/// assert_eq!(context.id(), "request-1");
/// assert!(context.deadline().is_none());
/// ```
#[derive(Clone, Debug)]
pub struct Context {
    id: Arc<str>,
    deadline: Option<Instant>,
    priority: u64,
    trace_parent: Option<Arc<str>>,
    meter: Option<Arc<dyn Meter>>,
}

impl Context {
    /// Makes a context for the request that the client calls `id` (empty: it has no name).
    pub fn new(id: impl Into<Arc<str>>) -> Self {
        Self { id: id.into(), deadline: None, priority: 0, trace_parent: None, meter: None }
    }

    /// Sets the moment after which nobody waits for the answer.
    #[must_use]
    pub fn with_deadline(mut self, deadline: Option<Instant>) -> Self {
        self.deadline = deadline;
        self
    }

    /// Sets the priority: 0 is the model's default, then lower is more urgent (as in Triton).
    #[must_use]
    pub fn with_priority(mut self, priority: u64) -> Self {
        self.priority = priority;
        self
    }

    /// Sets the caller's span, as the header `traceparent` of W3C Trace Context has it.
    #[must_use]
    pub fn with_trace_parent(mut self, parent: Option<Arc<str>>) -> Self {
        self.trace_parent = parent;
        self
    }

    /// Sets what counts the request's tokens.
    #[must_use]
    pub fn with_meter(mut self, meter: Option<Arc<dyn Meter>>) -> Self {
        self.meter = meter;
        self
    }

    /// Returns what counts the request's tokens.
    pub fn meter(&self) -> Option<&Arc<dyn Meter>> {
        self.meter.as_ref()
    }

    /// Returns the client's name for the request, empty when it gave none.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Returns the caller's span, as the header `traceparent` has it.
    pub fn trace_parent(&self) -> Option<&str> {
        self.trace_parent.as_deref()
    }

    /// Returns the moment after which nobody waits for the answer.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Returns the priority: 0 is the model's default, then lower is more urgent.
    pub fn priority(&self) -> u64 {
        self.priority
    }
}
