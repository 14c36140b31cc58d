//! The engine's requests and outputs as the messages of `proto/worker.proto`, and back.

mod embed;
mod events;
mod generate;
mod infer;
mod tensors;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use engine::{Adapter, AdapterId, Context, Error, ErrorKind, Request, Result};
use prost::Message;
use proto::{Payload, worker as wire};

use super::outbox::Outbox;

pub(crate) use events::{event_of, event_to, load_of, load_to};

/// The number of the field whose payloads stand apart.
pub(super) const CONTENTS: u8 = 7;

/// Which connections a call takes, so that tokens do not queue behind large tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    /// Many small messages.
    Tokens,
    /// Messages of any size.
    Bulk,
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
    M::decode(payload.to_bytes()).map_err(|error| undecodable(&error))
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
