//! Real connections on the loopback between a frontend's end and a worker's end.

mod bounds;
mod calls;
mod control;
mod faults;
mod pulls;
mod strangers;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use engine::testing::{Scripted, Step, free_port};
use engine::{
    Context, Engine, Error, ErrorKind, GenerateOutput, GenerateRequest, InferOutput, InferRequest,
    OutputStream, Request, Result, StopConditions, Tasks,
};
use tokio::net::TcpListener;

use super::*;

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(60);

/// A worker and a frontend's client of it.
struct Pair {
    server: WorkerServer,
    /// The worker's tasks: cancelling them cuts its connections off.
    there: Tasks,
    /// The frontend's.
    here: Tasks,
    worker: RemoteWorker,
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
}

impl Pair {
    async fn new(served: Served) -> Self {
        Self::with(served, ClientConfig::default()).await
    }

    async fn with(served: Served, config: ClientConfig) -> Self {
        Self::between(served, config, ServerConfig::default()).await
    }

    async fn between(served: Served, config: ClientConfig, serving: ServerConfig) -> Self {
        let server = WorkerServer::new(serving, None);
        server.insert("model", served);
        let there = Tasks::new();
        // It can be taken again once it was let go.
        let address = format!("127.0.0.1:{}", free_port());
        let address = serve(&server, &there, &address).await;
        let here = Tasks::new();
        let connections = Arc::new(AtomicUsize::new(0));
        let tcp = Tcp::new(address.to_string());
        let connector = Counted { tcp, connections: connections.clone() };
        let worker = RemoteWorker::new(connector, config, &here).unwrap();
        Self { server, there, here, worker, address, connections }
    }

    fn model(&self) -> RemoteModel {
        self.worker.model("model")
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

async fn serve(server: &WorkerServer, tasks: &Tasks, address: &str) -> SocketAddr {
    let listener = TcpListener::bind(address).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (server, owner) = (server.clone(), tasks.clone());
    tasks.spawn("worker", async move { server.serve(listener, &owner).await });
    address
}

/// Counts connections.
struct Counted {
    tcp: Tcp,
    connections: Arc<AtomicUsize>,
}

#[async_trait]
impl Connector for Counted {
    async fn connect(&self) -> io::Result<Box<dyn Io>> {
        let io = self.tcp.connect().await?;
        self.connections.fetch_add(1, Ordering::SeqCst);
        Ok(io)
    }

    fn address(&self) -> &str {
        self.tcp.address()
    }
}

/// An engine made of a function.
struct Function<F>(F);

#[async_trait]
impl<R: Request, F> Engine<R> for Function<F>
where
    F: Fn(R, Context) -> Result<OutputStream<R>> + Send + Sync + 'static,
{
    async fn call(&self, request: R, context: Context) -> Result<OutputStream<R>> {
        (self.0)(request, context)
    }
}

/// An engine that never accepts, and counts who waits for it.
#[derive(Default)]
struct Hanging(Arc<AtomicUsize>);

struct Waiting(Arc<AtomicUsize>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[async_trait]
impl<R: Request> Engine<R> for Hanging {
    async fn call(&self, _request: R, _context: Context) -> Result<OutputStream<R>> {
        self.0.fetch_add(1, Ordering::SeqCst);
        let _waiting = Waiting(self.0.clone());
        std::future::pending().await
    }
}

fn generates(engine: impl Engine<GenerateRequest>) -> Served {
    Served { generate: Some(Arc::new(engine)), ..Served::default() }
}

fn infers(engine: impl Engine<InferRequest>) -> Served {
    Served { infer: Some(Arc::new(engine)), ..Served::default() }
}

/// Answers with its inputs.
fn identity() -> impl Engine<InferRequest> {
    Function(|request: InferRequest, _| {
        let output =
            InferOutput { tensors: request.inputs, is_last: true, ..InferOutput::default() };
        Ok(Box::pin(futures_util::stream::iter([Ok(output)])) as OutputStream<InferRequest>)
    })
}

fn prompt() -> GenerateRequest {
    GenerateRequest::new(vec![1, 2, 3], StopConditions::after(10))
}

fn tokens(tokens: &[u32]) -> GenerateOutput {
    GenerateOutput { tokens: tokens.to_vec(), ..GenerateOutput::default() }
}

fn context() -> Context {
    Context::new("request")
}

fn in_time(time: Duration) -> Context {
    context().with_deadline(Some(Instant::now() + time))
}

/// Waits until something holds; returns the milliseconds that took, as tasks of this runtime count
/// them: a busy machine takes longer for one.
async fn until(what: impl Fn() -> bool) -> usize {
    let started = Instant::now();
    let mut passed_ms = 0;
    while !what() {
        assert!(started.elapsed() < LONG, "it never came");
        tokio::time::sleep(Duration::from_millis(1)).await;
        passed_ms += 1;
    }
    passed_ms
}
