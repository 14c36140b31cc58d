//! KV events of other engines: what vLLM, and SGLang alike, publish over ZeroMQ.
//!
//! A publisher sends batches of events in MessagePack, numbered in their order. Blocks have names
//! of the engine's own there; here they get those that every router computes, from the tokens that
//! come along. What was missed is asked for again, if the engine offers that, and else all that was
//! known is told to be gone: a router that knows too little is slow, one that knows what is not so
//! is wrong.

mod batch;
mod msgpack;
mod names;
mod source;
#[cfg(test)]
mod tests;
mod zmtp;

pub use source::{Config, follow};
