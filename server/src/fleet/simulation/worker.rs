//! A worker and the way to it: it computes, hangs, drains, dies, and connections break.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use cluster::discovery::Lease;
use cluster::instance::InstanceId;
use engine::testing::Function;
use engine::{
    Context, EmbedRequest, EmbedTextRequest, Engine, Error, ErrorKind, GenerateRequest,
    InferRequest, OutputStream, Result, TextRequest,
};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::cache::Cache;
use super::world::World;
use crate::pipeline::Engines;
use crate::pipeline::testing::oracle;

/// What a busy worker says.
pub(super) const RETRY_AFTER: Duration = Duration::from_millis(7);

/// How long a worker may say nothing before its connection counts as dead.
const SILENCE: Duration = Duration::from_secs(8);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Health {
    Well,
    Hung,
    Dead,
}

/// What a worker did with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Busy,
    /// It is dead or drains, or its acceptance was lost.
    Refused,
    /// Its answer was.
    Lost,
}

pub(super) struct Worker {
    pub(super) id: InstanceId,
    /// It takes everything and is never gone for ever.
    pub(super) is_immortal: bool,
    /// The most requests at once.
    pub(super) capacity: usize,
    pub(super) health: watch::Sender<Health>,
    /// Counts connections: what went over an earlier one is lost.
    connection: watch::Sender<u64>,
    /// Whether it takes nothing new.
    pub(super) is_draining: AtomicBool,
    streams: AtomicUsize,
    pub(super) cache: Mutex<Cache>,
    /// Its registration, from its end on until it begins to go.
    pub(super) lease: Mutex<Option<Lease>>,
    /// Since when it is not registered any more.
    left: Mutex<Option<Instant>>,
    /// When the frontend can ask it at the latest; none: it may never be able to.
    known_by: Mutex<Option<Instant>>,
    /// Whether it ever gave a reason to suspect it.
    was_hurt: AtomicBool,
}

impl Worker {
    pub(super) fn new(id: u64, is_immortal: bool, capacity: usize) -> Self {
        Self {
            id: InstanceId(id),
            is_immortal,
            capacity,
            health: watch::Sender::new(Health::Well),
            connection: watch::Sender::new(0),
            is_draining: AtomicBool::new(false),
            streams: AtomicUsize::new(0),
            cache: Mutex::default(),
            lease: Mutex::default(),
            left: Mutex::default(),
            known_by: Mutex::default(),
            was_hurt: AtomicBool::new(false),
        }
    }

    pub(super) fn health(&self) -> Health {
        *self.health.borrow()
    }

    /// Returns whether it is registered and does not go away.
    pub(super) fn is_settled(&self) -> bool {
        self.lease.lock().unwrap().is_some()
    }

    /// Lets it hang; its connections are there until somebody finds that it is silent.
    pub(super) fn hang(&self) {
        self.was_hurt.store(true, Relaxed);
        self.set_known_by(None);
        self.health.send_replace(Health::Hung);
    }

    /// Lets it go on if it hangs.
    pub(super) fn revive(&self) {
        self.health.send_if_modified(|health| {
            let was_hung = *health == Health::Hung;
            if was_hung {
                *health = Health::Well;
            }
            was_hung
        });
    }

    /// Ends its process.
    pub(super) fn die(&self) {
        self.set_known_by(None);
        self.health.send_replace(Health::Dead);
        self.cut();
    }

    /// Ends its connections.
    pub(super) fn cut(&self) {
        self.was_hurt.store(true, Relaxed);
        self.connection.send_modify(|number| *number += 1);
    }

    /// Notes that it is not registered any more.
    pub(super) fn leave(&self) {
        self.left.lock().unwrap().get_or_insert_with(Instant::now);
    }

    /// Returns since when it is not registered any more.
    pub(super) fn left(&self) -> Option<Instant> {
        *self.left.lock().unwrap()
    }

    /// Takes its registration to end it.
    pub(super) fn take_lease(&self) -> Option<Lease> {
        self.set_known_by(None);
        self.lease.lock().unwrap().take()
    }

    /// Returns when the frontend can ask it at the latest.
    pub(super) fn known_by(&self) -> Option<Instant> {
        *self.known_by.lock().unwrap()
    }

    /// Puts that off to a moment; none: until another one is said.
    pub(super) fn set_known_by(&self, at: Option<Instant>) {
        let mut known_by = self.known_by.lock().unwrap();
        *known_by = at.map(|at| known_by.map_or(at, |before| at.max(before)));
    }

    /// Notes that the store is away: who is not known now will not be before it is back.
    pub(super) fn wait_for_store(&self) {
        if self.known_by().is_some_and(|known_by| known_by >= Instant::now()) {
            self.set_known_by(None);
        }
    }

    pub(super) fn was_hurt(&self) -> bool {
        self.was_hurt.load(Relaxed)
    }

