//! A real etcd in a folder of its own, which can be frozen, killed and started again.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use engine::testing::free_port;
use tempfile::TempDir;

/// How long etcd may take to answer after its start.
const START: Duration = Duration::from_secs(120);

/// A running etcd; it ends with this value.
pub(crate) struct EtcdServer {
    folder: TempDir,
    process: Child,
    client_port: u16,
    peer_port: u16,
    arguments: Vec<String>,
}

impl EtcdServer {
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts it with TLS options, whose values may be files in [`EtcdServer::folder`].
    pub(crate) fn start_with(arguments: &[String]) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), arguments)
    }

    pub(crate) fn start_in(folder: TempDir, arguments: &[String]) -> Self {
        let ports = [free_port(), free_port()];
        let arguments = arguments.to_vec();
        let process = spawn(&folder, ports, &arguments);
        let [client_port, peer_port] = ports;
        let server = Self { folder, process, client_port, peer_port, arguments };
        server.wait();
        server
    }

    fn scheme(&self) -> &str {
        let has_tls = self.arguments.iter().any(|argument| argument.starts_with("--cert-file"));
        if has_tls { "https" } else { "http" }
    }

    pub(crate) fn address(&self) -> String {
        format!("{}://127.0.0.1:{}", self.scheme(), self.client_port)
    }

    pub(crate) fn port(&self) -> u16 {
        self.client_port
    }

    /// Waits until it answers.
    fn wait(&self) {
        let start = Instant::now();
        let is_up = || match self.scheme() {
            "http" => self.ask("GET", "/health", "").is_some_and(|text| text.contains("true")),
            _ => TcpStream::connect(("127.0.0.1", self.client_port)).is_ok(),
        };
        while !is_up() {
            assert!(start.elapsed() < START, "etcd does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Stops it without a word, as a long pause of its machine does.
    pub(crate) fn freeze(&self) {
        self.signal("STOP");
    }

    pub(crate) fn thaw(&self) {
        self.signal("CONT");
        self.wait();
    }

    fn signal(&self, name: &str) {
        let pid = self.process.id().to_string();
        let status = Command::new("kill").args([&format!("-{name}"), &pid]).status().unwrap();
        assert!(status.success());
    }

    pub(crate) fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    pub(crate) fn restart(&mut self) {
        let ports = [self.client_port, self.peer_port];
        self.process = spawn(&self.folder, ports, &self.arguments);
        self.wait();
    }

    /// Starts it again after its disk was lost.
    pub(crate) fn restart_empty(&mut self) {
        std::fs::remove_dir_all(self.folder.path().join("data")).unwrap();
        self.restart();
    }

    /// Calls its JSON gateway; returns the answer with its head.
    pub(crate) fn ask(&self, method: &str, path: &str, body: &str) -> Option<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.client_port)).ok()?;
        stream.set_read_timeout(Some(START)).ok()?;
        let length = body.len();
        let head = format!("{method} {path} HTTP/1.1\r\nhost: etcd\r\nconnection: close\r\n");
        write!(stream, "{head}content-length: {length}\r\n\r\n{body}").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    }

    /// Calls its JSON gateway, which has to answer with 200.
    pub(crate) fn post(&self, path: &str, body: &str) -> serde_json::Value {
        let answer = self.ask("POST", path, body).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{path}: {answer}");
        let (start, end) = (answer.find('{').unwrap(), answer.rfind('}').unwrap());
        serde_json::from_str(&answer[start..=end]).unwrap()
    }

    /// Forgets all history up to now.
    pub(crate) fn compact(&self) {
        // A revision of its own: etcd refuses to forget the same one twice.
        let now = self.post("/v3/kv/put", r#"{"key":"YQ==","value":"YQ=="}"#);
        let revision = &now["header"]["revision"];
        self.post("/v3/kv/compaction", &format!(r#"{{"revision":{revision},"physical":true}}"#));
    }
}

impl Drop for EtcdServer {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

fn spawn(folder: &TempDir, [client, peer]: [u16; 2], arguments: &[String]) -> Child {
    let has_tls = arguments.iter().any(|argument| argument.starts_with("--cert-file"));
    let client = format!("{}://127.0.0.1:{client}", if has_tls { "https" } else { "http" });
    let peer = format!("http://127.0.0.1:{peer}");
    let mut command = Command::new("etcd");
    command.arg("--data-dir").arg(folder.path().join("data"));
    command.args(["--name", "test", "--logger", "zap", "--log-level", "error"]);
    // What it has written outlives its process, and no more is asked of it.
    command.arg("--unsafe-no-fsync");
    command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
    command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
    command.args(["--initial-cluster", &format!("test={peer}")]);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().unwrap_or_else(|error| {
        panic!("etcd cannot be started ({error}): install Debian's package `etcd-server`")
    })
}
