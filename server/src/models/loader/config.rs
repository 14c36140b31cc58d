//! The configuration of the embedded engine.

use std::path::PathBuf;

use openai_bridge::TextRules;

use crate::args::{EngineArgs, FormatArgs, threads};

/// The embedded engine's limits.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Compute threads, which all text models share.
    pub threads: usize,
    /// Whether each of them keeps to a core of its own.
    pub pin_threads: bool,
    /// Most tokens of one sequence; none: the model's own.
    pub context_length: Option<usize>,
    /// Bytes of each model's KV cache.
    pub kv_cache_bytes: usize,
    /// Tokens of one forward pass.
    pub batch_tokens: usize,
    /// Sequences in the running batch.
    pub max_running_sequences: usize,
    /// Requests waiting for a place in the batch.
    pub max_waiting_requests: usize,
    /// What adapters may be loaded on each text model.
    pub adapters: worker::lora::Limits,
    /// Most tokens of prompts in a forward pass that others draw from.
    pub mixed_prompt_tokens: usize,
    /// How many times as long as one without prompts such a pass may take.
    pub mixed_pass_stretch: f32,
    /// Tokens guessed ahead of a text.
    pub draft_tokens: usize,
    /// Whether blocks of the KV cache are kept to be found again.
    pub has_prefix_cache: bool,
    /// Share of the blocks that a request leaves free when it joins others.
    pub kv_watermark: f32,
    /// Bytes of host memory for blocks.
    pub kv_host_bytes: usize,
    /// Folder for blocks on disk, and their bytes.
    pub kv_disk: Option<(PathBuf, usize)>,
    /// The format of tool calls; none: what a model's template shows.
    pub tool_call_parser: Option<String>,
    /// The format of reasoning; none: what a model's template shows.
    pub reasoning_parser: Option<String>,
    /// What all texts keep to.
    pub text_rules: TextRules,
}

impl EngineConfig {
    /// Makes the configuration.
    pub(crate) fn from_args(args: &EngineArgs, formats: &FormatArgs) -> Self {
        Self {
            threads: threads(args.threads),
            pin_threads: args.pin_threads,
            context_length: args.context_length.map(|tokens| tokens as usize),
            kv_cache_bytes: args.kv_cache_mib as usize * (1 << 20),
            batch_tokens: args.batch_tokens as usize,
            max_running_sequences: args.max_running_sequences as usize,
            max_waiting_requests: args.max_waiting_requests as usize,
            adapters: worker::lora::Limits {
                max_adapters: args.max_loras as usize,
                max_rank: args.max_lora_rank as usize,
            },
            mixed_prompt_tokens: args.mixed_prompt_tokens as usize,
            mixed_pass_stretch: args.mixed_pass_stretch,
            draft_tokens: args.draft_tokens as usize,
            has_prefix_cache: !args.no_prefix_cache,
            kv_watermark: args.kv_watermark_percent as f32 / 100.0,
            kv_host_bytes: args.kv_host_mib as usize * (1 << 20),
            kv_disk: args.kv_disk_dir.clone().zip(Some(args.kv_disk_mib as usize * (1 << 20))),
            tool_call_parser: formats.tool_call_parser.clone(),
            reasoning_parser: formats.reasoning_parser.clone(),
            text_rules: TextRules::default(),
        }
    }
}
