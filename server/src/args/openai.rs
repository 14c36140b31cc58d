//! The flags of the OpenAI door, which is part of the HTTP listener.

use clap::{Args, ValueEnum};
use openai_bridge::TextRules;

/// The OpenAI door.
#[derive(Debug, Args)]
#[command(next_help_heading = "OpenAI")]
pub struct OpenAiArgs {
    /// NAME=PATH: move a route. Names: chat, completions, embeddings, responses, messages, models,
    /// rerank, tokenize, detokenize, tokenizer_info, images, videos, videos_stream,
    /// load_lora_adapter, unload_lora_adapter, busy_threshold, health, live, metrics, openapi, docs, page; may be
    /// repeated (also DYN_HTTP_SVC_CHAT_PATH and its kin)
    #[arg(long, value_name = "MOVE", env = "STATOR_OPENAI_PATH", value_delimiter = ',')]
    pub openai_path: Vec<String>,
    /// Milliseconds of silence on a stream after which a comment keeps it alive; 0: never
    #[arg(long, value_name = "MS", default_value_t = 15_000, env = "STATOR_OPENAI_KEEP_ALIVE_MS")]
    pub openai_keep_alive_ms: u64,
    /// Status of a refusal because of overload: 503, or 529 as Anthropic and Dynamo have it
    #[arg(long, value_name = "STATUS", default_value = "503", value_parser = ["503", "529"])]
    #[arg(env = "STATOR_OPENAI_OVERLOAD_STATUS")]
    pub openai_overload_status: String,
    /// Most responses that are kept to be asked for again and gone on from; the one that was used
    /// longest ago goes first; 0: none
    #[arg(long, value_name = "N", default_value_t = 1000, env = "STATOR_OPENAI_STORED_RESPONSES")]
    pub openai_stored_responses: u32,
    /// Most bytes of kept responses, with the conversations that led to them
    #[arg(long, value_name = "BYTES", default_value_t = 64 << 20)]
    #[arg(env = "STATOR_OPENAI_STORED_RESPONSE_BYTES")]
    pub openai_stored_response_bytes: u64,
    /// Let messages of a chat spell out the model's control tokens, which are text otherwise: a
    /// content with one can then end its turn and begin another
    #[arg(long, env = "STATOR_ALLOW_SPECIAL_TOKENS_IN_CONTENT")]
    pub allow_special_tokens_in_content: bool,
    /// Most calls in an answer that has to call tools (`tool_choice` `required`) or whose text is
    /// held to a schema
    #[arg(long, env = "STATOR_MAX_TOOL_CALLS", value_name = "CALLS", default_value_t = 16)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=128))]
    pub max_tool_calls: u32,
    /// What the output `text_output` of a tensor request with neither `stream` nor
    /// `exclude_input_in_output` is: the model's text, or as in vLLM's backend the prompt and the
    /// text; a model's own parameter `text_output` goes before it
    #[arg(long, value_name = "WHAT", env = "STATOR_TEXT_OUTPUT", value_enum)]
    #[arg(default_value_t = TextOutput::Text, help_heading = "KServe")]
    pub text_output: TextOutput,
}

/// What the output `text_output` is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TextOutput {
    /// The model's text.
    Text,
    /// The prompt and the model's text.
    Echo,
}

impl OpenAiArgs {
    /// Returns what all texts keep to.
    pub fn text_rules(&self) -> TextRules {
        TextRules {
            has_special_content: self.allow_special_tokens_in_content,
            max_tool_calls: self.max_tool_calls,
            has_echo: self.text_output == TextOutput::Echo,
        }
    }
}

/// How texts of models are read.
#[derive(Debug, Args)]
#[command(next_help_heading = "OpenAI")]
pub struct FormatArgs {
    /// Format of tool calls, instead of the one that a model's template shows; `none` for none
    #[arg(long, value_name = "FORMAT", env = "STATOR_TOOL_CALL_PARSER")]
    pub tool_call_parser: Option<String>,
    /// Format of reasoning, instead of the one that a model's template shows; `none` for none
    #[arg(long, value_name = "FORMAT", env = "STATOR_REASONING_PARSER")]
    pub reasoning_parser: Option<String>,
}
