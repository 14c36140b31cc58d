//! Blocks between two real schedulers over a real connection, and everything that can be wrong.

use cluster::card::{Input, Kind};
use cluster::request::{ServerConfig, WorkerServer};
use engine::{GenerateOutput, Salt, StopConditions};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use worker::generate::GenerateEngine;

use super::*;
use crate::pipeline::testing::scheduler;

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(60);

/// A worker of a role.
struct Worker {
    scheduler: Arc<GenerateEngine>,
    handoffs: Arc<Handoffs>,
    served: Served,
    server: WorkerServer,
    tasks: Tasks,
}

impl Worker {
    async fn start(role: Role, timeout: Duration) -> Self {
        let (scheduler, tasks) = (scheduler(), Tasks::new());
        let metrics = Arc::new(Metrics::new(&mut Registry::default()));
        let handoffs = Handoffs::new((role, timeout), Arc::default(), metrics, &tasks);
        let server = WorkerServer::new(ServerConfig::default(), None);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("grpc://{}", listener.local_addr().unwrap());
        handoffs.announce(&Instance::new("default".parse().unwrap(), address));
        let served = Served {
            generate: Some(scheduler.clone()),
            blocks: scheduler.store(None),
            ..Served::default()
        };
        let served = handoffs.around(&Card::new("m", Kind::Chat, Input::Token), served);
        server.insert("m", served.clone());
        let (serving, group) = (server.clone(), tasks.clone());
        tasks.spawn("worker", async move { serving.serve(listener, &group).await });
        Self { scheduler, handoffs, served, server, tasks }
    }

    async fn answer(&self, request: &GenerateRequest) -> GenerateOutput {
        let engine = self.served.generate.as_ref().unwrap();
        let mut stream = engine.call(request.clone(), Context::new("r")).await.unwrap();
        let mut whole = GenerateOutput::default();
        while let Some(output) = stream.next().await {
            let output = output.unwrap();
            whole.tokens.extend(output.tokens);
            (whole.finish, whole.usage) = (output.finish, output.usage);
            whole.kv_source = output.kv_source;
        }
        whole
    }

