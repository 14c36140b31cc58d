//! A worker around another server: its models are those of a server that speaks the OpenAI API.
//!
//! Requests pass as texts and answers stream through; nothing is kept of either. The models are
//! there while the server is.

mod client;
mod config;
mod engine;
mod follow;

pub use config::UpstreamConfig;
pub(crate) use follow::Upstream;
