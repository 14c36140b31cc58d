//! Constraints on what is generated: from a schema, a pattern or a grammar to the tokens that
//! may come next.
//!
//! A [`Compiler`] belongs to a model, a [`Guide`] to a continuation. The parser is llguidance;
//! what it may cost is bounded here, and nothing of it is seen outside.

mod compiler;
mod grammar;
mod guide;
mod spelling;

pub(crate) use compiler::{Compiler, Stop};
pub(crate) use guide::{Guide, Progress};
