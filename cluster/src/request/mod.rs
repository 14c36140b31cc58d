//! The request plane over gRPC: a frontend calls engines that live in worker processes.
//!
//! The protocol is `proto/worker.proto`, which workers in other languages speak as well. A
//! [`WorkerServer`] serves engines; a [`RemoteWorker`] is its other end, and the [`RemoteModel`]s
//! it gives are engines whose calls keep the promise of [`Engine`](engine::Engine) across
//! processes:
//!
//! - `Err` from a call means that the worker refused, or that the connection failed before the
//!   worker had said that it accepts. It says so by response headers, which it sends when its own
//!   engine's call returned; a refusal has none. A request whose acceptance was lost on the way
//!   may have been begun: its stream is gone with the connection, and so is what it made.
//! - A failed connection ends all its answers at once with
//!   [`ErrorKind::Unavailable`](engine::ErrorKind::Unavailable).
//! - Dropping an answer resets its HTTP/2 stream, and the worker drops its engine's stream.
//! - What a slow reader has not taken fills its HTTP/2 window, then the worker asks its engine
//!   for no more. Windows of connections are as wide as those of all their streams together, so
//!   that nobody waits for another one's reader.
//!
//! Both ends speak HTTP/2 by `h2` itself: the future of a connection is its life, a call costs no
//! task or channel on the caller's side, and payloads pass uncopied.

mod answer;
mod call;
mod client;
mod codec;
mod connector;
mod control;
mod deadline;
mod dial;
mod door;
mod ended;
mod failure;
mod keepalive;
mod link;
mod loads;
mod local;
mod outbox;
mod peer;
mod places;
mod pump;
mod seats;
mod served;
mod server;
mod shared;
#[cfg(test)]
mod tests;

pub use answer::WAY_LOST;
pub use client::{ClientConfig, RemoteModel, RemoteWorker};
pub(crate) use codec::{event_of, event_to, load_of, load_to};
pub use connector::{Acceptor, Connector, Io, Local, Tcp};
pub use control::{Described, DescribedModel, MAX_BLOCK_BYTES, News, Wanted, WatchOptions};
pub(crate) use failure::percent_decode;
pub(crate) use loads::{Loads, next_load};
pub use peer::LinkState;
pub(crate) use seats::{Seat, Seats};
pub use served::{Adapters, Artifacts, Served};
pub use server::{ServerConfig, WorkerServer};