    /// Returns how many answers it has under way.
    pub(super) fn streams(&self) -> usize {
        self.streams.load(Relaxed)
    }
}

/// A connection to a worker.
pub(super) struct Link {
    pub(super) worker: Arc<Worker>,
    world: Arc<World>,
    number: u64,
}

impl Link {
    pub(super) fn new(worker: &Arc<Worker>, world: &Arc<World>) -> Self {
        let number = *worker.connection.borrow();
        Self { worker: worker.clone(), world: world.clone(), number }
    }

    /// Waits until the connection is no more.
    pub(super) async fn lost(&self) {
        let mut connections = self.worker.connection.subscribe();
        let _ = connections.wait_for(|number| *number != self.number).await;
    }

    /// Waits for the worker to do something that takes it so long.
    ///
    /// Errors: the connection is lost, or the worker is silent.
    pub(super) async fn wait(&self, time_ms: u64) -> Result<()> {
        tokio::select! {
            biased;
            () = self.lost() => Err(dead()),
            done = self.done(time_ms) => done,
        }
    }

    async fn done(&self, time_ms: u64) -> Result<()> {
        self.world.moments.sleep(time_ms).await;
        let mut health = self.worker.health.subscribe();
        let waking = health.wait_for(|health| *health != Health::Hung);
        let is_awake = timeout(SILENCE, waking).await.is_ok();
        match is_awake && self.worker.health() == Health::Well {
            true => Ok(()),
            false => Err(dead()),
        }
    }
}

/// A worker's engine as a frontend has it.
#[derive(Clone)]
pub(super) struct Remote {
    pub(super) worker: Arc<Worker>,
    pub(super) world: Arc<World>,
}

impl Remote {
    pub(super) fn engines(self) -> Engines {
        Engines {
            generate: Arc::new(self),
            infer: Arc::new(Function(|_: InferRequest, _| Err(dead()))),
            embed: Arc::new(Function(|_: EmbedRequest, _| Err(dead()))),
            text: Arc::new(Function(|_: TextRequest, _| Err(dead()))),
            embed_text: Arc::new(Function(|_: EmbedTextRequest, _| Err(dead()))),
        }
    }

    /// Takes a request in, or says why not.
    fn accept(&self) -> std::result::Result<Open, (Fate, Error)> {
        let worker = &self.worker;
        if worker.is_draining.load(Relaxed) {
            return Err((Fate::Refused, dead().with_code("draining")));
        }
        if worker.streams() >= worker.capacity {
            let error = Error::new(ErrorKind::Overloaded, "the queue is full");
            return Err((Fate::Busy, error.with_retry_after(RETRY_AFTER)));
        }
        worker.streams.fetch_add(1, Relaxed);
        Ok(Open(worker.clone()))
    }
}

/// An answer under way, as long as this lives.
struct Open(Arc<Worker>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Relaxed);
    }
}

/// What is left of an answer.
struct Answer {
    link: Link,
    open: Open,
    id: String,
    outputs: std::vec::IntoIter<engine::GenerateOutput>,
    is_over: bool,
}

impl Answer {
    async fn next(&mut self) -> Option<Result<engine::GenerateOutput>> {
        if self.is_over {
            return None;
        }
        let world = &self.link.world;
        let error = match self.link.wait(world.roll(1, 250)).await {
            Ok(()) => return self.outputs.next().map(Ok),
            Err(error) => error,
        };
        world.note(&self.id, self.open.0.id, Fate::Lost);
        self.is_over = true;
        // Now and then a connection just ends.
        (world.roll(0, 3) > 0).then_some(Err(error))
    }
}

#[async_trait]
impl Engine<GenerateRequest> for Remote {
    async fn call(
        &self,
        request: GenerateRequest,
        context: Context,
    ) -> Result<OutputStream<GenerateRequest>> {
        let Self { worker, world } = self;
        world.check_call(worker);
        world.searches.ask(context.id(), worker.id);
        let refused = |(fate, error)| {
            world.note(context.id(), worker.id, fate);
            error
        };
        let link = Link::new(worker, world);
        let arrived = link.wait(world.roll(1, 40)).await;
        arrived.map_err(|error| refused((Fate::Refused, error)))?;
        let open = self.accept().map_err(refused)?;
        world.with_random(|random| worker.cache.lock().unwrap().act(random));
        let accepted = link.wait(world.roll(1, 40)).await;
        accepted.map_err(|error| refused((Fate::Refused, error)))?;
        let outputs = world.with_random(|random| oracle::pieces(&request, random)).into_iter();
        let answer = Answer { link, open, id: context.id().to_owned(), outputs, is_over: false };
        Ok(Box::pin(futures_util::stream::unfold(answer, |mut answer| async move {
            let item = answer.next().await?;
            Some((item, answer))
        })))
    }
}

pub(super) fn dead() -> Error {
    Error::new(ErrorKind::Unavailable, "the connection is lost")
}
