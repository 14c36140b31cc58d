//! Turns text requests into token requests and token streams into answers; no IO.
//!
//! Nothing here waits, reads a clock or opens a socket. A request goes in as tensors or as the JSON
//! of an OpenAI call, becomes a [`Completion`], and comes out as token requests; tokens are pushed
//! into [`Continuations`], and what the text turned out to be is taken out of them as deltas, which
//! become tensors again or the frames of an OpenAI stream.

#![deny(missing_docs)]

mod alternatives;
mod answer;
pub mod api;
mod bridge;
mod chat;
mod completion;
mod constraint;
mod continuations;
mod controls;
mod delta;
pub mod parser;
mod profile;
mod rules;
mod settings;
mod stop;
mod syntax;
mod template;
mod tensors;
mod texts;
mod tokenizer;
mod tools;
mod upstream;

pub use answer::Answer;
pub use bridge::TextBridge;
pub use completion::{Completion, DEFAULT_MAX_TOKENS, Input};
pub use continuations::Continuations;
pub use delta::{Delta, Finish, Score, Scored, TextOutput};
pub use rules::TextRules;
pub use template::{Conversation, Now, Template};
pub use tensors::{Inputs, TensorRequest};
pub use texts::TextAnswers;
pub use tokenizer::{DEFAULT_CACHE_BYTES, Tokenizer};
pub use upstream::{UpstreamAnswer, upstream_error};
