//! The flags of `stator bench`.

use clap::{Args, Subcommand};

/// What is measured.
#[derive(Debug, Subcommand)]
pub enum BenchAction {
    /// Prefill and decode of a model without a server, beside what the machine's memory allows
    Engine(BenchEngineArgs),
}

/// The flags of `stator bench engine`.
#[derive(Debug, Args)]
pub struct BenchEngineArgs {
    /// Model to run: a GGUF file or a directory [default: the default model]
    #[arg(value_name = "MODEL")]
    pub model: Option<String>,
    /// Compute threads; 0 takes one a core
    #[arg(long, value_name = "N", default_value_t = 0)]
    #[arg(value_parser = clap::value_parser!(u32).range(0..=1024))]
    pub threads: u32,
    /// Tokens of the prompt whose prefill is timed
    #[arg(long, value_name = "TOKENS", default_value_t = 512)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub prompt_tokens: u32,
    /// Tokens of each sequence before the first timed decode step
    #[arg(long, value_name = "TOKENS", default_value_t = 128)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub context_tokens: u32,
    /// Decode steps that are timed for each batch
    #[arg(long, value_name = "N", default_value_t = 64)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub steps: u32,
    /// Sequences that are decoded together, each number a measurement
    #[arg(long, value_name = "LIST", default_value = "1,8,16", value_delimiter = ',')]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub batch: Vec<u32>,
    /// Memory of the KV cache in MiB
    #[arg(long, value_name = "MIB", default_value_t = 512)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    pub kv_cache_mib: u32,
}
