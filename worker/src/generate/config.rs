//! The limits of the scheduler.

/// The limits of the scheduler; each is at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SchedulerConfig {
    /// Requests accepted and not yet in the batch; one more is refused as overloaded.
    pub max_waiting_requests: usize,
    /// Sequences in the running batch.
    pub max_running_sequences: usize,
    /// Tokens of one forward pass; prompts are cut into chunks so that it is kept.
    pub batch_tokens: usize,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self { max_waiting_requests: 1024, max_running_sequences: 64, batch_tokens: 512 }
    }
}
