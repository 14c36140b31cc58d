//! Events over a real `nats-server`, which has to be installed.

mod missed;

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use engine::{BlockHash, KvEvent, KvEvents, SequenceHash, StoredBlock, WorkerLoad};
use tempfile::tempdir;
use tokio::net::TcpListener;
use tokio::time::sleep;

use super::super::tests::HeldBlocks;
use super::super::{Counters, Listen, Told, Watch, follow};
use super::*;
use crate::nats::tests::Server;
use crate::request::{ClientConfig, RemoteWorker, Served, ServerConfig, Tcp, WorkerServer};

const WORKER: InstanceId = InstanceId(3);

/// A worker that publishes, and a frontend that listens.
struct Fleet {
    events: KvEvents,
    publisher: NatsPublisher,
    frontend: Connection,
    model: NatsModel,
    held: HeldBlocks,
    counters: Counters,
    loads: AtomicU64,
    tasks: Tasks,
}

impl Fleet {
    async fn start(nats: &Server) -> Self {
        let tasks = Tasks::new();
        let (here, frontend) =
            (nats.connect(nats.config()).await, nats.connect(nats.config()).await);
        let events = KvEvents::new(1 << 12);
        let server = WorkerServer::new(ServerConfig::default(), None);
        server.insert("model", Served { events: Some(events.clone()), ..Served::default() });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (serving, owner) = (server.clone(), tasks.clone());
        tasks.spawn("worker", async move { serving.serve(listener, &owner).await });
        let namespace: Namespace = "a.b_c".parse().unwrap();
        let publisher = NatsPublisher::new(&here, (&namespace, WORKER), &server, &tasks);
        let load: Arc<dyn Fn() -> WorkerLoad + Send + Sync> = Arc::new(WorkerLoad::default);
        let source = Source { events: Some(events.clone()), load: Some(load) };
        publisher.set(vec![("model".into(), source.clone())]);
        // The same again changes nothing.
        publisher.set(vec![("model".into(), source)]);
        let worker = RemoteWorker::new(Tcp::new(address), ClientConfig::default(), &tasks).unwrap();
        let watch = Watch { worker, model: "model".into(), load_interval: None, kv_events: true };
        // The stream is there before the frontend.
        let (context, name) =
            (jetstream::new(frontend.client.clone()), stream_name(&event_subject(&namespace)));
        let begun = Instant::now();
        while nats.has_jetstream() && context.get_stream(&name).await.is_err() {
            assert!(begun.elapsed() < Duration::from_secs(60), "no stream in 60 s");
            sleep(Duration::from_millis(20)).await;
        }
        let plane = NatsEvents::new(&frontend, &tasks);
        let model = plane.model(WORKER, &event_subject(&namespace), watch);
        let (held, counters, loads) = Default::default();
        Self { events, publisher, frontend, model, held, counters, loads, tasks }
    }

    fn store(&self, numbers: std::ops::Range<u64>) {
        for number in numbers {
            let block = StoredBlock { sequence: SequenceHash(number), block: BlockHash(number) };
            let blocks = vec![block];
            self.events.publish(|| KvEvent::Stored { parent: None, blocks, block_tokens: 16 });
        }
    }

