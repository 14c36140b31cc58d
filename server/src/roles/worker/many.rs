//! Many workers in one process: for tests and benchmarks of what is above them.
//!
//! Each is a whole worker, with its own port, models and scheduler. They share what reads and writes
//! texts, and the connection to the store, and with it the lease: a process lives or dies as a
//! whole.

use std::num::NonZeroUsize;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cluster::discovery::Lease;
use cluster::instance::Instance;
use engine::Tasks;
use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt, TryStreamExt};

use super::config::WorkerConfig;
use super::{Worker, open_store};
use crate::models::loader::SharedTexts;
use crate::roles::serve::ServeError;
use crate::roles::shutdown;

/// Workers that are begun at once, for each core: most of their start is spent in waiting.
const BEGUN_AT_ONCE: usize = 16;

/// A worker that is registered.
struct Started {
    worker: Arc<Worker>,
    instance: Instance,
    lease: Arc<Lease>,
}

/// Computes models in several workers until a signal comes.
pub(super) async fn many(config: WorkerConfig) -> Result<(), ServeError> {
    // What follows the models ends before the registrations do, and what keeps these at last.
    let (began, tasks, following) = (Instant::now(), Tasks::new(), Tasks::new());
    let discovery = open_store(&config, &tasks)?;
    let mut signalled = pin!(shutdown::signalled());
    let texts = SharedTexts::of_workers(config.instances);
    let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let one = |number: u32| {
        // One process has one door for metrics: they tell of its first worker.
        let metrics = config.metrics.filter(|_| number == 0);
        let own = WorkerConfig { metrics, ..config.clone() };
        let texts = texts.clone();
        Box::pin(async {
            let worker = Worker::open(own, texts).await?;
            let (instance, lease) = worker.start(&*discovery).await?;
            Ok::<_, ServeError>(Started {
                worker: Arc::new(worker),
                instance,
                lease: Arc::new(lease),
            })
        })
    };
    let all = stream::iter(0..config.instances).map(one).buffered(BEGUN_AT_ONCE * cores);
    let started: Vec<Started> = tokio::select! {
        started = all.try_collect() => started?,
        () = signalled.as_mut() => return Ok(()),
    };
    let mut leases = Vec::with_capacity(started.len());
    for Started { worker, instance, lease } in started {
        if leases.is_empty() {
            tracing::info!(
                worker = %worker.address,
                metrics = worker.metrics_address.map(tracing::field::display),
                namespace = %instance.namespace,
                workers = config.instances,
                seconds = began.elapsed().as_secs_f64(),
                "ready"
            );
        }
        leases.push((worker.clone(), lease.clone()));
        following.spawn("mock worker", async move { worker.follow(instance, &lease).await });
    }
    signalled.await;
    tracing::info!("shutting down: calls under way may finish");
    following.cancel();
    following.wait(Duration::from_secs(1)).await;
    let ends = leases.into_iter().map(|(worker, lease)| async move {
        worker.shut_down(Arc::into_inner(lease), shutdown::signalled()).await
    });
    let are_finished = join_all(ends).await.into_iter().all(|is_finished| is_finished);
    tasks.cancel();
    match are_finished {
        true => tracing::info!("shut down"),
        false => tracing::warn!("shut down; calls that took too long were cut off"),
    }
    Ok(())
}
