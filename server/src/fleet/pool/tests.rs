//! When the workers of a model count.

use std::time::{Duration, Instant};

use async_trait::async_trait;
use cluster::discovery::{Mem, Query};
use cluster::membership::Probe;
use cluster::request::{ClientConfig, ServerConfig, Tcp, WorkerServer};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;

use super::*;
use crate::support::metrics::Metrics;

#[derive(Debug)]
struct Nobody;

#[async_trait]
impl Probe for Nobody {
    async fn is_well(&self, _: &Instance) -> bool {
        false
    }
}

fn pool(models: &Arc<Models>, tasks: &Tasks) -> Arc<Pool> {
    let (discovery, settings) = (Mem::new(tasks), Default::default());
    let membership = Membership::start(&discovery, Query::All, Arc::new(Nobody), settings, tasks);
    let (interval, timeout) = (Duration::ZERO, Duration::ZERO);
    let canary = Canary { interval, timeout, failed: Counter::default() };
    let metrics = Metrics::new(&mut Registry::default());
    let subscriber = EventSubscriber::new("m", Arc::default(), &metrics, tasks);
    Pool::new("m", membership, models, (canary, subscriber))
}

fn place(id: u64, worker: &RemoteWorker) -> Place {
    Place {
        id: InstanceId(id),
        instance: Arc::new(Instance::new("default".parse().unwrap(), worker.address())),
        worker: worker.clone(),
        role: Role::Aggregated,
        has_load: false,
        has_kv: false,
        question: Question::Cards,
    }
}

async fn until(holds: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < end, "it never came");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn a_model_is_ready_with_a_worker_that_was_reached_itself() {
    let (tasks, models) = (Tasks::new(), Arc::new(Models::of_fleet()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (server, owner) = (WorkerServer::new(ServerConfig::default(), None), tasks.clone());
    tasks.spawn("worker", async move { server.serve(listener, &owner).await });
    let worker = |address: &str| {
        RemoteWorker::new(Tcp::new(address), ClientConfig::default(), &tasks).unwrap()
    };
    let (well, away) = (worker(&address), worker("127.0.0.1:1"));
    let pool = pool(&models, &tasks);
    pool.set(vec![place(1, &away)], &tasks);
    assert!(!pool.is_ready(), "it is only registered");
    pool.set(vec![place(1, &away), place(2, &well)], &tasks);
    well.connect().await.unwrap();
    until(|| pool.is_ready()).await;
    pool.set(vec![place(1, &away)], &tasks);
    assert!(!pool.is_ready(), "the one that was reached is gone");
    pool.set(Vec::new(), &tasks);
    pool.set(vec![place(3, &away)], &tasks);
    assert!(away.connect().await.is_err());
    assert!(!pool.is_ready(), "it cannot be reached");
    // A connection that is there counts at once.
    pool.set(vec![place(3, &away), place(4, &well)], &tasks);
    assert!(pool.is_ready());
    tasks.cancel();
}
