//! The limits of the scheduler.

use std::path::PathBuf;

/// The limits of the scheduler; each number is at least 1 unless it says otherwise.
#[derive(Clone, Debug, PartialEq)]
pub struct SchedulerConfig {
    /// Requests accepted and not yet in the batch; one more is refused as overloaded.
    pub max_waiting_requests: usize,
    /// Sequences in the running batch.
    pub max_running_sequences: usize,
    /// Tokens of one forward pass; prompts are cut into chunks so that it is kept.
    pub batch_tokens: usize,
    /// The most tokens of prompts in a forward pass while texts are drawn, from this model or one
    /// on the same threads.
    pub mixed_prompt_tokens: usize,
    /// How many times as long as without prompts the passes of all those models together may take
    /// then, at least 1: less keeps the time between tokens even, more finishes prompts sooner.
    pub mixed_pass_stretch: f32,
    /// Whether full blocks are kept and found again by their tokens.
    pub has_prefix_cache: bool,
    /// Share of the blocks, in `0.0..=1.0`, that a request which joins others leaves free for
    /// them to grow.
    pub watermark: f32,
    /// The most tokens that are guessed ahead of a continuation from what it said before; 0: none.
    pub draft_tokens: usize,
    /// Bytes of host memory for blocks that the device has no room for; 0: none are kept there.
    pub host_tier_bytes: usize,
    /// Where blocks go that the host's memory has no room for; none: they are forgotten.
    pub disk_tier: Option<DiskTierConfig>,
    /// Blocks that a step brings back from host memory or disk, or puts into the cache that came from
    /// another engine; copying them holds everybody up.
    pub restored_blocks: usize,
    /// KV events kept for readers; who is further behind is told of the gap.
    pub kv_events: usize,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self {
            max_waiting_requests: 1024,
            max_running_sequences: 64,
            batch_tokens: 512,
            mixed_prompt_tokens: 512,
            mixed_pass_stretch: 2.0,
            has_prefix_cache: true,
            watermark: 0.01,
            draft_tokens: 0,
            host_tier_bytes: 0,
            disk_tier: None,
            restored_blocks: 16,
            kv_events: 4096,
        }
    }
}

/// Blocks on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskTierConfig {
    /// A folder of this engine's own; blocks of an earlier run in it are removed.
    pub folder: PathBuf,
    /// The most bytes of them.
    pub max_bytes: usize,
}
