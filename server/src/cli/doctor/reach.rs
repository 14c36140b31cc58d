//! What can be reached: the ports that a server will open, the fleet's registrations, NATS.

use std::io::{ErrorKind, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cluster::discovery::{Event, Query};
use cluster::nats;
use engine::Tasks;
use tokio::time::timeout;
use tracing::subscriber::DefaultGuard;

use super::Finding;
use crate::args::DoctorArgs;
use crate::fleet::{Peers, Store, nats_config};
use crate::support::invalid::Invalid;

/// How long anything may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

pub(super) fn examine(args: &DoctorArgs) -> Result<Vec<Finding>, Invalid> {
    let mut findings: Vec<Finding> = args.ports.iter().map(|port| port_is_free(*port)).collect();
    let store = Store::from_args(&args.discovery)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Invalid(format!("no runtime: {error}")))?;
    findings.push(runtime.block_on(registrations(&store, args)));
    findings.push(runtime.block_on(messages(nats_config(&args.planes))));
    Ok(findings)
}

fn port_is_free(port: u16) -> Finding {
    let what = format!("port {port}");
    match TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)) {
        Ok(_) => Finding::ok(what, "free"),
        Err(error) if error.kind() == ErrorKind::AddrInUse => Finding::warn(
            what,
            "taken by another process",
            "if it is no `stator`, end it (`ss -ltnp` names it), or choose others: --http-port, --grpc-port, \
             --metrics-port",
        ),
        Err(error) => Finding::fail(
            what,
            format!("cannot be opened: {error}"),
            "ports below 1024 need a privilege; choose others: --http-port, --grpc-port, \
             --metrics-port",
        ),
    }
}

/// Reads the registrations of a fleet once.
async fn registrations(store: &Store, args: &DoctorArgs) -> Finding {
    let what = "discovery";
    if let Store::File(folder) = store
        && !folder.is_dir()
    {
        let found = format!("{} is not there", folder.display());
        return Finding::warn(what, found, "the first worker makes it; check the path");
    }
    let place = args.discovery.discovery.as_deref().unwrap_or("the folder of this user");
    let (tasks, warnings) = (Tasks::new(), Warnings::default());
    let _guard = warnings.hear();
    let discovery = match store.open(Peers::to_ask(&tasks), &tasks) {
        Ok(discovery) => discovery,
        Err(error) => return Finding::fail(what, error.to_string(), "mend the flag"),
    };
    let mut watch = discovery.watch(Query::All);
    let listed = async {
        let mut workers = 0;
        while let Some(event) = watch.next().await {
            match event {
                Event::Put(_) => workers += 1,
                Event::Synced => return Some(workers),
                _ => {}
            }
        }
        None
    };
    let listed = timeout(PATIENCE, listed).await;
    tasks.cancel();
    match listed {
        Ok(Some(workers)) => {
            Finding::ok(what, format!("{place} answers; registered workers: {workers}"))
        }
        _ => Finding::fail(
            what,
            format!("{place} does not answer: {}", warnings.last()),
            "check that it runs and can be reached from here: address, TLS, user",
        ),
    }
}

/// Sends a message over NATS to ourselves.
async fn messages(config: Option<nats::Config>) -> Finding {
    let what = "NATS";
    let Some(config) = config else {
        return Finding::ok(what, "not used (--nats)");
    };
    let (tasks, warnings) = (Tasks::new(), Warnings::default());
    let _guard = warnings.hear();
    let connection = match nats::Connection::open(config, &tasks).await {
        Ok(connection) => connection,
        Err(error) => return Finding::fail(what, error.to_string(), "mend the flag"),
    };
    let answers = timeout(PATIENCE, async {
        while !(connection.is_connected() && connection.settle().await) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    let answers = answers.await.is_ok();
    tasks.cancel();
    match answers {
        true => Finding::ok(what, "messages arrive"),
        false => Finding::fail(
            what,
            format!("does not answer: {}", warnings.last()),
            "check that it runs and can be reached from here: address, TLS, user",
        ),
    }
}

/// What the log would say.
#[derive(Clone, Default)]
struct Warnings(Arc<Mutex<Vec<u8>>>);

impl Warnings {
    /// Takes what this thread logs while the guard lives.
    fn hear(&self) -> DefaultGuard {
        let writer = self.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::WARN)
            .with_ansi(false)
            .with_level(false)
            .with_target(false)
            .without_time()
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::set_default(subscriber)
    }

    /// Returns the error of the last line, or all of it.
    fn last(&self) -> String {
        let text = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let text = String::from_utf8_lossy(&text);
        let last = text.trim().lines().next_back().unwrap_or("it is silent").trim();
        last.split_once(" error=").map_or(last, |(_, error)| error).to_owned()
    }
}

impl Write for Warnings {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