    async fn until(&self, what: &str, fact: impl Fn(&Self) -> bool) {
        let begun = Instant::now();
        while !fact(self) {
            assert!(begun.elapsed() < Duration::from_secs(60), "not in 60 s: {what}");
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Listens while something happens.
    async fn during(&self, happens: impl Future<Output = ()>) {
        let hear = |told: &Told| {
            self.loads.fetch_add(u64::from(matches!(told, Told::Load(_))), Relaxed);
            true
        };
        tokio::select! {
            ended = follow(&self.model, WORKER, (&self.held, &self.counters), hear) => {
                panic!("the plane ended: {ended:?}");
            }
            () = happens => {}
        }
    }

    fn gaps_and_resyncs(&self) -> (u64, u64) {
        (self.counters.gaps.load(Relaxed), self.counters.resyncs.load(Relaxed))
    }
}

/// A frontend that was cut off, with or without JetStream.
async fn cut_off(nats: &Server) -> (u64, u64) {
    let fleet = Fleet::start(nats).await;
    fleet.store(0..100);
    let happens = async {
        fleet.until("the first blocks", |fleet| fleet.held.count() == 100).await;
        fleet.store(100..1000);
        fleet.until("all blocks", |fleet| fleet.held.count() == 1000).await;
        assert_eq!(fleet.gaps_and_resyncs(), (1, 1));
        let loads = fleet.loads.load(Relaxed);
        let mut losses = fleet.frontend.losses();
        fleet.frontend.client.force_reconnect().await.unwrap();
        losses.changed().await.unwrap();
        fleet.store(1000..1500);
        fleet.until("what came meanwhile", |fleet| fleet.held.count() == 1500).await;
        fleet.store(1500..1600);
        fleet.until("what came then", |fleet| fleet.held.count() == 1600).await;
        fleet.until("loads", |fleet| fleet.loads.load(Relaxed) > loads).await;
    };
    fleet.during(happens).await;
    let seen = fleet.gaps_and_resyncs();
    fleet.publisher.set(Vec::new());
    fleet.tasks.cancel();
    seen
}

#[tokio::test]
async fn a_message_of_events_is_no_larger_than_nats_takes() {
    let nats = Server::start_with(None, None);
    let fleet = Fleet::start(&nats).await;
    fleet.store(0..1);
    let happens = async {
        fleet.until("the first block", |fleet| fleet.held.count() == 1).await;
        // Ten of them have several megabytes, and come at once.
        for number in 0..10 {
            let first = 1_000_000 + number * 20_000;
            let stored =
                |number| StoredBlock { sequence: SequenceHash(number), block: BlockHash(number) };
            let blocks = (first..first + 20_000).map(stored).collect();
            fleet.events.publish(|| KvEvent::Stored { parent: None, blocks, block_tokens: 16 });
        }
        fleet.until("all blocks", |fleet| fleet.held.count() == 200_001).await;
    };
    fleet.during(happens).await;
    assert_eq!(fleet.gaps_and_resyncs(), (1, 1), "nothing was lost on the way");
    fleet.tasks.cancel();
}

#[tokio::test]
async fn a_namespace_is_heard_as_long_as_somebody_listens() {
    let nats = Server::start_with(None, None);
    let fleet = Fleet::start(&nats).await;
    let before = fleet.tasks.count();
    for _ in 0..2 {
        let one = fleet.model.listen().await.unwrap();
        let other = fleet.model.listen().await.unwrap();
        assert_eq!(fleet.tasks.count(), before + 1);
        drop(one);
        sleep(Duration::from_millis(50)).await;
        assert_eq!(fleet.tasks.count(), before + 1);
        drop(other);
        fleet.until("nobody listens", |fleet| fleet.tasks.count() == before).await;
    }
    fleet.store(0..1);
    fleet.during(fleet.until("it is heard again", |fleet| fleet.held.count() == 1)).await;
    fleet.tasks.cancel();
}

#[tokio::test]
async fn a_stream_that_is_made_later_is_used_then() {
    let nats = Server::start_with(None, Some(tempdir().unwrap()));
    let fleet = Fleet::start(&nats).await;
    let context = async_nats::jetstream::new(fleet.frontend.client.clone());
    let namespace: Namespace = "a.b_c".parse().unwrap();
    let name = stream_name(&event_subject(&namespace));
    context.delete_stream(&name).await.unwrap();
    fleet.store(0..1);
    let happens = async {
        fleet.until("it is heard without", |fleet| fleet.held.count() == 1).await;
        let subjects = vec![kv_subject(&event_subject(&namespace), "*")];
        let config = stream::Config { name: name.clone(), subjects, ..stream::Config::default() };
        let mut stream = context.create_stream(config).await.unwrap();
        let begun = Instant::now();
        while stream.info().await.unwrap().state.consumer_count == 0 {
            assert!(begun.elapsed() < Duration::from_secs(60), "nobody reads it");
            sleep(Duration::from_millis(50)).await;
        }
        fleet.store(1..10);
        fleet.until("it is heard with it", |fleet| fleet.held.count() == 10).await;
    };
    fleet.during(happens).await;
    fleet.tasks.cancel();
}

#[tokio::test]
async fn what_was_missed_is_replayed() {
    let nats = Server::start_with(None, Some(tempdir().unwrap()));
    assert_eq!(cut_off(&nats).await, (1, 1));
}

#[tokio::test]
async fn without_jetstream_what_was_missed_is_asked_for() {
    let nats = Server::start_with(None, None);
    let (gaps, resyncs) = cut_off(&nats).await;
    assert!(gaps >= 1 && resyncs >= 1);
}
