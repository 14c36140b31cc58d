//! What a request cost and how busy a worker is.

/// The tokens of one continuation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens drawn, the end-of-sequence token included.
    pub completion_tokens: u32,
    /// Tokens of the prompt that were found in the prefix cache.
    pub cached_tokens: u32,
}

/// A snapshot of a worker's load.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorkerLoad {
    /// Requests accepted and not yet scheduled.
    pub waiting_requests: u32,
    /// Sequences in the running batch.
    pub running_sequences: u32,
    /// KV blocks in use.
    pub used_blocks: u32,
    /// KV blocks there are.
    pub total_blocks: u32,
    /// Tokens that a block holds.
    pub block_tokens: u32,
}
