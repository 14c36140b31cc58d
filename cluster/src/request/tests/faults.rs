//! What fails: workers that die, go silent, never answer or were never there.

use std::sync::atomic::AtomicBool;

use futures_util::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;

fn endless() -> Served {
    let script = vec![Step::Output(tokens(&[1])), Step::Sleep(LONG)];
    generates(Scripted::<GenerateRequest>::new(script))
}

#[tokio::test]
async fn a_worker_that_dies_ends_all_its_streams_at_once_and_may_come_back() {
    let config = ClientConfig {
        backoff_first: Duration::from_millis(5),
        // No ping finds it.
        keepalive_interval: LONG,
        ..ClientConfig::default()
    };
    let pair = Pair::with(endless(), config).await;
    let mut state = pair.worker.state();
    assert_eq!(*state.borrow(), LinkState::Idle);
    let mut streams = Vec::new();
    for _ in 0..50 {
        let mut stream = pair.model().call(prompt(), context()).await.unwrap();
        stream.next().await.unwrap().unwrap();
        streams.push(stream);
    }
    pair.server.insert("hanging", generates(Hanging::default()));
    let hanging = pair.worker.model("hanging");
    let mut waiting = Box::pin(hanging.call(prompt(), context()));
    assert!(futures_util::poll!(waiting.as_mut()).is_pending());
    until(|| pair.server.open_calls() > 0).await;
    assert_eq!(*state.borrow_and_update(), LinkState::Open);

    pair.there.cancel();
    let started = Instant::now();
    state.wait_for(|state| *state == LinkState::Lost).await.unwrap();
    for stream in &mut streams {
        let error = stream.next().await.unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(stream.next().await.is_none());
    }
    assert_eq!(waiting.await.err().unwrap().kind(), ErrorKind::Unavailable);
    assert!(started.elapsed() < LONG / 2, "{:?}", started.elapsed());

    let refused = pair.model().call(prompt(), context()).await.err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::Unavailable);
    let there = Tasks::new();
    serve(&pair.server, &there, &pair.address.to_string()).await;
    let started = Instant::now();
    let mut stream = loop {
        match pair.model().call(prompt(), context()).await {
            Ok(stream) => break stream,
            Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
        }
        assert!(started.elapsed() < LONG, "it did not come back");
    };
    stream.next().await.unwrap().unwrap();
    assert_eq!(*state.borrow_and_update(), LinkState::Open);
    there.cancel();
    pair.here.cancel();
}

/// Forwards to an address until it is told to keep everything.
async fn proxy(to: SocketAddr, tasks: &Tasks, is_cut: Arc<AtomicBool>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let owner = tasks.clone();
    tasks.spawn("proxy", async move {
        loop {
            let (client, _) = listener.accept().await.unwrap();
            let server = TcpStream::connect(to).await.unwrap();
            let ((from_client, to_client), (from_server, to_server)) =
                (client.into_split(), server.into_split());
            for (mut from, mut to) in [(from_client, to_server), (from_server, to_client)] {
                let is_cut = is_cut.clone();
                owner.spawn("proxy", async move {
                    let mut buffer = [0; 4096];
                    while let Ok(length @ 1..) = from.read(&mut buffer).await {
                        if is_cut.load(Ordering::SeqCst) {
                            std::future::pending::<()>().await;
                        }
                        to.write_all(&buffer[..length]).await.unwrap();
                    }
                });
            }
        }
    });
    address
}

