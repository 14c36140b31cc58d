//! How processes find, call and hear each other.

pub mod card;
pub mod discovery;
pub mod instance;
pub mod membership;
pub mod request;
pub mod vllm;
