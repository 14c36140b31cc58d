//! Turns text requests into token requests and token streams into answers; no IO.
//!
//! Nothing here waits, reads a clock or opens a socket: a request goes in as tensors, comes out as
//! token requests; tokens are pushed into an [`Answer`] and tensors are taken out of it.

#![deny(missing_docs)]

mod answer;
mod bridge;
mod completion;
pub mod parser;
mod profile;
mod settings;
mod stop;
mod template;
mod tokenizer;

pub use answer::Answer;
pub use bridge::TextBridge;
pub use completion::{Completion, DEFAULT_MAX_TOKENS};
pub use tokenizer::Tokenizer;
