//! The event plane: workers tell what becomes of their KV blocks and how busy they are, frontends
//! listen.
//!
//! Nothing waits for an event: a plane may lose, repeat and reorder. Events are numbered by the
//! worker, so a listener knows when it missed one ([`Tracker`]), and asks the worker over the
//! request plane what can be found now. [`follow`] does that for one model of one worker and keeps
//! a [`BlockSink`] right, such as a router's index.
//!
//! | plane | worker's half | frontend's half |
//! |---|---|---|
//! | in one process | [`KvEvents`] | [`Local`] |
//! | gRPC | the call `Watch` of [`WorkerServer`](crate::request::WorkerServer) | [`Watch`] |
//! | NATS | [`NatsPublisher`] | [`NatsEvents`] |

mod follow;
mod listen;
mod nats;
#[cfg(test)]
mod tests;
mod tracker;

use std::sync::Arc;

use async_trait::async_trait;
use engine::{KvEvent, KvEvents, KvSnapshot, Result, SequenceHash, WorkerLoad};
use futures_util::stream::BoxStream;

pub use follow::{Counters, follow};
pub use listen::{Local, Watch};
pub use nats::{NatsEvents, NatsModel, NatsPublisher, event_subject};
pub use tracker::{Caught, Step, Tracker};

/// The place of a KV event among those of a model of a worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The numbering, as [`KvSnapshot::epoch`] has it.
    pub epoch: u64,
    /// The number in it.
    pub sequence: u64,
}

impl Position {
    /// Returns the place of the last event in a snapshot.
    pub fn of(snapshot: &KvSnapshot) -> Self {
        Self { epoch: snapshot.epoch, sequence: snapshot.sequence }
    }

    /// Returns the place of the event behind this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self { sequence: self.sequence.saturating_add(1), ..self }
    }
}

/// What is heard of a model of a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// How busy it is.
    Load(WorkerLoad),
    /// What became of KV blocks.
    Kv(Position, KvEvent),
    /// Events were told up to here.
    Head(Position),
    /// What can be found.
    Held(KvSnapshot),
    /// Events may have been lost.
    Gap,
    /// The worker goes away.
    Draining,
}

/// Takes what is known of the KV blocks of one model of one worker.
pub trait BlockSink: Send + Sync {
    /// Takes the blocks that can be found now in place of all others.
    fn replace(&self, blocks: &[SequenceHash]);
    /// Takes what became of blocks.
    fn apply(&self, event: &KvEvent);
}

/// The frontend's half of a plane, for one model of one worker.
#[async_trait]
pub trait Listen: Send + Sync {
    /// Listens from now on; the stream ends when the plane does.
    ///
    /// Errors: UNAVAILABLE, and NOT_FOUND where the worker says so.
    async fn listen(&self) -> Result<BoxStream<'static, Result<Told>>>;

    /// Asks what can be found now.
    ///
    /// Errors: UNAVAILABLE, NOT_FOUND.
    async fn snapshot(&self) -> Result<KvSnapshot>;
}

/// What a worker tells of a model.
#[derive(Clone)]
pub struct Source {
    /// What becomes of its KV blocks.
    pub events: Option<KvEvents>,
    /// How busy it is; it is asked often and answers at once.
    pub load: Option<Arc<dyn Fn() -> WorkerLoad + Send + Sync>>,
}

/// The worker's half of a plane, where it has to be told what there is to tell.
pub trait Publish: Send + Sync {
    /// Tells of these models, by name, and of no others from now on.
    fn set(&self, models: Vec<(String, Source)>);
}
