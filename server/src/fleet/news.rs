//! What a worker tells of one model: how busy it is, and what its KV cache holds.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use cluster::events::{BlockSink, Counters, Listen, Told, Watch, follow};
use cluster::instance::{Instance, InstanceId};
use cluster::request::RemoteWorker;
use engine::{KvEvent, SequenceHash, Tasks};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use router::{Claim, PrefixIndex, Tier, WorkerId};
use tokio::time::sleep;

use super::planes::Planes;
use crate::pipeline::Candidate;
use crate::support::metrics::{Metrics, ModelLabels};

/// How often workers tell their load.
const LOAD_INTERVAL: Duration = Duration::from_millis(250);

/// How often what was heard is added to the metrics.
const COUNT_INTERVAL: Duration = Duration::from_secs(1);

/// The wait before a worker that tells nothing is asked again, and between two looks at NATS.
const AGAIN: Duration = Duration::from_secs(1);

/// Where the news of a model's workers go.
pub(super) struct EventSubscriber {
    planes: Arc<Planes>,
    heard: Heard,
    counted: Mutex<Counted>,
}

/// What was heard of a model's workers.
#[derive(Default)]
pub(super) struct Heard {
    /// What their KV caches hold.
    pub(super) index: Arc<PrefixIndex>,
    /// How many events there were, of all of them.
    pub(super) counters: Counters,
}

/// A worker that tells, over whatever carries its news.
#[async_trait]
pub(super) trait EventSource: Send + Sync {
    /// Returns whose it is.
    fn worker(&self) -> InstanceId;
    /// Returns the way on which its news come now, and whether there may be a better one later.
    fn way(&self) -> (Box<dyn Listen>, bool);
    /// Waits until there is a better one.
    async fn better(&self);
}

/// A worker to be heard.
pub(super) struct Publisher {
    pub(super) instance: Arc<Instance>,
    pub(super) worker: RemoteWorker,
    pub(super) model: Arc<str>,
    /// Whether it has a load to tell, and KV events.
    pub(super) has_load: bool,
    pub(super) has_kv: bool,
}

impl EventSubscriber {
    /// Makes the subscriber of a model; what it hears is counted by a task of `tasks`.
    pub(super) fn new(
        model: &str,
        planes: Arc<Planes>,
        metrics: &Metrics,
        tasks: &Tasks,
    ) -> Arc<Self> {
        let labels = ModelLabels { model: model.into() };
        let of = |family: &Family<ModelLabels, Counter>| (family.get_or_create(&labels).clone(), 0);
        let counted = [of(&metrics.kv_events), of(&metrics.kv_event_gaps), of(&metrics.kv_resyncs)];
        let (heard, counted) = (Heard::default(), Mutex::new(Counted(counted)));
        let subscriber = Arc::new(Self { planes, heard, counted });
        tasks.spawn("worker news counted", count(Arc::downgrade(&subscriber)));
        subscriber
    }

    /// Returns what the workers' KV caches hold.
    pub(super) fn index(&self) -> Arc<PrefixIndex> {
        self.heard.index.clone()
    }

    /// Hears a worker as long as it is a candidate.
    pub(super) async fn hear(self: Arc<Self>, publisher: Publisher, told: Weak<Candidate>) {
        let source = Planned { planes: &self.planes, publisher: &publisher };
        self.heard.hear(&source, &told).await;
    }
}

impl Heard {
    /// Hears a worker as long as it is a candidate.
    pub(super) async fn hear(&self, source: &impl EventSource, told: &Weak<Candidate>) {
        // One that is gone already may be back as another: its claim is the one that counts.
        let Some(gone) = told.upgrade().map(|candidate| candidate.gone()) else { return };
        let claim = self.index.claim(WorkerId(source.worker().0));
        tokio::select! {
            () = self.listen(source, claim, told) => {}
            () = gone => {}
        }
        self.index.forget(claim);
    }

    async fn listen(&self, source: &impl EventSource, claim: Claim, told: &Weak<Candidate>) {
        let sink = Claimed { index: &self.index, claim };
        while told.strong_count() > 0 {
            let (way, may_be_better) = source.way();
            let heard = |news: &Told| note(told, news);
            let following = follow(&*way, source.worker(), (&sink, &self.counters), heard);
            tokio::select! {
                _ = following => sleep(AGAIN).await,
                () = source.better(), if may_be_better => {}
            }
        }
    }
}

