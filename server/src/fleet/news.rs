//! What a worker tells of one model: how busy it is, and what its KV cache holds.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use cluster::events::{Claim, Counters, Index, Listen, Told, Watch, follow};
use cluster::instance::Instance;
use cluster::request::RemoteWorker;
use engine::Tasks;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use tokio::time::sleep;

use super::planes::Planes;
use crate::metrics::{Metrics, ModelLabels};
use crate::pipeline::Candidate;

/// How often workers tell their load.
const LOAD_INTERVAL: Duration = Duration::from_millis(250);

/// How often what was heard is added to the metrics.
const COUNT_INTERVAL: Duration = Duration::from_secs(1);

/// The wait before a worker that tells nothing is asked again, and between two looks at NATS.
const AGAIN: Duration = Duration::from_secs(1);

/// Where the news of a model's workers go.
pub(super) struct Ear {
    planes: Arc<Planes>,
    index: Arc<Index>,
    /// What was heard of all of them.
    counters: Counters,
    counted: Mutex<Counted>,
}

/// A worker to be heard.
pub(super) struct Speaker {
    pub(super) instance: Arc<Instance>,
    pub(super) worker: RemoteWorker,
    pub(super) model: Arc<str>,
    /// Whether it has a load to tell, and KV events.
    pub(super) has_load: bool,
    pub(super) has_kv: bool,
}

impl Ear {
    /// Makes the ear of a model; what it hears is counted by a task of `tasks`.
    pub(super) fn new(
        model: &str,
        planes: Arc<Planes>,
        metrics: &Metrics,
        tasks: &Tasks,
    ) -> Arc<Self> {
        let labels = ModelLabels { model: model.into() };
        let of = |family: &Family<ModelLabels, Counter>| (family.get_or_create(&labels).clone(), 0);
        let counted = [of(&metrics.kv_events), of(&metrics.kv_event_gaps), of(&metrics.kv_resyncs)];
        let (index, counters, counted) = (Arc::default(), Counters::default(), Counted(counted));
        let ear = Arc::new(Self { planes, index, counters, counted: Mutex::new(counted) });
        tasks.spawn("worker news counted", count(Arc::downgrade(&ear)));
        ear
    }

    /// Hears a worker as long as it is a candidate.
    pub(super) async fn hear(self: Arc<Self>, speaker: Speaker, told: Weak<Candidate>) {
        // One that is gone already may be back as another: its claim is the one that counts.
        let Some(gone) = told.upgrade().map(|candidate| candidate.gone()) else { return };
        let claim = self.index.claim(speaker.instance.id);
        tokio::select! {
            () = self.listen(&speaker, claim, &told) => {}
            () = gone => {}
        }
        self.index.forget(claim);
    }

    async fn listen(&self, speaker: &Speaker, claim: Claim, told: &Weak<Candidate>) {
        let instance = &speaker.instance;
        while told.strong_count() > 0 {
            let watch = Watch {
                worker: speaker.worker.clone(),
                model: speaker.model.to_string(),
                load_interval: speaker.has_load.then_some(LOAD_INTERVAL),
                kv_events: speaker.has_kv,
            };
            // Nothing but the end is told of the others, which comes with the call.
            let is_nats = speaker.has_load && self.planes.has_nats_events(instance);
            let listen: Box<dyn Listen> = match is_nats {
                true => self.planes.listen(instance, watch),
                false => Box::new(watch),
            };
            let heard = |news: &Told| note(told, news);
            let known = (&*self.index, &self.counters);
            let following = follow(&*listen, claim, known, heard);
            let may_be_better = !is_nats && speaker.has_load && self.planes.may_have_nats(instance);
            tokio::select! {
                _ = following => sleep(AGAIN).await,
                () = self.nats_is_back(instance), if may_be_better => {}
            }
        }
    }

    /// Waits until a worker's events could come over NATS.
    async fn nats_is_back(&self, instance: &Instance) {
        while !self.planes.has_nats_events(instance) {
            sleep(AGAIN).await;
        }
    }
}

/// Counts what an ear hears, as long as there is one.
async fn count(ear: Weak<Ear>) {
    while let Some(ear) = ear.upgrade() {
        ear.counted.lock().unwrap_or_else(PoisonError::into_inner).count(&ear.counters);
        drop(ear);
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

    use super::super::planes;
    use super::*;

    #[tokio::test]
    async fn a_listener_that_comes_late_takes_nothing_away() {
        let (tasks, metrics) = (Tasks::new(), Metrics::new(&mut Registry::default()));
        let ear = Ear::new("m", planes::none(), &metrics, &tasks);
        let instance = Arc::new(Instance::new("default".parse().unwrap(), "grpc://127.0.0.1:1"));
        let claim = ear.index.claim(instance.id);
        let tcp = Tcp::new("127.0.0.1:1");
        let worker = RemoteWorker::new(tcp, ClientConfig::default(), &tasks).unwrap();
        let (model, has_load, has_kv) = ("m".into(), true, true);
        let speaker = Speaker { instance, worker, model, has_load, has_kv };
        ear.clone().hear(speaker, Weak::new()).await;
        ear.index.replace(claim, &[SequenceHash(7)]);
        assert_eq!(ear.index.blocks(), 1);
    }
}
