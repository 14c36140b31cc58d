//! Measures a fleet that registers: how long until a frontend knows all of it, and what it costs
//! when nothing happens.
//!
//!     cargo run --release -p stator-cluster --example registrations -- etcd http://127.0.0.1:2379
//!     cargo run --release -p stator-cluster --example registrations -- file /tmp/fleet
//!
//! The workers are in this process and share its lease, as those of one `stator worker` do;
//! `--apart` gives each a connection and a lease of its own, as separate processes have.
//! `--count N` says how many there are, 1000 by default.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "an example that people run")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use cluster::card::{Card, Input, Kind};
use cluster::discovery::{Discovery, Etcd, File, Query, etcd, file};
use cluster::instance::Instance;
use cluster::membership::{Config, Membership, Probe};
use engine::Tasks;
use futures_util::future::join_all;

/// How long the fleet is left alone before it is measured, and while it is.
const REST: Duration = Duration::from_secs(5);
const IDLE: Duration = Duration::from_secs(30);

/// Nobody is suspected here.
#[derive(Debug)]
struct AllWell;

#[async_trait]
impl Probe for AllWell {
    async fn is_well(&self, _instance: &Instance) -> bool {
        true
    }
}

fn open(store: &str, place: &str, tasks: &Tasks) -> Arc<dyn Discovery> {
    match store {
        "etcd" => {
            let config = etcd::Config { endpoints: vec![place.into()], ..etcd::Config::default() };
            Arc::new(Etcd::new(config, tasks).unwrap())
        }
        "file" => Arc::new(File::new(file::Config::new(place), tasks).unwrap()),
        other => panic!("expected etcd or file, got {other}"),
    }
}

/// Returns the processor time that this process has used.
fn processor_time() -> Duration {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap();
    // Behind the name, which may hold anything, user and system time are the 12th and 13th fields.
    let fields: Vec<&str> = text.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: u64 = fields[11..13].iter().map(|field| field.parse::<u64>().unwrap()).sum();
    Duration::from_millis(ticks * 10)
}

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [store, place, ..] = arguments.as_slice() else { panic!("expected a store and its place") };
    let is_apart = arguments.iter().any(|argument| argument == "--apart");
    let count = arguments.iter().position(|argument| argument == "--count");
    let count: u16 = count.map_or(1000, |at| arguments[at + 1].parse().unwrap());
    let tasks = Tasks::new();
    let frontend = open(store, place, &tasks);
    let probe = Arc::new(AllWell);
    let membership = Membership::start(&*frontend, Query::All, probe, Config::default(), &tasks);
    let mut snapshots = membership.snapshots();
    snapshots.wait_for(|snapshot| snapshot.is_synced).await.unwrap();
    let shared = open(store, place, &tasks);
    let start = Instant::now();
    let registrations = (0..count).map(|port| {
        let worker = if is_apart { open(store, place, &tasks) } else { shared.clone() };
        let mut instance = Instance::new("fleet".parse().unwrap(), format!("grpc://h:{port}"));
        instance.cards.push(Card::new("mock", Kind::Text, Input::Token));
        async move { (worker.register(instance).await.unwrap(), worker) }
    });
    let leases = join_all(registrations).await;
    let registered = start.elapsed();
    let is_complete = |members: usize| members == usize::from(count);
    snapshots
        .wait_for(|snapshot| {
            snapshot.models.get("mock").is_some_and(|model| is_complete(model.members.len()))
        })
        .await
        .unwrap();
    println!(
        "{store}: {count} instances registered after {registered:.2?}, served after {:.2?}",
        start.elapsed()
    );
    tokio::time::sleep(REST).await;
    let (before, start) = (processor_time(), Instant::now());
    tokio::time::sleep(IDLE).await;
    let share = (processor_time() - before).as_secs_f64() / start.elapsed().as_secs_f64();
    println!("{store}: idle, workers and frontend together: {:.2} % of a core", share * 100.0);
    drop(leases);
}