/// A worker's part of the index, as long as nobody else claims it.
struct Claimed<'a> {
    index: &'a PrefixIndex,
    claim: Claim,
}

impl BlockSink for Claimed<'_> {
    fn replace(&self, blocks: &[SequenceHash]) {
        self.index.replace(self.claim, blocks);
    }

    fn apply(&self, event: &KvEvent) {
        self.index.apply(self.claim, Tier::Device, event);
    }
}

/// A worker that tells over the planes of this frontend.
struct Planned<'a> {
    planes: &'a Planes,
    publisher: &'a Publisher,
}

#[async_trait]
impl EventSource for Planned<'_> {
    fn worker(&self) -> InstanceId {
        self.publisher.instance.id
    }

    fn way(&self) -> (Box<dyn Listen>, bool) {
        let Self { planes, publisher } = self;
        let instance = &publisher.instance;
        let watch = Watch {
            worker: publisher.worker.clone(),
            model: publisher.model.to_string(),
            load_interval: publisher.has_load.then_some(LOAD_INTERVAL),
            kv_events: publisher.has_kv,
        };
        // Nothing but the end is told of the others, which comes with the call.
        let is_nats = publisher.has_load && planes.has_nats_events(instance);
        let way: Box<dyn Listen> = match is_nats {
            true => planes.listen(instance, watch),
            false => Box::new(watch),
        };
        (way, !is_nats && publisher.has_load && planes.may_have_nats(instance))
    }

    async fn better(&self) {
        while !self.planes.has_nats_events(&self.publisher.instance) {
            sleep(AGAIN).await;
        }
    }
}

/// Counts what a subscriber hears, as long as there is one.
async fn count(subscriber: Weak<EventSubscriber>) {
    while let Some(subscriber) = subscriber.upgrade() {
        subscriber
            .counted
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .count(&subscriber.heard.counters);
        drop(subscriber);
        sleep(COUNT_INTERVAL).await;
    }
}

/// Takes what is no KV event; returns whether there is anybody to tell.
fn note(told: &Weak<Candidate>, news: &Told) -> bool {
    let Some(candidate) = told.upgrade() else {
        return false;
    };
    match news {
        Told::Load(load) => candidate.set_load(*load),
        Told::Draining => candidate.set_draining(true),
        Told::Kv(..) | Told::Head(_) | Told::Held(_) | Told::Gap => {}
    }
    true
}

/// The metrics of events, and how much of the counters is in them.
struct Counted([(Counter, u64); 3]);

impl Counted {
    fn count(&mut self, counters: &Counters) {
        let now = [&counters.events, &counters.gaps, &counters.resyncs];
        for ((metric, before), now) in self.0.iter_mut().zip(now.map(load)) {
            metric.inc_by(now.saturating_sub(std::mem::replace(before, now)));
        }
    }
}

fn load(counter: &AtomicU64) -> u64 {
    counter.load(Relaxed)
}

#[cfg(test)]
mod tests {
    use cluster::request::{ClientConfig, Tcp};
    use engine::SequenceHash;
    use prometheus_client::registry::Registry;

    use super::*;

    #[tokio::test]
    async fn a_listener_that_comes_late_takes_nothing_away() {
        let (tasks, metrics) = (Tasks::new(), Metrics::new(&mut Registry::default()));
        let subscriber = EventSubscriber::new("m", Arc::default(), &metrics, &tasks);
        let instance = Arc::new(Instance::new("default".parse().unwrap(), "grpc://127.0.0.1:1"));
        let claim = subscriber.heard.index.claim(WorkerId(instance.id.0));
        let tcp = Tcp::new("127.0.0.1:1");
        let worker = RemoteWorker::new(tcp, ClientConfig::default(), &tasks).unwrap();
        let (model, has_load, has_kv) = ("m".into(), true, true);
        let publisher = Publisher { instance, worker, model, has_load, has_kv };
        subscriber.clone().hear(publisher, Weak::new()).await;
        subscriber.heard.index.replace(claim, &[SequenceHash(7)]);
        assert_eq!(subscriber.heard.index.blocks(), 1);
    }
}
