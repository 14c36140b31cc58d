//! A worker as a policy sees it.

use crate::Overlap;

/// The identity of a worker. One that restarts is another worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkerId(pub u64);

/// The state of a worker at the time of a decision.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WorkerState {
    /// Which worker it is.
    pub id: WorkerId,
    /// Requests that it has, as far as is known.
    pub requests: u64,
    /// The number of the decision that chose it last; 0: none did.
    pub last_chosen: u64,
    /// Prompt tokens of its requests that it has not computed yet.
    pub prefill_tokens: u64,
    /// KV blocks that its requests hold.
    pub decode_blocks: u64,
    /// How much of the request's prompt it holds.
    pub overlap: Overlap,
}

impl WorkerState {
    /// Makes the state of an idle worker that holds nothing.
    pub fn idle(id: WorkerId) -> Self {
        Self {
            id,
            requests: 0,
            last_chosen: 0,
            prefill_tokens: 0,
            decode_blocks: 0,
            overlap: Overlap::default(),
        }
    }
}