#[tokio::test]
async fn a_silent_partition_is_found_by_pings() {
    // The timeout is time for an answer on a busy machine.
    let config = ClientConfig {
        keepalive_interval: Duration::from_millis(50),
        keepalive_timeout: Duration::from_secs(2),
        ..ClientConfig::default()
    };
    let pair = Pair::new(endless()).await;
    let is_cut = Arc::new(AtomicBool::new(false));
    let address = proxy(pair.address, &pair.there, is_cut.clone()).await;
    let worker = RemoteWorker::new(Tcp::new(address.to_string()), config, &pair.here).unwrap();
    let mut stream = worker.model("model").call(prompt(), context()).await.unwrap();
    stream.next().await.unwrap().unwrap();
    // Longer than a ping may take, which here takes a millisecond.
    let quiet = tokio::time::timeout(Duration::from_secs(3), stream.next()).await;
    assert!(quiet.is_err(), "a connection whose pings are answered was given up");
    is_cut.store(true, Ordering::SeqCst);
    // Nothing else finds it before the engine ends.
    let lost = tokio::time::timeout(LONG / 2, stream.next()).await.expect("pings find it");
    assert_eq!(lost.unwrap().unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(*worker.state().borrow(), LinkState::Lost);
}

#[tokio::test]
async fn a_worker_that_takes_connections_and_says_nothing_ends_with_the_deadline() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let tasks = Tasks::new();
    // It is not given up for another reason before.
    let config = ClientConfig { connect_timeout: LONG, ..ClientConfig::default() };
    let worker = RemoteWorker::new(Tcp::new(address), config, &tasks).unwrap();
    let started = Instant::now();
    let call = worker.model("model").call(prompt(), in_time(Duration::from_millis(80))).await;
    assert_eq!(call.err().unwrap().kind(), ErrorKind::DeadlineExceeded);
    assert!(started.elapsed() < LONG / 2, "{:?}", started.elapsed());
    assert_eq!(worker.in_flight(), 0);
}

