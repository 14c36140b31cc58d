//! Streams and calls over a real `nats-server`, which has to be installed.

use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Instant;

use engine::testing::{Scripted, Step, free_port};
use engine::{Context, Engine, ErrorKind, GenerateOutput, GenerateRequest, StopConditions, Tasks};
use futures_util::StreamExt;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{sleep, timeout};

use super::frame::Greeting;
use super::*;
use crate::request::{
    ClientConfig, Connector, RemoteWorker, Served, ServerConfig, Tcp, WAY_LOST, WorkerServer,
};

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(30);

/// A `nats-server` on a port of its own; it ends with this.
pub(crate) struct Server {
    child: Child,
    port: u16,
    /// Where it keeps things; some: it has JetStream.
    folder: Option<TempDir>,
    /// What looks after connections.
    tasks: Tasks,
    /// As in a process: what was said last has left before they end.
    connections: Mutex<Vec<Connection>>,
}

impl Server {
    fn start(port: Option<u16>) -> Self {
        Self::start_with(port, None)
    }

    pub(crate) fn start_with(port: Option<u16>, folder: Option<TempDir>) -> Self {
        Self::start_as(port, folder, &[])
    }

    /// Starts one with more arguments.
    fn start_as(port: Option<u16>, folder: Option<TempDir>, arguments: &[&str]) -> Self {
        let port = port.unwrap_or_else(free_port);
        let mut command = Command::new("nats-server");
        command.args(arguments);
        if let Some(folder) = &folder {
            command.arg("-js").arg("-sd").arg(folder.path());
        }
        let child = command
            .args(["-a", "127.0.0.1", "-p", &port.to_string()])
            .stderr(Stdio::null())
            .spawn()
            .expect("nats-server is installed");
        Self { child, port, folder, tasks: Tasks::new(), connections: Mutex::default() }
    }

