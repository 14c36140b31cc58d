//! The settings of the OpenAI door.

use std::time::Duration;

use crate::args::OpenAiArgs;
use crate::support::invalid::Invalid;
use crate::surfaces::paths::Paths;

/// The settings.
#[derive(Clone, Debug)]
pub struct OpenAiConfig {
    /// Where the routes are.
    pub(crate) paths: Paths,
    /// Silence on a stream after which a comment keeps it alive; none: never.
    pub keep_alive: Option<Duration>,
    /// The status of a refusal for overload: 503 or 529.
    pub overload_status: u16,
    /// Most responses that are kept.
    pub stored_responses: usize,
    /// Most bytes of them.
    pub stored_bytes: usize,
}

impl OpenAiConfig {
    /// Checks the arguments and makes the configuration.
    ///
    /// Errors: [`Invalid`], naming the flag.
    pub(crate) fn from_args(args: &OpenAiArgs) -> Result<Self, Invalid> {
        let keep_alive = Duration::from_millis(args.openai_keep_alive_ms);
        Ok(Self {
            paths: Paths::parse("--openai-path", &args.openai_path)?,
            keep_alive: (!keep_alive.is_zero()).then_some(keep_alive),
            overload_status: if args.openai_overload_status == "529" { 529 } else { 503 },
            stored_responses: args.openai_stored_responses as usize,
            stored_bytes: args.openai_stored_response_bytes as usize,
        })
    }
}
