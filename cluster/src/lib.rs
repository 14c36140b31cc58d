//! How processes find, call and hear each other.

pub mod card;
pub mod discovery;
pub mod events;
pub mod instance;
mod log_throttle;
pub mod membership;
pub mod nats;
pub mod request;
mod tcp;
pub mod vllm;

pub use log_throttle::LogThrottle;
