//! Generation with continuous batching: requests wait, join the running batch, leave it.
//!
//! One thread owns the runner, the KV blocks and all sequences. Requests reach it through a
//! bounded queue, tokens leave it through a buffer per request that coalesces for slow readers.

mod config;
mod counters;
mod draft;
mod drawing;
mod engine;
mod exchange;
mod guides;
mod intake;
mod logprobs;
mod output;
mod plan;
mod pooling;
mod prefill_budget;
mod sampler;
mod scheduler;
mod sequence;
mod spill;
mod top_k;
mod waiting;

pub use config::{DiskTierConfig, SchedulerConfig};
pub use engine::GenerateEngine;
pub use guides::Constraints;
pub(crate) use logprobs::Scorer;
pub(crate) use sampler::{Rules, Sampler, Scratch};
pub(crate) use scheduler::OLDEST_EVERY;