#[tokio::test]
async fn a_black_hole_is_lost_however_short_its_callers_wait() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let tcp = Tcp::new(listener.local_addr().unwrap().to_string());
    let connections = Arc::new(AtomicUsize::new(0));
    let connector = Counted { tcp, connections: connections.clone() };
    let config = ClientConfig {
        // All the short calls have to end within it.
        connect_timeout: Duration::from_secs(5),
        backoff_first: LONG,
        backoff_max: LONG,
        ..ClientConfig::default()
    };
    let tasks = Tasks::new();
    let worker = RemoteWorker::new(connector, config, &tasks).unwrap();
    let mut state = worker.state();
    let model = worker.model("model");
    for _ in 0..3 {
        let call = model.call(prompt(), in_time(Duration::from_millis(20))).await;
        assert_eq!(call.err().unwrap().kind(), ErrorKind::DeadlineExceeded);
        // What listens need not be a worker.
        assert_eq!(*state.borrow(), LinkState::Idle);
    }
    let lost = state.wait_for(|state| *state == LinkState::Lost);
    tokio::time::timeout(LONG, lost).await.unwrap().unwrap();
    let call = model.call(prompt(), in_time(LONG)).await;
    assert_eq!(call.err().unwrap().kind(), ErrorKind::Unavailable);
    // It failed at once: nothing was tried again.
    assert_eq!(connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn connections_end_with_whoever_calls() {
    let pair = Pair::new(endless()).await;
    pair.server.insert("same", infers(identity()));
    let same = pair.worker.model("same");
    let tensors = same.call(InferRequest::default(), context()).await.unwrap();
    assert_eq!(tensors.count().await, 1);
    let mut stream = pair.worker.model("model").call(prompt(), context()).await.unwrap();
    until(|| pair.server.connections() == 2).await;
    let clone = pair.worker.clone();
    drop((pair.worker, same));
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(pair.server.connections(), 2);
    drop(clone);
    // An answer that is not over keeps its own.
    until(|| pair.server.connections() == 1).await;
    stream.next().await.unwrap().unwrap();
    drop(stream);
    until(|| pair.server.connections() == 0).await;
}

#[tokio::test]
async fn the_time_that_is_left_is_told_when_the_request_is_sent() {
    struct Slow(Tcp);
    #[async_trait]
    impl Connector for Slow {
        async fn connect(&self) -> io::Result<Box<dyn Io>> {
            tokio::time::sleep(Duration::from_millis(300)).await;
            self.0.connect().await
        }
        fn address(&self) -> &str {
            self.0.address()
        }
    }
    let engine = Function(|_: InferRequest, context: Context| {
        let left = context.deadline().unwrap() - Instant::now();
        assert!(left <= LONG - Duration::from_millis(300), "{left:?}");
        let outputs = futures_util::stream::iter([Ok(InferOutput::default())]);
        Ok(Box::pin(outputs) as OutputStream<InferRequest>)
    });
    let pair = Pair::new(infers(engine)).await;
    let slow = Slow(Tcp::new(pair.address.to_string()));
    let worker = RemoteWorker::new(slow, ClientConfig::default(), &pair.here).unwrap();
    let context = in_time(LONG);
    let stream = worker.model("model").call(InferRequest::default(), context).await.unwrap();
    assert!(stream.map(|output| output.is_ok()).collect::<Vec<_>>().await == [true]);
}

#[tokio::test]
async fn what_is_no_worker_is_unavailable() {
    // A port that nobody listens on, and one where something else is spoken.
    let nobody = SocketAddr::from(([127, 0, 0, 1], 1));
    let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = other.local_addr().unwrap();
    let tasks = Tasks::new();
    tasks.spawn("other", async move {
        loop {
            let (mut stream, _) = other.accept().await.unwrap();
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    for address in [nobody, address] {
        let config = ClientConfig::default();
        let worker = RemoteWorker::new(Tcp::new(address.to_string()), config, &tasks).unwrap();
        for _ in 0..3 {
            let error = worker.model("m").call(prompt(), in_time(LONG)).await.err().unwrap();
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        }
        let mut state = worker.state();
        let lost = state.wait_for(|state| *state == LinkState::Lost);
        tokio::time::timeout(LONG, lost).await.unwrap().unwrap();
    }
    let wrong = RemoteWorker::new(Tcp::new("not an address"), ClientConfig::default(), &tasks);
    assert_eq!(wrong.err().unwrap().kind(), ErrorKind::InvalidRequest);
}

#[tokio::test]
async fn failures_to_connect_are_not_repeated_at_once() {
    let connections = Arc::new(AtomicUsize::new(0));
    struct Failing(Counted);
    #[async_trait]
    impl Connector for Failing {
        async fn connect(&self) -> io::Result<Box<dyn Io>> {
            self.0.connections.fetch_add(1, Ordering::SeqCst);
            self.0.tcp.connect().await
        }
        fn address(&self) -> &str {
            self.0.address()
        }
    }
    let tasks = Tasks::new();
    let counted = Counted { tcp: Tcp::new("127.0.0.1:1"), connections: connections.clone() };
    let config = ClientConfig {
        backoff_first: Duration::from_millis(20),
        backoff_max: Duration::from_millis(80),
        ..ClientConfig::default()
    };
    let worker = RemoteWorker::new(Failing(counted), config, &tasks).unwrap();
    let started = Instant::now();
    while connections.load(Ordering::SeqCst) < 8 {
        assert!(started.elapsed() < LONG, "it is not tried again");
        assert!(worker.model("m").call(prompt(), context()).await.is_err());
        tokio::time::sleep(Duration::from_micros(500)).await;
    }
    // Chance takes half of each wait at most: of 20 ms, of 40 ms, and of 80 ms five times.
    let least = Duration::from_millis(10 + 20 + 5 * 40);
    assert!(started.elapsed() >= least, "8 attempts took {:?}", started.elapsed());
}

#[tokio::test]
async fn a_reader_that_goes_away_with_its_connection_frees_the_worker() {
    let engine = Arc::new(Scripted::<GenerateRequest>::new(vec![Step::Sleep(LONG)]));
    let pair = Pair::new(generates(engine.clone())).await;
    let stream = pair.model().call(prompt(), context()).await.unwrap();
    assert_eq!(engine.live_streams(), 1);
    pair.here.cancel();
    until(|| engine.live_streams() == 0 && pair.server.open_calls() == 0).await;
    drop(stream);
}

/// Opens one connection and no other.
struct Once {
    tcp: Tcp,
    connections: AtomicUsize,
}

#[async_trait]
impl Connector for Once {
    async fn connect(&self) -> io::Result<Box<dyn Io>> {
        if self.connections.fetch_add(1, Ordering::SeqCst) > 0 {
            std::future::pending::<()>().await;
        }
        self.tcp.connect().await
    }

    fn address(&self) -> &str {
        self.tcp.address()
    }
}

#[tokio::test]
async fn a_call_waits_for_no_connection_while_another_one_is_open() {
    let pair = Pair::new(endless()).await;
    let tcp = Tcp::new(pair.address.to_string());
    let connector = Once { tcp, connections: AtomicUsize::new(0) };
    let config = ClientConfig { connections: 3, connect_timeout: LONG, ..ClientConfig::default() };
    let worker = RemoteWorker::new(connector, config, &pair.here).unwrap();
    for _ in 0..10 {
        let called = async {
            let mut stream = worker.model("model").call(prompt(), context()).await.unwrap();
            stream.next().await.unwrap().unwrap();
        };
        tokio::time::timeout(LONG / 2, called).await.unwrap();
    }
}
