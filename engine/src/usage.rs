//! What a request cost and how busy a worker is.

/// The tokens of one continuation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens drawn, the end-of-sequence token included.
    pub completion_tokens: u32,
    /// Tokens of the prompt that were found in the prefix cache, or came from another engine.
    pub cached_tokens: u32,
}

/// A snapshot of a worker's load.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorkerLoad {
    /// Requests accepted and not yet scheduled.
    pub waiting_requests: u32,
    /// Sequences in the running batch.
    pub running_sequences: u32,
    /// KV blocks that sequences hold.
    pub used_blocks: u32,
    /// KV blocks that nobody holds and that a prompt with the same beginning would find.
    pub cached_blocks: u32,
    /// KV blocks there are.
    pub total_blocks: u32,
    /// Tokens that a block holds.
    pub block_tokens: u32,
}

impl WorkerLoad {
    /// Adds the load of another worker of the same model.
    pub fn add(&mut self, other: &Self) {
        self.waiting_requests = self.waiting_requests.saturating_add(other.waiting_requests);
        self.running_sequences = self.running_sequences.saturating_add(other.running_sequences);
        self.used_blocks = self.used_blocks.saturating_add(other.used_blocks);
        self.cached_blocks = self.cached_blocks.saturating_add(other.cached_blocks);
        self.total_blocks = self.total_blocks.saturating_add(other.total_blocks);
        self.block_tokens = other.block_tokens;
    }
}

/// What a worker has done since it started; each number only grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorkerTotals {
    /// Forward passes.
    pub steps: u64,
    /// Sequences of all passes: divided by the passes, the size of a batch.
    pub batched_sequences: u64,
    /// Tokens of prompts that were computed, those computed again among them.
    pub prefill_tokens: u64,
    /// Tokens that were computed one at a time, drafts among them.
    pub decode_tokens: u64,
    /// Tokens of prompts that were looked up in the prefix cache.
    pub prefix_query_tokens: u64,
    /// Tokens of prompts that were found there, or below it; what came from other engines was not.
    pub prefix_hit_tokens: u64,
    /// Sequences that lost their blocks to others and were computed again.
    pub preemptions: u64,
    /// Tokens that were guessed ahead.
    pub drafted_tokens: u64,
    /// Guessed tokens that were right.
    pub accepted_tokens: u64,
    /// Blocks that came back from the host's memory.
    pub host_hit_blocks: u64,
    /// Blocks that came back from the disk.
    pub disk_hit_blocks: u64,
    /// Blocks that came from another engine.
    pub imported_blocks: u64,
    /// Blocks that were copied for other engines.
    pub exported_blocks: u64,
}
