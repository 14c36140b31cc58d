//! The flags of a worker around another server.

use std::path::PathBuf;

use clap::Args;

/// A server whose models the worker offers.
#[derive(Debug, Args)]
#[command(next_help_heading = "Upstream")]
pub struct UpstreamArgs {
    /// Offer the models of a server that speaks the OpenAI API, such as vLLM, SGLang or llama.cpp:
    /// http://HOST:PORT/v1, or https
    #[arg(long, value_name = "URL", env = "STATOR_UPSTREAM")]
    pub upstream: Option<String>,
    /// File whose first line is the server's API key
    #[arg(long, value_name = "FILE", env = "STATOR_UPSTREAM_KEY_FILE", requires = "upstream")]
    pub upstream_key_file: Option<PathBuf>,
    /// PEM file of the authorities to trust for https [default: the web's]
    #[arg(long, value_name = "FILE", env = "STATOR_UPSTREAM_CA_FILE", requires = "upstream")]
    pub upstream_ca_file: Option<PathBuf>,
    /// Where the server publishes what becomes of its KV blocks, as vLLM and SGLang do over ZeroMQ:
    /// tcp://HOST:PORT
    #[arg(long, value_name = "URL", env = "STATOR_UPSTREAM_KV_EVENTS", requires = "upstream")]
    pub upstream_kv_events: Option<String>,
    /// Where it repeats events that were missed, tcp://HOST:PORT [default: then all is forgotten]
    #[arg(long, value_name = "URL", env = "STATOR_UPSTREAM_KV_REPLAY")]
    #[arg(requires = "upstream_kv_events")]
    pub upstream_kv_replay: Option<String>,
}
