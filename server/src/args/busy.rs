//! The flags that say when a text model is busy.

use clap::Args;

/// When a text model is busy; `/busy_threshold` changes it while the server runs.
#[derive(Debug, Args)]
#[command(next_help_heading = "Admission")]
pub struct BusyArgs {
    /// Share of a worker's KV blocks, above 0 and up to 1: requests are refused while all workers
    /// of their model use more [default: never]
    #[arg(long, value_name = "SHARE", env = "STATOR_BUSY_KV_SHARE", value_parser = share)]
    pub busy_kv_share: Option<f64>,
    /// Prompt tokens for each worker: requests are refused while more of their model's wait for
    /// their first output [default: never]
    #[arg(long, value_name = "TOKENS", env = "STATOR_BUSY_PREFILL_TOKENS")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    pub busy_prefill_tokens: Option<u64>,
    /// Requests in a worker's queue: requests are refused while all workers of their model have
    /// more [default: never]
    #[arg(long, value_name = "N", env = "STATOR_BUSY_WAITING_REQUESTS")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    pub busy_waiting_requests: Option<u64>,
}

/// Reads a share.
fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| *share > 0.0 && *share <= 1.0);
    share.ok_or_else(|| "expected a number above 0 and up to 1".to_owned())
}
