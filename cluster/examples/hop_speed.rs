//! Measures what a hop between processes costs: an engine called directly, and through the request
//! plane over the loopback.
//!
//!     cargo run --release -p stator-cluster --example hop_speed
//!
//! Frontend and worker have a runtime each, as two processes have; `--threads N` says how many
//! threads each of them gets, two by default.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "an example that people run")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use cluster::request::{ClientConfig, RemoteWorker, Served, ServerConfig, Tcp, WorkerServer};
use engine::{Context, Engine, InferOutput, InferRequest, OutputStream, Result, Tasks};
use futures_util::{StreamExt, stream};
use tensor::{Datatype, Tensor};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};

/// How long each number is measured.
const TIME: Duration = Duration::from_secs(3);

/// Answers with its inputs.
struct Identity;

#[async_trait]
impl Engine<InferRequest> for Identity {
    async fn call(
        &self,
        request: InferRequest,
        _context: Context,
    ) -> Result<OutputStream<InferRequest>> {
        let tensors = request.inputs;
        let output = InferOutput { tensors, is_last: true, ..InferOutput::default() };
        Ok(Box::pin(stream::iter([Ok(output)])))
    }
}

fn request(size: usize) -> InferRequest {
    if size == 0 {
        return InferRequest::default();
    }
    let input = Tensor::new("x", Datatype::Uint8, vec![size as i64], vec![1; size]);
    InferRequest { inputs: vec![input], ..InferRequest::default() }
}

async fn once(engine: &dyn Engine<InferRequest>, request: InferRequest) {
    let deadline = Instant::now().checked_add(Duration::from_secs(30));
    let context = Context::new("request").with_deadline(deadline);
    let mut stream = engine.call(request, context).await.unwrap();
    while let Some(output) = stream.next().await {
        output.unwrap();
    }
}

/// Returns the median and the 99th percentile of one call after the other, in microseconds.
async fn latency(engine: &dyn Engine<InferRequest>, size: usize) -> (f64, f64) {
    let request = request(size);
    let mut times = Vec::new();
    let started = Instant::now();
    while started.elapsed() < TIME {
        let request = request.clone();
        let began = Instant::now();
        once(engine, request).await;
        times.push(began.elapsed().as_secs_f64() * 1e6);
    }
    times.drain(..times.len() / 10);
    times.sort_by(f64::total_cmp);
    (times[times.len() / 2], times[times.len() * 99 / 100])
}

/// Returns the requests of a second with so many callers.
async fn rate(engine: Arc<dyn Engine<InferRequest>>, size: usize, callers: usize) -> f64 {
    let (done, is_over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let tasks = Tasks::new();
    for _ in 0..callers {
        let (engine, done, is_over) = (engine.clone(), done.clone(), is_over.clone());
        let request = request(size);
        tasks.spawn("caller", async move {
            while !is_over.load(Ordering::Relaxed) {
                once(&*engine, request.clone()).await;
                done.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    tokio::time::sleep(TIME / 10).await;
    let (before, started) = (done.load(Ordering::Relaxed), Instant::now());
    tokio::time::sleep(TIME).await;
    let rate = (done.load(Ordering::Relaxed) - before) as f64 / started.elapsed().as_secs_f64();
    is_over.store(true, Ordering::Relaxed);
    tasks.wait(Duration::from_secs(10)).await;
    rate
}

fn runtime(threads: usize) -> Runtime {
    Builder::new_multi_thread().worker_threads(threads).enable_all().build().unwrap()
}

async fn serve(tasks: &Tasks) -> String {
    let server = WorkerServer::new(ServerConfig::default(), None);
    server.insert("model", Served { infer: Some(Arc::new(Identity)), ..Served::default() });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let owner = tasks.clone();
    tasks.spawn("worker", async move { server.serve(listener, &owner).await });
    address
}

async fn measure(address: String, tasks: Tasks) {
    let worker = RemoteWorker::new(Tcp::new(address), ClientConfig::default(), &tasks).unwrap();
    let remote: Arc<dyn Engine<InferRequest>> = Arc::new(worker.model("model"));
    let engines: [(&str, Arc<dyn Engine<InferRequest>>); 2] =
        [("in process", Arc::new(Identity)), ("over loopback", remote)];
    println!("{:>14} {:>9} {:>12} {:>12}", "", "tensor", "p50 us", "p99 us");
    for (name, engine) in &engines {
        for size in [0, 64, 1 << 20] {
            let (half, most) = latency(&**engine, size).await;
            println!("{name:>14} {size:>9} {half:>12.1} {most:>12.1}");
        }
    }
    println!("{:>14} {:>9} {:>12} {:>12}", "", "tensor", "callers", "requests/s");
    for (size, callers) in [(64, 1), (64, 32), (64, 256), (1 << 20, 1), (1 << 20, 32)] {
        let rate = rate(engines[1].1.clone(), size, callers).await;
        println!("{:>14} {size:>9} {callers:>12} {rate:>12.0}", "over loopback");
    }
}

fn main() {
    let mut words = std::env::args().skip(1);
    let is_count = words.next().is_some_and(|word| word == "--threads");
    let threads = words.next().filter(|_| is_count).map_or(2, |count| count.parse().unwrap());
    let tasks = Tasks::new();
    let (there, here) = (runtime(threads), runtime(threads));
    let address = there.block_on(serve(&tasks));
    let (owner, measured) = (tasks.clone(), tasks.clone());
    here.block_on(async move {
        // In a task, since the thread that blocks is no thread of the runtime.
        let (done, is_done) = tokio::sync::oneshot::channel();
        owner.spawn("measures", async move {
            measure(address, measured).await;
            let _ = done.send(());
        });
        let _ = is_done.await;
    });
    tasks.cancel();
    here.shutdown_background();
    there.shutdown_background();
}
