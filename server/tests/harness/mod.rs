//! A real server for the tests of this folder.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

/// A running server; it ends with the test.
pub(crate) struct Server {
    process: Child,
    /// Where it serves gRPC.
    pub(crate) address: String,
}

impl Server {
    /// Starts a server without metrics on a free port.
    pub(crate) fn start(arguments: &[&str]) -> Self {
        let fixed = ["serve", "--no-default-model"];
        let quiet =
            ["--grpc-host", "127.0.0.1", "--grpc-port", "0", "--http-port", "0", "--no-metrics"];
        let mut process = Command::new(env!("CARGO_BIN_EXE_stator"))
            .args(fixed)
            .args(quiet)
            .args(["--log-format", "json"])
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = BufReader::new(process.stderr.take().unwrap());
        let events = log.lines().map(|line| line.unwrap());
        let mut events = events.map(|line| serde_json::from_str::<serde_json::Value>(&line));
        let ready = events.find(|event| event.as_ref().is_ok_and(|e| e["message"] == "ready"));
        let address = ready.unwrap().unwrap()["grpc"].as_str().unwrap().to_owned();
        Self { process, address }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
