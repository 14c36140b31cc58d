//! Runs the example clients in `grpc-clients/` against a real server and reads what they print.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::env;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The longest that a client may take with installing and building, and once that is done.
const PATIENCE_SECONDS: [u64; 2] = [900, 300];

/// What every client prints; a line that ends in a space is the beginning of one.
const PRINTED: [&str; 6] = [
    "metadata: text_input BYTES, messages BYTES, stream BOOL, ",
    "config: max_batch_size 0, decoupled true",
    "infer: 100 101 102 103 104 105 106 107 108 109 110 111 112 113 114 115",
    "stream: when what your and can on the one of when and is a be to not",
    "cancel: CANCELLED after 3 tokens",
    "error: NOT_FOUND: Request for unknown model: 'no_such_model' is not found",
];

/// One client at a time, also of other runs: most of a test is a build that takes every core, and
/// all runs build in the same folders.
fn turn() -> File {
    let lock = File::create(Path::new(env!("CARGO_TARGET_TMPDIR")).join("clients.lock")).unwrap();
    lock.lock().unwrap();
    lock
}

/// A running server; dropping it kills it.
struct Server {
    process: Child,
    grpc: String,
    metrics: String,
}

impl Server {
    fn start() -> Self {
        let arguments = "serve --no-default-model --builtin add_sub --builtin mock,pace_ms=5 \
            --grpc-host 127.0.0.1 --grpc-port 0 --metrics-host 127.0.0.1 --metrics-port 0 \
            --http-port 0 --http-host 127.0.0.1 --log-format json";
        let mut command = Command::new(binary());
        command.args(arguments.split_whitespace()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let mut log = BufReader::new(process.stderr.take().unwrap()).lines().map_while(Result::ok);
        let ready = log.find(|line| line.contains(r#""message":"ready""#));
        let ready = ready.expect("the server ends only when it is killed");
        thread::spawn(move || log.for_each(drop));
        let field = |name: &str| {
            let (_, rest) = ready.split_once(&format!(r#""{name}":""#)).unwrap();
            rest.split('"').next().unwrap().to_owned()
        };
        Self { process, grpc: field("grpc"), metrics: field("metrics") }
    }

    /// Returns how many requests the server counted under these labels.
    fn requests(&self, labels: &str) -> u64 {
        let mut connection = TcpStream::connect(&self.metrics).unwrap();
        connection.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).unwrap();
        let name = format!("stator_requests_total{{{labels}}} ");
        answer.lines().find_map(|line| line.strip_prefix(&name)?.parse().ok()).unwrap_or(0)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Returns the server's binary: the one of `STATOR_BIN`, or this workspace's, built.
fn binary() -> PathBuf {
    if let Some(path) = env::var_os("STATOR_BIN") {
        return path.into();
    }
    // All of it, examples too: so libraries have the features that the tests had, and are there.
    let build = ["build", "--locked", "--workspace", "--bins", "--examples"];
    let mut cargo = Command::new(env!("CARGO"));
    // What cargo tells a test of its package would have libraries that ask for it built anew.
    for (name, _) in env::vars_os() {
        let is_of_package = |name: &str| {
            ["CARGO_PKG_", "CARGO_MANIFEST_", "OUT_DIR"]
                .iter()
                .any(|prefix| name.starts_with(prefix))
        };
        if name.to_str().is_some_and(is_of_package) {
            cargo.env_remove(name);
        }
    }
    let built = cargo.args(build).current_dir(ROOT).status().unwrap();
    assert!(built.success(), "the server does not build");
    // A test is `<target>/<profile>/deps/<name>`.
    env::current_exe().unwrap().ancestors().nth(3).unwrap().join("debug/stator")
}

/// Returns what a client prints; kills it with all it started when its time is over.
fn run(program: &Path, server: &Server, seconds: u64) -> String {
    let mut command = Command::new(program);
    command.args([&server.grpc, "mock"]).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut client = command.process_group(0).spawn().unwrap();
    let end = Instant::now() + Duration::from_secs(seconds);
    while client.try_wait().unwrap().is_none() {
        if Instant::now() > end {
            let group = format!("-{}", client.id());
            let _ = Command::new("kill").args(["-KILL", "--", &group]).status();
            panic!("{} took more than {seconds} s", program.display());
        }
        thread::sleep(Duration::from_millis(50));
    }
    // The little that a client prints fits into the pipe, so it can be read at the end.
    let output = client.wait_with_output().unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}: {}:\n{printed}", program.display(), output.status);
    printed
}

fn check(language: &str, tools: &[&str]) {
    for tool in tools {
        if Command::new(tool).arg("--version").output().is_err() {
            assert!(env::var_os("CI").is_none(), "{tool} is not installed, and CI needs it");
            return eprintln!("SKIPPED: {tool} is not installed");
        }
    }
    let _turn = turn();
    let server = Server::start();
    let program = Path::new(ROOT).join("grpc-clients").join(language).join("run");
    let printed = PATIENCE_SECONDS.map(|seconds| run(&program, &server, seconds)).concat();
    let lines: Vec<&str> = printed.lines().collect();
    assert_eq!(lines.len(), 2 * PRINTED.len(), "{language} printed:\n{printed}");
    for (line, wanted) in lines.into_iter().zip(PRINTED.iter().cycle()) {
        let is_right = line == *wanted || wanted.ends_with(' ') && line.starts_with(wanted);
        assert!(is_right, "{language} printed `{line}`, not `{wanted}`");
    }
    let cancelled = r#"rpc="ModelStreamInfer",model="mock",code="CANCELLED""#;
    let end = Instant::now() + Duration::from_secs(60);
    while server.requests(cancelled) != 2 {
        assert!(Instant::now() < end, "the server saw no cancel of {language}");
        thread::sleep(Duration::from_millis(50));
    }
}

macro_rules! clients {
    ($($language:ident: $tools:expr,)*) => {
        $(#[test] fn $language() { check(stringify!($language), &$tools); })*
    };
}

clients! {
    python: ["python3"],
    go: ["go", "python3"],
    node: ["node", "npm"],
    java: ["javac", "mvn"],
    rust: ["cargo"],
}