    /// Waits until the scheduler has told all that it did.
    async fn is_at_rest(&self) {
        while self.scheduler.load().running_sequences > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    fn fallbacks(&self, reason: &'static str) -> u64 {
        let labels = ReasonLabels { model: "m".into(), reason };
        self.handoffs.metrics.transfer_fallbacks.get_or_create(&labels).get()
    }

    fn blocks(&self) -> u64 {
        let labels = ModelLabels { model: "m".into() };
        self.handoffs.metrics.transfer_blocks.get_or_create(&labels).get()
    }
}

fn prompt(first: u32, tokens: u32) -> GenerateRequest {
    let tokens: Vec<TokenId> = (0..tokens).map(|place| (first + place * 7) % 200).collect();
    GenerateRequest::new(tokens, StopConditions::after(9))
}

fn from(request: &GenerateRequest, source: &KvSource) -> GenerateRequest {
    let handoff = Some(KvHandoff::At(Arc::new(source.clone())));
    GenerateRequest { handoff, ..request.clone() }
}

#[tokio::test]
async fn what_a_prefill_worker_computed_is_not_computed_again() {
    let there = Worker::start(Role::Prefill, LONG).await;
    let here = Worker::start(Role::Decode, LONG).await;
    let request = prompt(0, 500);
    let first = there.answer(&request).await;
    let source = first.kv_source.expect("a prefill worker says where its blocks are");
    let second = here.answer(&from(&request, &source)).await;
    assert_eq!((&second.tokens, second.finish), (&first.tokens, first.finish));
    assert!(second.kv_source.is_none(), "a decode worker hands nothing on");
    here.is_at_rest().await;
    let (gave, got) = (there.scheduler.totals(), here.scheduler.totals());
    assert_eq!((gave.exported_blocks, got.imported_blocks, here.blocks()), (31, 31, 31));
    assert_eq!(got.prefill_tokens, 4);
    // What is here already is not asked for.
    let mut longer = request.tokens.to_vec();
    longer.extend(prompt(3, 100).tokens.iter());
    let longer = GenerateRequest { tokens: longer.into(), ..request };
    there.answer(&longer).await;
    here.answer(&from(&longer, &source)).await;
    here.answer(&from(&longer, &source)).await;
    here.is_at_rest().await;
    assert_eq!((here.blocks(), here.scheduler.totals().imported_blocks), (37, 37));
    for reason in ["mismatch", "busy", "unreachable", "late", "evicted", "refused"] {
        assert_eq!(here.fallbacks(reason), 0, "{reason}");
    }
    assert_eq!(here.handoffs.room.available_permits(), MAX_PULLED_KIB as usize);
    // It hears a moment later that nobody asks any more.
    let ended = async {
        while there.server.open_calls() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(LONG, ended).await.unwrap();
}

#[tokio::test]
async fn whatever_is_wrong_with_the_blocks_the_prompt_is_computed() {
    let there = Worker::start(Role::Prefill, LONG).await;
    let here = Worker::start(Role::Decode, LONG).await;
    // Only who waits for nothing is in a hurry: what is to come may take its time.
    let hasty = Worker::start(Role::Decode, Duration::from_millis(300)).await;
    let known = there.answer(&prompt(0, 100)).await.kv_source.unwrap();
    let layout = known.layout;
    // One that listens and never says a word.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = |address: String| KvSource { address, ..(*known).clone() };
    let of = |layout| KvSource { layout, ..(*known).clone() };
    let cases = [
        ("mismatch", of(KvLayout { fingerprint: 1, ..layout })),
        ("mismatch", of(KvLayout { block_tokens: 32, ..layout })),
        ("mismatch", of(KvLayout { salt: Salt(1), ..layout })),
        ("unreachable", at("grpc://127.0.0.1:1".into())),
        ("refused", at("http://127.0.0.1:1".into())),
        ("refused", at("grpcs://127.0.0.1:1".into())),
        ("late", at(format!("grpc://{}", silent.local_addr().unwrap()))),
        ("evicted", (*known).clone()),
    ];
    for (number, (reason, source)) in (1..).zip(cases) {
        let asked = if reason == "late" { &hasty } else { &here };
        let before = asked.fallbacks(reason);
        let answer = asked.answer(&from(&prompt(number, 100), &source)).await;
        assert_eq!(answer.tokens.len(), 9, "{reason}");
        assert_eq!(asked.fallbacks(reason), before + 1, "{reason}: {source:?}");
    }
    assert_eq!((here.blocks(), hasty.blocks()), (0, 0));
    // A worker that is gone.
    there.tasks.cancel();
    there.tasks.wait(LONG).await;
    let answer = here.answer(&from(&prompt(0, 100), &known)).await;
    assert_eq!(answer.tokens.len(), 9);
    assert_eq!(here.fallbacks("unreachable"), 2);
}

/// A cache whose blocks have a content: it has none of any prompt, and gives all of them.
struct Cache {
    layout: KvLayout,
    /// It never says which blocks it has.
    is_stuck: bool,
}

impl Cache {
    fn new() -> Self {
        let layout = KvLayout { block_tokens: 16, block_bytes: 1500, ..KvLayout::default() };
        Self { layout, is_stuck: false }
    }
}

#[async_trait]
impl KvStore for Cache {
    fn layout(&self) -> KvLayout {
        self.layout
    }

    async fn held(&self, _: &Arc<[TokenId]>) -> Result<usize> {
        if self.is_stuck {
            std::future::pending::<()>().await;
        }
        Ok(0)
    }

    async fn read(&self, tokens: &Arc<[TokenId]>, first: usize) -> Result<Vec<Bytes>> {
        let places = (first..tokens.len() / 16).take(4);
        Ok(places.map(|place| Bytes::from(vec![place as u8; 1500])).collect())
    }
}

fn handing(worker: &Worker, cache: Cache) -> Handing {
    let (engine, handoffs) = (worker.scheduler.clone(), worker.handoffs.clone());
    let store = Arc::new(cache);
    Handing { engine, store, source: None, model: "m".into(), handoffs }
}

#[tokio::test]
async fn who_finds_room_for_some_blocks_gets_the_first_ones() {
    let there = Worker::start(Role::Prefill, LONG).await;
    let here = Worker::start(Role::Decode, LONG).await;
    let known = there.answer(&prompt(0, 100)).await.kv_source.unwrap();
    let source = KvSource { layout: Cache::new().layout, ..(*known).clone() };
    let served = Served { blocks: Some(Arc::new(Cache::new())), ..there.served.clone() };
    there.server.insert("m", served);
    let handing = handing(&here, Cache::new());
    let (tokens, context) = (prompt(1, 100).tokens, Context::new("r"));
    let get = async || handing.get(&source, &tokens, &context).await;
    let room = here.handoffs.room.clone();
    // 1,500 bytes are in 2 KiB, two such blocks in 3.
    for (free, count, busy) in [(0, 0, 1), (1, 0, 2), (2, 1, 3), (5, 3, 4), (9, 6, 4)] {
        let others = room.clone().try_acquire_many_owned(MAX_PULLED_KIB - free).unwrap();
        let got = get().await;
        let bytes = |place| got.as_ref().and_then(|blocks| blocks.get(place));
        let came: Vec<u8> = (0..10).map_while(|place| bytes(place).map(|block| block[0])).collect();
        assert_eq!(came, (0..count).collect::<Vec<u8>>(), "{free} KiB are free");
        assert_eq!(here.fallbacks("busy"), busy, "{free} KiB are free");
        drop((got, others));
        assert_eq!(room.available_permits(), MAX_PULLED_KIB as usize);
    }
    // More than there ever is room for.
    let large = KvLayout { block_bytes: 1 << 30, ..source.layout };
    let (count, permit) = handing.room(usize::MAX, &large).unwrap();
    assert_eq!((count, permit.num_permits()), (1, MAX_PULLED_KIB as usize));
    assert_eq!(handing.room(1, &large).err(), Some(Reason::Busy));
    let (count, _permit) = handing.room(9, &KvLayout { block_bytes: 0, ..large }).unwrap();
    assert_eq!(count, 9, "blocks without content need no room");
}

#[tokio::test]
async fn a_cache_that_does_not_say_what_it_has_holds_nobody_up() {
    for (timeout, deadline) in [(Duration::from_millis(50), LONG), (LONG, Duration::ZERO)] {
        let here = Worker::start(Role::Decode, timeout).await;
        let cache = Cache { is_stuck: true, ..Cache::new() };
        let source = KvSource { layout: cache.layout, ..KvSource::default() };
        let context = Context::new("r").with_deadline(Some(Instant::now() + deadline));
        assert!(
            handing(&here, cache).get(&source, &prompt(1, 100).tokens, &context).await.is_none()
        );
        assert_eq!(here.fallbacks("late"), 1);
    }
}

#[tokio::test]
async fn connections_to_workers_are_kept_and_bounded() {
    let here = Worker::start(Role::Decode, LONG).await;
    let source = |port: usize| KvSource {
        address: format!("grpc://127.0.0.1:{port}"),
        ..KvSource::default()
    };
    for port in (1..=MAX_SOURCES + 10).chain([MAX_SOURCES; 3]) {
        here.handoffs.worker(&source(port)).unwrap();
    }
    let sources = here.handoffs.sources.lock().unwrap();
    assert_eq!(sources.len(), MAX_SOURCES);
    assert_eq!(sources.last().unwrap().1.address(), format!("127.0.0.1:{MAX_SOURCES}"));
    assert!(sources.iter().all(|(key, _)| key != "grpc://127.0.0.1:1 "));
}
