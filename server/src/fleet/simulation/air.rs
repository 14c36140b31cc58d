//! The event plane. As NATS it loses, repeats and delays what it carries, and is interrupted; as a
//! call of the worker it keeps the order, and ends with the connection.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use cluster::events::{Listen, Position, Told};
use cluster::instance::InstanceId;
use engine::{KvEventReader, KvNews, KvSnapshot, Result, WorkerLoad};
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::super::news::EventSource;
use super::worker::{Health, Link, Worker, dead};
use super::world::World;

/// The longest time between two loads, in milliseconds.
const LOAD_MS: u64 = 2000;

/// What the plane of a world does to what it carries, each in so many of 100 cases.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plane {
    /// Whether it is a call of the worker, to which nothing of the others happens.
    pub(super) is_call: bool,
    pub(super) lost: u64,
    pub(super) repeated: u64,
    pub(super) late: u64,
    /// Snapshots that do not come.
    pub(super) refused: u64,
    pub(super) interrupted: u64,
}

impl Plane {
    pub(super) fn draw(random: &mut fastrand::Rng) -> Self {
        Self {
            is_call: random.u8(..3) == 0,
            lost: random.u64(..40),
            repeated: random.u64(..20),
            late: random.u64(..40),
            refused: random.u64(..40),
            interrupted: random.u64(..10),
        }
    }
}

/// A worker that tells over the plane.
#[derive(Clone)]
pub(super) struct Air {
    pub(super) worker: Arc<Worker>,
    pub(super) world: Arc<World>,
    pub(super) plane: Plane,
}

#[async_trait]
impl EventSource for Air {
    fn worker(&self) -> InstanceId {
        self.worker.id
    }

    fn way(&self) -> (Box<dyn Listen>, bool) {
        (Box::new(self.clone()), false)
    }

    async fn better(&self) {
        std::future::pending().await
    }
}

#[async_trait]
impl Listen for Air {
    async fn listen(&self) -> Result<BoxStream<'static, Result<Told>>> {
        let link = Link::new(&self.worker, &self.world);
        link.wait(self.world.roll(1, 40)).await?;
        let (sender, receiver) = mpsc::channel(1024);
        let (held, reader) = self.worker.cache.lock().unwrap().snapshot();
        let mut flight =
            Flight { air: self.clone(), link, reader, flying: BTreeMap::new(), sender };
        if self.plane.is_call {
            flight.launch(Told::Held(held));
        }
        self.world.tasks.spawn("air", flight.run());
        let told = stream::unfold(receiver, |mut receiver| async move {
            let told = receiver.recv().await?;
            Some((Ok(told), receiver))
        });
        Ok(told.boxed())
    }

    async fn snapshot(&self) -> Result<KvSnapshot> {
        let Self { worker, world, plane } = self;
        let link = Link::new(worker, world);
        link.wait(world.roll(1, 300)).await?;
        if world.chance(plane.refused) {
            return Err(dead());
        }
        let (held, _) = worker.cache.lock().unwrap().snapshot();
        link.wait(world.roll(1, 300)).await?;
        Ok(held)
    }
}

/// What is on its way to one listener.
struct Flight {
    air: Air,
    link: Link,
    reader: KvEventReader,
    flying: BTreeMap<Instant, Told>,
    sender: mpsc::Sender<Told>,
}

impl Flight {
    async fn run(mut self) {
        let (world, worker) = (self.air.world.clone(), self.air.worker.clone());
        let plane = self.air.plane;
        let mut load_at = world.moments.after(world.roll(1, LOAD_MS));
        loop {
            let due = self.flying.keys().next().copied();
            tokio::select! {
                biased;
                () = self.sender.closed() => return,
                () = self.link.lost(), if plane.is_call || worker.health() == Health::Dead => return,
                () = sleep_until(due.unwrap_or(load_at)), if due.is_some() => {
                    if let Some((_, told)) = self.flying.pop_first() {
                        // What finds no room is lost.
                        let _ = self.sender.try_send(told);
                    }
                }
                news = self.reader.next() => {
                    if !self.publish(news) {
                        return;
                    }
                }
                () = sleep_until(load_at) => {
                    if world.chance(plane.interrupted) {
                        return;
                    }
                    if worker.health() == Health::Well {
                        self.tell_load();
                    }
                    load_at = world.moments.after(world.roll(LOAD_MS / 2, LOAD_MS));
                }
            }
        }
    }

    /// Sends what became of the cache; returns whether more may come.
    fn publish(&mut self, news: Option<KvNews>) -> bool {
        let is_call = self.air.plane.is_call;
        match news {
            Some(KvNews::Event(event)) => self.launch(Told::Kv(self.position(), event)),
            Some(KvNews::Missed(_)) if is_call => self.launch(Told::Gap),
            // The numbers tell.
            Some(KvNews::Missed(_)) => {}
            None if is_call => return false,
            None => (_, self.reader) = self.air.worker.cache.lock().unwrap().snapshot(),
        }
        true
    }

    fn tell_load(&mut self) {
        let streams = u32::try_from(self.air.worker.streams()).unwrap();
        self.launch(Told::Load(WorkerLoad { running_sequences: streams, ..WorkerLoad::default() }));
        if !self.air.plane.is_call {
            self.launch(Told::Head(self.position()));
        }
    }

    fn position(&self) -> Position {
        Position { epoch: self.reader.epoch(), sequence: self.reader.sequence() }
    }

    /// Sends something on its way, or not, or twice.
    fn launch(&mut self, told: Told) {
        let (world, plane) = (&self.air.world, self.air.plane);
        if plane.is_call {
            self.flying.insert(world.moments.after(20), told);
            return;
        }
        if world.chance(plane.lost) {
            return;
        }
        for _ in 0..1 + u8::from(world.chance(plane.repeated)) {
            let time_ms = if world.chance(plane.late) { world.roll(20, 800) } else { 20 };
            self.flying.insert(world.moments.after(time_ms), told.clone());
        }
    }
}
