//! The waist: what an engine is, what it is asked, what it answers, how it fails.
//!
//! Everything on the request path is an [`Engine`] around an engine: the CPU worker, a
//! decorator that watches deadlines, a remote worker, a test double. A request goes down, a
//! stream of outputs comes up, and dropping the stream is cancellation.

#![deny(missing_docs)]

mod adapter;
mod block;
mod busy_poll;
mod context;
mod embed;
mod engine;
mod error;
mod event;
mod flood;
mod generate;
mod guided;
mod handoff;
mod infer;
mod meter;
mod model;
mod sampling;
mod sequence;
mod tasks;
pub mod testing;
mod text;
mod token;
mod usage;
mod waiter;

pub use adapter::{Adapter, AdapterId};
pub use block::{BlockHash, Salt, SequenceHash, prefix_hashes};
pub use busy_poll::BusyPoll;
pub use context::Context;
pub use embed::{EmbedRequest, Embedding};
pub use engine::{Engine, OutputStream, Request};
pub use error::{Error, ErrorKind, Result};
pub use event::{KvEvent, KvEventReader, KvEvents, KvNews, KvSnapshot, StoredBlock};
pub use flood::Flood;
pub use generate::{
    FinishReason, GenerateOutput, GenerateRequest, MAX_ANSWER_SCORES, MAX_LOGPROBS, TokenLogprobs,
};
pub use guided::{Constraint, Guided};
pub use handoff::{KvBlocks, KvHandoff, KvLayout, KvSource, KvStore};
pub use infer::{InferOutput, InferRequest, RequestedOutput};
pub use meter::Meter;
pub use model::{ModelCard, TokenKind, Vocabulary};
pub use sampling::{Sampling, StopConditions};
pub use sequence::{Sequence, SequenceId, SequenceState};
pub use tasks::Tasks;
pub use text::{
    CallDelta, EmbedTextRequest, TextDelta, TextEmbedding, TextForm, TextLogprob, TextRequest,
    TextUsage,
};
pub use token::TokenId;
pub use usage::{Usage, WorkerLoad, WorkerTotals};
pub use waiter::{Waiter, check_waiting};
