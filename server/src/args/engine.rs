//! The flags of the embedded engine.

use clap::Args;

/// The embedded engine.
#[derive(Debug, Args)]
#[command(next_help_heading = "Engine")]
pub struct EngineArgs {
    /// Compute threads of each text model; 0 takes one a core
    #[arg(long, value_name = "N", default_value_t = 0, env = "STATOR_THREADS")]
    #[arg(value_parser = clap::value_parser!(u32).range(0..=1024))]
    pub threads: u32,
    /// Most tokens of one sequence [default: the model's own]
    #[arg(long, value_name = "TOKENS", env = "STATOR_CONTEXT_LENGTH")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    pub context_length: Option<u32>,
    /// Memory of each model's KV cache in MiB
    #[arg(long, value_name = "MIB", default_value_t = 512, env = "STATOR_KV_CACHE_MIB")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    pub kv_cache_mib: u32,
    /// Tokens of one forward pass, shared by decoding sequences and prompt chunks
    #[arg(long, value_name = "TOKENS", default_value_t = 512, env = "STATOR_BATCH_TOKENS")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub batch_tokens: u32,
    /// Sequences in the running batch
    #[arg(long, value_name = "N", default_value_t = 256, env = "STATOR_MAX_RUNNING_SEQUENCES")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub max_running_sequences: u32,
    /// Requests waiting for a place in the batch; more are refused with UNAVAILABLE
    #[arg(long, value_name = "N", default_value_t = 1024, env = "STATOR_MAX_WAITING_REQUESTS")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub max_waiting_requests: u32,
    /// LoRA adapter to serve under a name of its own: NAME=DIR, or NAME=DIR,base=MODEL where there
    /// are several text models; may be repeated
    #[arg(long, value_name = "NAME=DIR", env = "STATOR_LORA_MODULES", value_delimiter = ';')]
    pub lora_modules: Vec<String>,
    /// LoRA adapters loaded at once on each text model
    #[arg(long, value_name = "N", default_value_t = 8, env = "STATOR_MAX_LORAS")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub max_loras: u32,
    /// Largest rank of a LoRA adapter
    #[arg(long, value_name = "N", default_value_t = 64, env = "STATOR_MAX_LORA_RANK")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub max_lora_rank: u32,
}
