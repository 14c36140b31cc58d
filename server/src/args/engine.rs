//! The flags of the embedded engine.

use std::path::PathBuf;

use clap::Args;

/// The embedded engine.
#[derive(Debug, Args)]
#[command(next_help_heading = "Engine")]
pub struct EngineArgs {
    /// Compute threads, which all text models and encoders share; 0 takes one a core
    #[arg(long, value_name = "N", default_value_t = 0, env = "STATOR_THREADS")]
    #[arg(value_parser = clap::value_parser!(u32).range(0..=1024))]
    pub threads: u32,
    /// Keep each compute thread to a core of its own, the first ones that the process may run on
    #[arg(long, env = "STATOR_PIN_THREADS")]
    pub pin_threads: bool,
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
    #[arg(value_parser = clap::value_parser!(u32).range(2..=65_536))]
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
    /// Most tokens of prompts in a forward pass while texts are drawn, from this model or another
    #[arg(long, value_name = "TOKENS", default_value_t = 512, env = "STATOR_MIXED_PROMPT_TOKENS")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub mixed_prompt_tokens: u32,
    /// How many times as long as without prompts the passes of all models together may take then,
    /// encoders included: less keeps the time between tokens even, more finishes prompts sooner
    #[arg(long, value_name = "TIMES", default_value_t = 2.0, env = "STATOR_MIXED_PASS_STRETCH")]
    #[arg(value_parser = stretch)]
    pub mixed_pass_stretch: f32,
    /// Tokens guessed ahead of a text from what it said before; 0 guesses none
    #[arg(long, value_name = "TOKENS", default_value_t = 0, env = "STATOR_DRAFT_TOKENS")]
    #[arg(value_parser = clap::value_parser!(u32).range(0..=64))]
    pub draft_tokens: u32,
    /// Compute every prompt anew instead of keeping blocks of the KV cache to be found again
    #[arg(long, env = "STATOR_NO_PREFIX_CACHE")]
    pub no_prefix_cache: bool,
    /// Percent of the KV cache's blocks that a request leaves free for others when it joins them
    #[arg(long, value_name = "PERCENT", default_value_t = 1, env = "STATOR_KV_WATERMARK_PERCENT")]
    #[arg(value_parser = clap::value_parser!(u32).range(0..=100))]
    pub kv_watermark_percent: u32,
    /// Host memory, in MiB, for blocks that a model's KV cache has no room for; 0 keeps none
    #[arg(long, value_name = "MIB", default_value_t = 0, env = "STATOR_KV_HOST_MIB")]
    pub kv_host_mib: u32,
    /// Folder for blocks that the host memory has no room for [default: they are forgotten]
    #[arg(long, value_name = "DIR", env = "STATOR_KV_DISK_DIR")]
    pub kv_disk_dir: Option<PathBuf>,
    /// Most MiB of each model's blocks in that folder
    #[arg(long, value_name = "MIB", default_value_t = 4096, env = "STATOR_KV_DISK_MIB")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    pub kv_disk_mib: u32,
}

/// Reads how many times longer something may take.
fn stretch(text: &str) -> Result<f32, String> {
    let times = text.parse().ok().filter(|times| (1.0..=1000.0).contains(times));
    times.ok_or_else(|| "expected a number in 1..=1000".to_owned())
}
