//! The flags that say which models there are.

use std::path::PathBuf;

use clap::Args;

/// The models.
#[derive(Debug, Args)]
pub struct ModelArgs {
    /// Models to serve
    #[arg(value_name = "MODEL", env = "STATOR_MODELS", value_delimiter = ',')]
    pub models: Vec<String>,
    /// Serve no text model when none is given
    #[arg(long, env = "STATOR_NO_DEFAULT_MODEL", help_heading = "Models")]
    pub no_default_model: bool,
    /// Serve a built-in model: [NAME=]KIND[,KEY=VALUE]..., KIND one of identity (datatype, dims
    /// as 2x-1, max_batch_size, delay_ms, echo_parameters), add_sub (datatype, dims,
    /// max_batch_size), repeat_int32, square, sequence (delay_ms, idle_ms), image, video, mock (pace_ms,
    /// prefill_us and decode_us: what a token costs, speedup, blocks, loras: NAME+NAME,
    /// context_length, reply: a text to answer with, last)
    #[arg(long, value_name = "SPEC", env = "STATOR_BUILTIN", value_delimiter = ';')]
    #[arg(help_heading = "Models")]
    pub builtin: Vec<String>,
    /// Folder of model folders in Triton's layout: NAME/config.pbtxt, NAME/1/...; may be repeated
    #[arg(long, value_name = "DIR", env = "STATOR_MODEL_REPOSITORY", value_delimiter = ',')]
    #[arg(help_heading = "Models")]
    pub model_repository: Vec<PathBuf>,
    /// Who decides what is loaded later: nobody, changes of the repositories, or clients
    #[arg(long, value_name = "MODE", value_enum, default_value_t = ControlMode::None)]
    #[arg(env = "STATOR_MODEL_CONTROL_MODE", help_heading = "Models")]
    pub model_control_mode: ControlMode,
    /// Model of a repository to load at the start in explicit mode, `*` for all; may be repeated
    #[arg(long, value_name = "NAME", env = "STATOR_LOAD_MODEL", value_delimiter = ',')]
    #[arg(help_heading = "Models")]
    pub load_model: Vec<String>,
    /// Seconds between two looks at the repositories in poll mode
    #[arg(long, value_name = "SECONDS", default_value_t = 15, env = "STATOR_REPOSITORY_POLL_SECS")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=86_400), help_heading = "Models")]
    pub repository_poll_secs: u32,
    /// End when a model cannot be loaded at the start, instead of serving the others without it
    #[arg(long, env = "STATOR_EXIT_ON_ERROR", help_heading = "Models")]
    pub exit_on_error: bool,
    /// Where downloaded models lie [default: the user's cache folder, stator/models]
    #[arg(long, value_name = "DIR", env = "STATOR_MODEL_DIR", help_heading = "Models")]
    pub model_dir: Option<PathBuf>,
    /// Hub that model ids are fetched from [default: HF_ENDPOINT or Hugging Face]
    #[arg(long, value_name = "URL", env = "STATOR_HUB_URL", help_heading = "Models")]
    pub hub_url: Option<String>,
}

/// Who decides what is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum ControlMode {
    /// Everything at the start, and nothing later.
    None,
    /// Everything at the start, and then what changes in the repositories.
    Poll,
    /// What --load-model names, and then what clients ask for.
    Explicit,
}
