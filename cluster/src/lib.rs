//! How processes find, call and hear each other.

pub mod card;
mod complaints;
pub mod discovery;
pub mod events;
pub mod instance;
pub mod membership;
pub mod nats;
pub mod request;
mod tcp;
pub mod vllm;

pub use complaints::Complaints;
