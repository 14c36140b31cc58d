//! The engine's requests and outputs as the messages of `proto/worker.proto`, and back.

mod blocks;
mod embed;
mod events;
mod generate;
mod infer;
mod tensors;
#[cfg(test)]
mod tests;
mod text;

use std::sync::Arc;

use engine::{Adapter, AdapterId, Context, Error, ErrorKind, Request, Result};
use prost::Message;
use proto::{Nest, Payload, Uncounted, worker as wire};

use super::link::Use;
use super::outbox::Outbox;

pub(super) use blocks::{layout_of, layout_to};
pub(crate) use events::{event_of, event_to, load_of, load_to};

/// The number of the field whose payloads stand apart.
pub(super) const CONTENTS: u8 = 7;

/// The longest message of an answer to a call beside inference, in bytes; a piece of a file is one.
pub(super) const MAX_CONTROL_BYTES: usize = 16 << 20;

/// The most fields of a message. A field takes two bytes and, decoded, up to some hundred; what
/// frontends let in stays below.
const MAX_FIELDS: usize = 1 << 19;

/// The same for tokens with log-probabilities, which have six a token.
const MAX_OUTPUT_FIELDS: usize = 1 << 21;

/// What a call carries: which connections it takes, so that tokens do not queue behind large
/// tensors, and how long its messages may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    /// Many small messages, and prompts.
    Tokens,
    /// Messages of any size.
    Bulk,
    /// What is asked beside inference; on the connections of tokens.
    Control,
    /// Files in pieces; on the connections of large messages.
    Files,
}

impl Lane {
    /// Returns what its calls' streams are for.
    pub(super) fn what_for(self) -> Use {
        match self {
            Self::Tokens | Self::Bulk => Use::Call,
            Self::Control | Self::Files => Use::Control,
        }
    }

    /// Returns its longest message, of the longest ones with tensors and with tokens, in bytes.
    pub(super) fn max_bytes(self, tensors: usize, tokens: usize) -> usize {
        match self {
            Self::Bulk => tensors,
            Self::Tokens => tokens,
            Self::Control | Self::Files => MAX_CONTROL_BYTES,
        }
    }
}

/// A kind of request that passes between processes.
pub(super) trait Wire: Request + Sized {
    /// The path of its method.
    const PATH: &'static str;
    /// The connections it takes.
    const LANE: Lane;
    /// What both ends keep while a call is open.
    type Kept: Clone + Send + Sync + Unpin;

    /// Returns what is kept.
    fn kept(&self) -> Self::Kept;

    /// Writes a request. Errors: it is too long.
    fn encode(self, model: &str, context: &Context, outbox: &mut Outbox) -> Result<()>;

    /// Reads a request. Errors: it is none.
    fn decode(message: Payload) -> Result<Arrival<Self>>;

    /// Gives the request the adapter that it named.
    fn adapt(&mut self, adapter: Adapter);

    /// Writes an output. Errors: it is too long.
    fn encode_output(output: Self::Output, outbox: &mut Outbox) -> Result<()>;

    /// Reads an output; none: the message was about what is kept. Errors: it is none.
    fn decode_output(message: Payload, kept: &Self::Kept) -> Result<Option<Self::Output>>;

    /// Writes what has to be said at the end of an answer. Errors: it is too long.
    fn encode_end(_kept: &Self::Kept, _outbox: &mut Outbox) -> Result<()> {
        Ok(())
    }
}

/// A request as it came.
#[derive(Debug)]
pub(super) struct Arrival<R> {
    pub(super) model: String,
    pub(super) context: Context,
    pub(super) adapter: Option<AdapterId>,
    pub(super) request: R,
}

/// Reads a message in one piece.
pub(super) fn message<M: Message + Default>(payload: &Payload) -> Result<M> {
    message_of(payload, Nest::LEAF, MAX_FIELDS)
}

/// Reads a message in one piece that holds many small messages.
fn message_of<M: Message + Default>(payload: &Payload, nest: Nest, most: usize) -> Result<M> {
    count(payload, nest, most)?;
    M::decode(payload.to_bytes()).map_err(|error| undecodable(&error))
}

/// Checks how many fields a message has. Errors: more than `most`, bytes that are no message.
fn count(payload: &Payload, nest: Nest, most: usize) -> Result<()> {
    proto::count_fields(payload, nest, most).map_err(|error| match error {
        Uncounted::TooMany => Error::invalid(format!(
            "a message of {} bytes has too many fields, between processes at most {most} pass",
            payload.len()
        )),
        Uncounted::Malformed => Error::invalid("a message between processes cannot be read"),
    })
}

fn undecodable(error: &prost::DecodeError) -> Error {
    Error::invalid(format!("a message between processes cannot be read: {error}"))
}

/// What a worker of a later version may say and this one does not know.
fn unknown(what: &str, number: i32) -> Error {
    Error::new(ErrorKind::Unimplemented, format!("{what} {number} is not known here"))
}

fn context_to(context: &Context) -> Option<wire::Context> {
    Some(wire::Context {
        id: context.id().to_owned(),
        priority: context.priority(),
        trace_parent: context.trace_parent().unwrap_or_default().to_owned(),
    })
}

fn context_of(context: Option<wire::Context>) -> Context {
    let wire::Context { id, priority, trace_parent } = context.unwrap_or_default();
    let trace_parent = (!trace_parent.is_empty()).then(|| Arc::from(trace_parent));
    Context::new(id).with_priority(priority).with_trace_parent(trace_parent)
}

fn nanoseconds(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Checks two lists of which each entry of one belongs to an entry of the other.
fn equal_lengths(name: &str, expected: usize, got: usize) -> Result<()> {
    if expected == got {
        return Ok(());
    }
    Err(Error::invalid(format!("`{name}`: expected {expected} entries, got {got}")))
}