    /// Stops it as a machine does that hangs, or lets it go on.
    pub(crate) fn hang(&self, hangs: bool) {
        let signal = if hangs { "-STOP" } else { "-CONT" };
        let process = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &process]).status().unwrap().success());
    }

    fn stop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Returns everything that is connected to it.
    pub(crate) fn connections(&self) -> Vec<Connection> {
        self.connections.lock().unwrap().clone()
    }

    pub(crate) fn has_jetstream(&self) -> bool {
        self.folder.is_some()
    }

    /// Returns how it is used where nothing is to be late.
    pub(crate) fn config(&self) -> Config {
        let servers = vec![format!("nats://127.0.0.1:{}", self.port)];
        Config {
            servers,
            greeting_timeout: LONG,
            jetstream_timeout: LONG,
            away_timeout: LONG,
            ..Config::default()
        }
    }

    pub(crate) async fn connect(&self, config: Config) -> Connection {
        let connection = Connection::open(config, &self.tasks).await.unwrap();
        connected(&connection).await;
        self.connections.lock().unwrap().push(connection.clone());
        connection
    }

    /// Returns the two ends of a stream.
    async fn pair(&self, config: Config) -> (Stream, Stream) {
        let (here, there) =
            (self.connect(config.clone()).await, self.connect(config.clone()).await);
        let (ours, theirs) = (here.client.new_inbox(), there.client.new_inbox());
        let (losses, their_losses) = (here.losses(), there.losses());
        let (incoming, their_incoming) = (
            here.client.subscribe(ours.clone()).await.unwrap(),
            there.client.subscribe(theirs.clone()).await.unwrap(),
        );
        settled(&here).await;
        settled(&there).await;
        let greeting =
            |inbox: &String| Greeting { inbox: inbox.clone(), window: config.window_bytes };
        (
            Stream::new(&here, (ours.clone(), incoming), greeting(&theirs), losses),
            Stream::new(&there, (theirs.clone(), their_incoming), greeting(&ours), their_losses),
        )
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn connected(connection: &Connection) {
    let wait = async {
        while !connection.is_connected() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(LONG, wait).await.expect("nats-server is there");
}

async fn disconnected(connection: &Connection) {
    let wait = async {
        while connection.is_connected() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(LONG, wait).await.expect("nats-server is gone");
}

/// Waits until NATS has taken in what was said so far, however busy the machine is.
async fn settled(connection: &Connection) {
    let wait = async {
        while !connection.settle().await {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(LONG, wait).await.expect("nats-server answers");
}

fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|place| (place * 7 + place / 251) as u8).collect()
}

#[tokio::test]
async fn bytes_pass_in_both_directions_and_end() {
    let server = Server::start(None);
    let (here, there) = server.pair(server.config()).await;
    let data = pattern(8 << 20);
    let echo = async move {
        let (mut reader, mut writer) = tokio::io::split(there);
        tokio::io::copy(&mut reader, &mut writer).await.unwrap();
        writer.shutdown().await.unwrap();
    };
    let (mut reader, mut writer) = tokio::io::split(here);
    let sent = async {
        writer.write_all(&data).await.unwrap();
        writer.shutdown().await.unwrap();
    };
    let mut back = Vec::new();
    let all = async { tokio::join!(echo, sent, reader.read_to_end(&mut back)) };
    timeout(LONG, all).await.unwrap().2.unwrap();
    assert!(back == data);
}

#[tokio::test]
async fn a_slow_reader_stops_its_writer_and_loses_nothing() {
    let server = Server::start(None);
    let config = Config { window_bytes: 64 << 10, ..server.config() };
    let (mut here, mut there) = server.pair(config).await;
    // 8 bytes cost 264: the window takes 240 of them, and no more than 250.
    let mut written = 240_u64;
    let fill = async {
        for number in 0..written {
            here.write_all(&number.to_be_bytes()).await.unwrap();
        }
    };
    timeout(LONG, fill).await.expect("they go into a window of 64 KiB");
    let overfill = async {
        loop {
            here.write_all(&written.to_be_bytes()).await.unwrap();
            written += 1;
        }
    };
    timeout(Duration::from_millis(500), overfill).await.unwrap_err();
    assert!(written <= 250, "{written} were sent into a window of 64 KiB");
    let more = async {
        for number in written..written + 2000 {
            here.write_all(&number.to_be_bytes()).await.unwrap();
        }
    };
    let read = async {
        for number in 0..written + 2000 {
            assert_eq!(there.read_u64().await.unwrap(), number);
        }
    };
    timeout(LONG, async { tokio::join!(more, read) }).await.unwrap();
}

#[tokio::test]
async fn a_message_that_is_missing_ends_the_stream() {
    let server = Server::start(None);
    let (mut here, mut there) = server.pair(server.config()).await;
    here.write_all(b"one").await.unwrap();
    here.skip_number();
    here.write_all(b"three").await.unwrap();
    let mut data = [0; 3];
    there.read_exact(&mut data).await.unwrap();
    assert_eq!(&data, b"one");
    let error = timeout(LONG, there.read_u8()).await.unwrap().unwrap_err();
    assert!(error.to_string().contains("expected number 2, got 3"), "{error}");
}

#[tokio::test]
async fn an_end_that_is_gone_is_noticed_within_a_beat_or_two() {
    let server = Server::start(None);
    let (mut here, there) = server.pair(server.config()).await;
    drop(there);
    let begun = Instant::now();
    let error = timeout(LONG, here.read_u8()).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    // A beat or two, and time for a busy machine.
    let limit = 20 * Config::default().beat;
    assert!(begun.elapsed() < limit, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_server_that_stops_ends_streams_and_comes_back() {
    let mut server = Server::start(None);
    let (mut here, mut there) = server.pair(server.config()).await;
    let connection = server.connect(server.config()).await;
    here.write_all(b"x").await.unwrap();
    assert_eq!(there.read_u8().await.unwrap(), b'x');
    server.stop();
    for end in [&mut here, &mut there] {
        let error = timeout(LONG, end.read_u8()).await.unwrap().unwrap_err();
        assert!(error.to_string().contains("nats was lost"), "{error}");
    }
    disconnected(&connection).await;
    let nats = Nats::new(&connection, "nobody", "127.0.0.1:1");
    let refused = timeout(LONG, nats.connect()).await.unwrap();
    assert!(refused.err().unwrap().to_string().contains("cannot be reached"));
    server = Server::start(Some(server.port));
    connected(&connection).await;
    let refused = nats.connect().await.err().unwrap();
    assert_eq!(refused.to_string(), "no responders at nats");
    drop(server);
}

/// A worker that is served over NATS and TCP: tokens 0, 1, 2, ... and, if it is `slow`, no end.
struct Worker {
    server: WorkerServer,
    tasks: Tasks,
    subject: String,
    address: String,
    engine: Arc<Scripted<GenerateRequest>>,
}

impl Worker {
    /// Starts one with a connection of its own.
    async fn start(nats: &Server, is_slow: bool) -> Self {
        let connection = nats.connect(nats.config()).await;
        let stranger = nats.connect(nats.config()).await;
        let output = |token| GenerateOutput { tokens: vec![token], ..GenerateOutput::default() };
        let mut script: Vec<_> = (0..500).map(|token| Step::Output(output(token))).collect();
        if is_slow {
            // Nobody waits for its end.
            script.push(Step::Sleep(10 * LONG));
        }
        let engine = Arc::new(Scripted::<GenerateRequest>::new(script));
        let server = WorkerServer::new(ServerConfig::default(), None);
        server.insert("model", Served { generate: Some(engine.clone()), ..Served::default() });
        let tasks = Tasks::new();
        let subject = worker_subject(&"a.b".parse().unwrap(), InstanceId::random());
        let listener = connection.listen(subject.clone()).await;
        let (serving, owner) = (server.clone(), tasks.clone());
        tasks.spawn("nats worker", async move { listener.serve(&serving, &owner).await });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (serving, owner) = (server.clone(), tasks.clone());
        tasks.spawn("worker", async move { serving.serve(listener, &owner).await });
        // Who greets over another connection is not told that nobody listens.
        Nats::new(&stranger, subject.clone(), address.clone()).connect().await.unwrap();
        Self { server, tasks, subject, address, engine }
    }

    fn connector(&self, connection: &Connection) -> impl Connector + use<> {
        WithFallback {
            first: Nats::new(connection, self.subject.clone(), self.address.clone()),
            second: Tcp::new(self.address.clone()),
        }
    }

    fn client(&self, connection: &Connection, tasks: &Tasks) -> RemoteWorker {
        let connector = self.connector(connection);
        RemoteWorker::new(connector, ClientConfig::default(), tasks).unwrap()
    }
}

fn prompt() -> GenerateRequest {
    GenerateRequest::new(vec![1], StopConditions::after(1000))
}

#[tokio::test]
async fn calls_pass_and_are_cancelled_as_over_tcp() {
    let server = Server::start(None);
    let here = server.connect(server.config()).await;
    let worker = Worker::start(&server, true).await;
    let tasks = Tasks::new();
    // Nothing else is tried.
    let nats = Nats::new(&here, worker.subject.clone(), "nats:1");
    let config = ClientConfig { connect_timeout: LONG, ..ClientConfig::default() };
    let client = RemoteWorker::new(nats, config, &tasks).unwrap();
    let mut answers = client.model("model").call(prompt(), Context::new("a")).await.unwrap();
    let mut tokens = Vec::new();
    while tokens.len() < 500 {
        tokens.extend(timeout(LONG, answers.next()).await.unwrap().unwrap().unwrap().tokens);
    }
    assert!(tokens.iter().copied().eq(0..500));
    assert_eq!(worker.engine.live_streams(), 1);
    let begun = Instant::now();
    drop(answers);
    while worker.engine.live_streams() > 0 {
        assert!(begun.elapsed() < LONG, "it was not cancelled");
        sleep(Duration::from_millis(1)).await;
    }
    // A worker that dies ends its answers.
    let mut answers = client.model("model").call(prompt(), Context::new("b")).await.unwrap();
    worker.tasks.cancel();
    let lost = async {
        loop {
            match answers.next().await {
                Some(Ok(_)) => {}
                ended => return ended,
            }
        }
    };
    let error = timeout(LONG, lost).await.unwrap().unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
}

#[tokio::test]
async fn without_nats_a_worker_is_called_by_tcp() {
    let mut server = Server::start(None);
    // Where NATS is lost while it is greeted, the wait is a short one.
    let greeting_timeout = Config::default().greeting_timeout;
    let here = server.connect(Config { greeting_timeout, ..server.config() }).await;
    let worker = Worker::start(&server, false).await;
    let tasks = Tasks::new();
    let client = worker.client(&here, &tasks);
    let all = |client: RemoteWorker| async move {
        let answers = client.model("model").call(prompt(), Context::new("a")).await?;
        Ok::<_, engine::Error>(answers.collect::<Vec<_>>().await.len())
    };
    assert!(all(client.clone()).await.unwrap() > 0);
    server.stop();
    // The call that finds the connection lost is for the route to try again.
    let begun = Instant::now();
    while all(client.clone()).await.is_err() {
        assert!(begun.elapsed() < LONG, "the worker is not called by TCP");
        sleep(Duration::from_millis(20)).await;
    }
    server = Server::start(Some(server.port));
    connected(&here).await;
    assert!(all(worker.client(&here, &tasks)).await.unwrap() > 0);
    let begun = Instant::now();
    while worker.server.open_calls() > 0 {
        assert!(begun.elapsed() < LONG, "a call that ended stays open");
        sleep(Duration::from_millis(1)).await;
    }
    drop(server);
}

/// Returns how a call to `client` ends.
async fn outcome(client: &RemoteWorker) -> engine::Result<usize> {
    let answers = client.model("model").call(prompt(), Context::new("a")).await?;
    let all: Vec<_> = answers.collect().await;
    all.into_iter().collect::<engine::Result<Vec<_>>>().map(|all| all.len())
}

#[tokio::test]
async fn a_server_that_hangs_is_left_until_it_answers() {
    let server = Server::start(None);
    let leave = Duration::from_millis(100);
    let greeting_timeout = Config::default().greeting_timeout;
    let here = server.connect(Config { greeting_timeout, leave, ..server.config() }).await;
    let (worker, tasks) = (Worker::start(&server, true).await, Tasks::new());
    let connector = worker.connector(&here);
    let keepalive_interval = Duration::from_millis(100);
    let config = ClientConfig { keepalive_interval, ..ClientConfig::default() };
    let client = RemoteWorker::new(connector, config, &tasks).unwrap();
    let cut = outcome(&client);
    let hang = async {
        while worker.engine.live_streams() == 0 {
            sleep(Duration::from_millis(1)).await;
        }
        server.hang(true);
    };
    let lost = timeout(LONG, async { tokio::join!(cut, hang).0 }).await.unwrap().unwrap_err();
    assert_eq!(lost.code(), Some(WAY_LOST), "{lost}");
    assert!(here.breaker.is_left());
    let model = client.model("model");
    let call = model.call(prompt(), Context::new("b"));
    let mut answers = timeout(LONG, call).await.unwrap().unwrap();
    assert!(answers.next().await.unwrap().is_ok());
    sleep(5 * leave).await;
    assert!(here.breaker.is_left());
    server.hang(false);
    let wait = async {
        while here.breaker.is_left() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(LONG, wait).await.expect("nats-server answers");
    tasks.cancel();
}

#[tokio::test]
async fn an_address_says_who_one_is() {
    let cases: [(&[&str], &str, &str); 2] = [
        (&["--user", "me", "--pass", "a@b%"], "me:a%40b%25@", "me:b@"),
        (&["--auth", "token"], "token@", ""),
    ];
    for (arguments, right, wrong) in cases {
        let server = Server::start_as(None, None, arguments);
        let open = |who: &str| {
            let address = format!("nats://{who}127.0.0.1:{}", server.port);
            let config = Config { servers: vec![address], ..server.config() };
            async { Connection::open(config, &server.tasks).await }
        };
        // It shows that the server is up, too.
        connected(&open(right).await.unwrap()).await;
        let stranger = open(wrong).await.unwrap();
        sleep(Duration::from_millis(500)).await;
        assert!(!stranger.is_connected(), "{arguments:?}");
    }
}

#[tokio::test]
async fn secrets_stay_out_of_messages() {
    let secret = |server: &str| Config { servers: vec![server.into()], ..Config::default() };
    for wrong in ["http://user:hush@a:1", "nats://user:hush@:x", "ws://user:hush@a:1"] {
        let error = Connection::open(secret(wrong), &Tasks::new()).await.unwrap_err();
        assert!(error.message().contains("server 1") && !error.to_string().contains("hush"));
    }
    assert!(!format!("{:?}", secret("nats://user:hush@a:1")).contains("hush"));
}
