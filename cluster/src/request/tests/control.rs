//! The calls beside inference: description, files, draining, news.

use bytes::Bytes;
use engine::{BlockHash, KvEvent, KvEvents, SequenceHash, StoredBlock, WorkerLoad};
use futures_util::{FutureExt, StreamExt, future, stream};
use tokio::sync::Notify;

use super::*;

const LOAD: WorkerLoad = WorkerLoad {
    waiting_requests: 1,
    running_sequences: 2,
    used_blocks: 3,
    cached_blocks: 4,
    total_blocks: 5,
    block_tokens: 16,
};

fn told(events: &KvEvents) -> Served {
    let script = vec![Step::Output(tokens(&[1])), Step::Sleep(LONG)];
    Served {
        card: Bytes::from_static(b"{}"),
        load: Some(Arc::new(|| LOAD)),
        events: Some(events.clone()),
        ..generates(Scripted::<GenerateRequest>::new(script))
    }
}

struct Files;

impl Artifacts for Files {
    fn artifact(&self, hash: &str) -> Result<Bytes> {
        match hash {
            "large" => Ok(vec![5; 1_000_000].into()),
            "empty" => Ok(Bytes::new()),
            _ => Err(Error::not_found(format!("no file `{hash}`"))),
        }
    }
}

#[tokio::test]
async fn a_worker_says_what_it_serves() {
    let events = KvEvents::new(8);
    let pair = Pair::new(told(&events)).await;
    pair.server.insert("another", infers(identity()));
    let described = pair.worker.describe(LONG).await.unwrap();
    let model =
        DescribedModel { name: "model".into(), card: Bytes::from_static(b"{}"), load: Some(LOAD) };
    let another = DescribedModel { name: "another".into(), ..DescribedModel::default() };
    assert_eq!(described, Described { models: vec![another, model], is_draining: false });
}

