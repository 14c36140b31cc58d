//! The flags of workers that only seem to compute.

use clap::Args;

/// Workers without a model, for tests and benchmarks.
#[derive(Debug, Args)]
#[command(next_help_heading = "Mock")]
pub struct MockArgs {
    /// Serve a model without weights, called `mock`, with the engine's own scheduler and KV pool;
    /// SETTINGS are those of --builtin, such as
    /// prefill_us=20,decode_us=500,speedup=10,blocks=4096,loras=NAME+NAME
    #[arg(long, value_name = "SETTINGS", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "", env = "STATOR_MOCK")]
    pub mock: Option<String>,
    /// Workers in this one process, each registered on its own with its own port and engines
    #[arg(long, value_name = "N", default_value_t = 1, env = "STATOR_MOCK_WORKERS")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=10_000), requires = "mock")]
    pub mock_workers: u32,
}