#[tokio::test]
async fn files_come_whole_or_not_at_all() {
    let server = WorkerServer::new(ServerConfig::default(), Some(Arc::new(Files)));
    let tasks = Tasks::new();
    let address = serve(&server, &tasks, "127.0.0.1:0").await.to_string();
    let worker = RemoteWorker::new(Tcp::new(address), ClientConfig::default(), &tasks).unwrap();
    let large = worker.fetch("large", 1_000_000, LONG).await.unwrap();
    assert!(large.len() == 1_000_000 && large.iter().all(|byte| *byte == 5));
    assert!(worker.fetch("empty", 0, LONG).await.unwrap().is_empty());
    let error = worker.fetch("large", 999_999, LONG).await.unwrap_err();
    assert_eq!(error.message(), "file `large` of a worker: expected at most 999999 bytes");
    let error = worker.fetch("none", 10, LONG).await.unwrap_err();
    assert_eq!((error.kind(), error.message()), (ErrorKind::NotFound, "no file `none`"));
    let bare = Pair::new(Served::default()).await;
    let error = bare.worker.fetch("x", 10, LONG).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

/// Reads slowly, and counts the threads that do.
#[derive(Default)]
struct SlowFiles {
    reading: AtomicUsize,
    most: AtomicUsize,
}

impl Artifacts for SlowFiles {
    fn artifact(&self, _hash: &str) -> Result<Bytes> {
        let reading = self.reading.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(reading, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(10));
        // The first one waits for a second one.
        let begun = Instant::now();
        while self.most.load(Ordering::SeqCst) < 2 && begun.elapsed() < LONG / 2 {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.reading.fetch_sub(1, Ordering::SeqCst);
        Ok(Bytes::from_static(b"content"))
    }
}

#[tokio::test]
async fn only_so_many_threads_read_files() {
    let files = Arc::new(SlowFiles::default());
    let server = WorkerServer::new(ServerConfig::default(), Some(files.clone()));
    let tasks = Tasks::new();
    let address = serve(&server, &tasks, "127.0.0.1:0").await.to_string();
    let worker = RemoteWorker::new(Tcp::new(address), ClientConfig::default(), &tasks).unwrap();
    let fetches = (0..50).map(|_| worker.fetch("file", 10, LONG));
    let fetched = futures_util::future::join_all(fetches).await;
    assert!(fetched.into_iter().all(|content| content.unwrap() == "content"));
    let most = files.most.load(Ordering::SeqCst);
    assert!((2..=8).contains(&most), "{most} threads");
}

#[tokio::test]
async fn news_are_numbered_and_what_was_missed_is_a_gap() {
    let events = KvEvents::new(4);
    let pair = Pair::new(told(&events)).await;
    let options = WatchOptions { kv_events: true, ..WatchOptions::default() };
    let mut news = pair.worker.watch("model", options).await.unwrap();
    // It is accepted, and so it reads.
    events.publish(|| KvEvent::Cleared);
    let removed = KvEvent::Removed { blocks: Vec::new() };
    events.publish(|| removed.clone());
    let heard = news.next().await.unwrap().unwrap();
    let epoch = 0;
    assert_eq!(heard, News::Kv { epoch, sequence: 1, event: KvEvent::Cleared });
    assert_eq!(
        news.next().await.unwrap().unwrap(),
        News::Kv { epoch, sequence: 2, event: removed }
    );
    // The worker's reader has no chance to run in between.
    (0..10).for_each(|_| events.publish(|| KvEvent::Cleared));
    assert_eq!(news.next().await.unwrap().unwrap(), News::Gap { sequence: 8, missed: 6 });
    for sequence in 9..=12 {
        let heard = news.next().await.unwrap().unwrap();
        assert_eq!(heard, News::Kv { epoch, sequence, event: KvEvent::Cleared });
    }
    assert!(news.next().now_or_never().is_none());
    let unknown = pair.worker.watch("nobody", options).await;
    assert_eq!(unknown.err().unwrap().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn a_stream_may_begin_with_what_can_be_found() {
    let events = KvEvents::new(8);
    let pair = Pair::new(told(&events)).await;
    let blocks: Vec<_> = (0..100_000)
        .map(|number| StoredBlock { sequence: SequenceHash(number), block: BlockHash(number) })
        .collect();
    events.publish(|| KvEvent::Stored { parent: None, blocks, block_tokens: 16 });
    let options = WatchOptions { kv_events: true, snapshot: true, ..WatchOptions::default() };
    for sequence in 1..=2 {
        let mut news = pair.worker.watch("model", options).await.unwrap();
        let News::Held(mut held) = news.next().await.unwrap().unwrap() else {
            panic!("no snapshot");
        };
        held.blocks.sort_by_key(|block| block.0);
        assert!(held.blocks.iter().map(|block| block.0).eq(sequence - 1..100_000));
        assert_eq!(held.sequence, sequence);
        events.publish(|| KvEvent::Removed { blocks: vec![SequenceHash(sequence - 1)] });
        let News::Kv { epoch, sequence: next, .. } = news.next().await.unwrap().unwrap() else {
            panic!("no event");
        };
        assert_eq!((epoch, next), (held.epoch, sequence + 1));
    }
}

#[tokio::test]
async fn loads_come_at_the_interval() {
    let pair = Pair::new(told(&KvEvents::new(4))).await;
    let interval = Duration::from_millis(10);
    let options = WatchOptions { load_interval: Some(interval), ..WatchOptions::default() };
    let started = Instant::now();
    let news = pair.worker.watch("model", options).await.unwrap();
    let heard: Vec<_> = news.take(5).map(Result::unwrap).collect().await;
    assert_eq!(heard, vec![News::Load(LOAD); 5]);
    assert!(started.elapsed() >= 4 * interval - Duration::from_millis(2));
}

#[tokio::test]
async fn who_watches_keeps_no_model_that_was_replaced() {
    let loaded = |engine: &Arc<()>| {
        let engine = engine.clone();
        let load = move || {
            let _engine = &engine;
            LOAD
        };
        Served { load: Some(Arc::new(load)), ..Served::default() }
    };
    let (old, new) = (Arc::new(()), Arc::new(()));
    let pair = Pair::new(loaded(&old)).await;
    let interval = Some(Duration::from_millis(10));
    let options = WatchOptions { load_interval: interval, ..WatchOptions::default() };
    let mut news = pair.worker.watch("model", options).await.unwrap();
    assert_eq!(news.next().await.unwrap().unwrap(), News::Load(LOAD));
    pair.server.insert("model", loaded(&new));
    until(|| Arc::strong_count(&old) == 1).await;
    let rest: Vec<_> = news.collect().await;
    assert!(rest.len() < 100 && rest.iter().all(Result::is_ok), "it ended: {rest:?}");
    // The same again is no other one.
    let mut news = pair.worker.watch("model", options).await.unwrap();
    let same = pair.server.shared.served("model").unwrap();
    pair.server.insert("model", Served { card: "{}".into(), ..(*same).clone() });
    tokio::time::sleep(Duration::from_millis(50)).await;
    let heard: Vec<_> = news.by_ref().take(20).collect().await;
    assert!(heard.len() == 20 && heard.iter().all(Result::is_ok), "{heard:?}");
    pair.server.remove("model");
    assert!(news.collect::<Vec<_>>().await.len() < 100, "it ended");
    pair.server.insert("model", loaded(&new));
    let mut news = pair.worker.watch("model", options).await.unwrap();
    assert_eq!(news.next().await.unwrap().unwrap(), News::Load(LOAD));
}

#[tokio::test]
async fn a_worker_without_work_tells_its_load_when_something_comes() {
    let rest = WorkerLoad { waiting_requests: 0, running_sequences: 0, ..LOAD };
    let now = Arc::new(std::sync::Mutex::new(rest));
    let (read, events) = (now.clone(), KvEvents::new(4));
    let load =
        Some(Arc::new(move || *read.lock().unwrap()) as Arc<dyn Fn() -> WorkerLoad + Send + Sync>);
    let pair = Pair::new(Served { load, ..told(&events) }).await;
    let (interval, silence) = (Duration::from_millis(10), Duration::from_millis(150));
    let options = WatchOptions { load_interval: Some(interval), ..WatchOptions::default() };
    let mut news = pair.worker.watch("model", options).await.unwrap();
    assert_eq!(news.next().await.unwrap().unwrap(), News::Load(rest));
    assert!(tokio::time::timeout(silence, news.next()).await.is_err(), "nothing has changed");
    // While a call is open it is told each time: frontends compare it with their own calls.
    let mut stream = pair.model().call(prompt(), context()).await.unwrap();
    stream.next().await.unwrap().unwrap();
    for _ in 0..3 {
        assert_eq!(news.next().await.unwrap().unwrap(), News::Load(rest));
    }
    // An engine may need a while to let go of what nobody reads.
    *now.lock().unwrap() = LOAD;
    drop(stream);
    until(|| pair.server.open_calls() == 0).await;
    let told = |wanted: WorkerLoad| move |heard: &News| *heard == News::Load(wanted);
    while !told(LOAD)(&news.next().await.unwrap().unwrap()) {}
    let after = WorkerLoad { cached_blocks: 9, ..rest };
    *now.lock().unwrap() = after;
    while !told(after)(&news.next().await.unwrap().unwrap()) {}
    assert!(tokio::time::timeout(silence, news.next()).await.is_err(), "it is told once");
}

#[tokio::test]
async fn a_draining_worker_refuses_and_finishes() {
    let end = Arc::new(Notify::new());
    let ending = end.clone();
    let engine = Function(move |_: GenerateRequest, _| {
        let ending = ending.clone();
        let end = async move {
            ending.notified().await;
            None
        };
        let outputs = [future::ready(Some(Ok(tokens(&[1])))).boxed(), end.boxed()];
        let outputs = stream::iter(outputs).filter_map(|output| output);
        Ok(Box::pin(outputs) as OutputStream<GenerateRequest>)
    });
    let pair = Pair::new(generates(engine)).await;
    let mut state = pair.worker.state();
    let mut news = pair.worker.watch("model", WatchOptions::default()).await.unwrap();
    let mut stream = pair.model().call(prompt(), context()).await.unwrap();
    stream.next().await.unwrap().unwrap();
    assert_eq!(pair.worker.drain(LONG).await.unwrap(), 1);
    assert!(*pair.server.draining().borrow());
    assert_eq!(news.next().await.unwrap().unwrap(), News::Draining);
    assert!(news.next().await.is_none());
    let refused = pair.model().call(prompt(), context()).await.err().unwrap();
    assert_eq!((refused.kind(), refused.code()), (ErrorKind::Unavailable, Some("draining")));
    assert!(pair.worker.describe(LONG).await.unwrap().is_draining);
    let rest = async {
        end.notify_one();
        stream.collect::<Vec<_>>().await
    };
    let (is_done, rest) = tokio::join!(pair.server.shut_down(LONG), rest);
    assert!(is_done && rest.is_empty(), "{rest:?}");
    state.wait_for(|state| *state == LinkState::Lost).await.unwrap();
}

#[tokio::test]
async fn an_answer_that_nobody_has_taken_yet_leaves_before_the_worker_does() {
    let data = Bytes::from(vec![7; 12 << 20]);
    let big = tensor::Tensor::new("y", tensor::Datatype::Uint8, vec![12 << 20], data);
    let engine = Function(move |_: InferRequest, _| {
        let output = InferOutput { tensors: vec![big.clone()], ..InferOutput::default() };
        Ok(Box::pin(stream::iter([Ok(output)])) as OutputStream<InferRequest>)
    });
    let pair = Pair::new(infers(engine)).await;
    let mut stream = pair.model().call(InferRequest::default(), context()).await.unwrap();
    let end = async {
        let is_done = pair.server.shut_down(LONG).await;
        pair.there.cancel();
        is_done
    };
    let read = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let output = stream.next().await.unwrap().unwrap();
        assert!(stream.next().await.is_none());
        output.tensors[0].data.len()
    };
    assert_eq!(tokio::join!(end, read), (true, 12 << 20));
    assert_eq!(pair.server.connections(), 0);
}

#[tokio::test]
async fn connections_without_calls_do_not_keep_a_worker() {
    let pair = Pair::new(infers(identity())).await;
    // It speaks HTTP/2, and then never again: farewells are not heard.
    let stream = tokio::net::TcpStream::connect(pair.address).await.unwrap();
    let (_sender, silent) = h2::client::handshake(stream).await.unwrap();
    // And one that says nothing at all.
    let _mute = tokio::net::TcpStream::connect(pair.address).await.unwrap();
    until(|| pair.server.connections() == 1).await;
    let started = Instant::now();
    assert!(pair.server.shut_down(LONG).await);
    assert!(started.elapsed() < LONG / 2, "{:?}", started.elapsed());
    drop(silent);
}

#[tokio::test]
async fn a_call_that_outlives_the_grace_is_told_of() {
    let engine = Scripted::<GenerateRequest>::new(vec![Step::Sleep(LONG)]);
    let pair = Pair::new(generates(engine)).await;
    let mut stream = pair.model().call(prompt(), context()).await.unwrap();
    assert!(!pair.server.shut_down(Duration::from_millis(20)).await);
    pair.there.cancel();
    assert_eq!(stream.next().await.unwrap().unwrap_err().kind(), ErrorKind::Unavailable);
}
