//! Both ends against a gRPC library that knows nothing of them, as workers in other languages are.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use cluster::request::{ClientConfig, RemoteWorker, Served, ServerConfig, Tcp, WorkerServer};
use engine::testing::{Scripted, Step, free_port};
use engine::{
    Context, EmbedRequest, EmbedTextRequest, Engine, Error, ErrorKind, GenerateOutput,
    GenerateRequest, InferOutput, InferRequest, OutputStream, StopConditions, Tasks, TextForm,
    TextRequest,
};
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, stream};
use proto::worker as wire;
use tensor::Tensor;
use tokio::net::TcpListener;
use tonic::transport::Channel;
use tonic::{Request as Asked, Response, Status};
use wire::worker_client::WorkerClient;
use wire::worker_server::{Worker, WorkerServer as OtherServer};

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(60);

/// Answers with its inputs, or refuses when it has none.
struct Identity;

#[async_trait]
impl Engine<InferRequest> for Identity {
    async fn call(
        &self,
        request: InferRequest,
        _context: Context,
    ) -> engine::Result<OutputStream<InferRequest>> {
        if request.inputs.is_empty() {
            return Err(Error::new(ErrorKind::Overloaded, "full").with_code("busy"));
        }
        let output = InferOutput { tensors: request.inputs, ..InferOutput::default() };
        Ok(Box::pin(stream::iter([Ok(output)])))
    }
}

fn tokens(tokens: &[u32]) -> GenerateOutput {
    GenerateOutput { tokens: tokens.to_vec(), ..GenerateOutput::default() }
}

fn in_time() -> Context {
    Context::new("request").with_deadline(Some(Instant::now() + LONG))
}

#[tokio::test]
async fn a_client_of_another_make_is_served() {
    let error = Error::new(ErrorKind::Overloaded, "full").with_code("busy");
    let script = vec![Step::Output(tokens(&[1, 2])), Step::Error(error)];
    let late = Arc::new(Scripted::<GenerateRequest>::new(vec![Step::Sleep(LONG)]));
    let server = WorkerServer::new(ServerConfig::default(), None);
    let generates = |engine: Arc<Scripted<GenerateRequest>>| Served {
        generate: Some(engine),
        ..Served::default()
    };
    server.insert("model", generates(Arc::new(Scripted::new(script))));
    server.insert("late", generates(late.clone()));
    server.insert("same", Served { infer: Some(Arc::new(Identity)), ..Served::default() });
    let tasks = Tasks::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let owner = tasks.clone();
    tasks.spawn("worker", async move { server.serve(listener, &owner).await });
    let channel = Channel::from_shared(address).unwrap().connect().await.unwrap();
    let mut client = WorkerClient::new(channel);

    let request = wire::GenerateRequest { model: "model".into(), ..Default::default() };
    let mut outputs = client.generate(request).await.unwrap().into_inner();
    assert_eq!(outputs.message().await.unwrap().unwrap().tokens, [1, 2]);
    let status = outputs.message().await.unwrap_err();
    assert_eq!((status.code(), status.message()), (tonic::Code::ResourceExhausted, "full"));
    let failure = status.metadata().get_bin("stator-failure-bin").unwrap().to_bytes().unwrap();
    let failure = <wire::Failure as prost::Message>::decode(failure).unwrap();
    assert_eq!(failure.code.as_deref(), Some("busy"));

    let data = Bytes::from(vec![3; 200_000]);
    let tensor = wire::Tensor {
        name: "x".into(),
        datatype: "UINT8".into(),
        shape: vec![200_000],
        ..Default::default()
    };
    let request = wire::InferRequest {
        model: "same".into(),
        inputs: vec![tensor.clone()],
        contents: vec![data.clone()],
        ..Default::default()
    };
    let mut outputs = client.infer(request).await.unwrap().into_inner();
    let output = outputs.message().await.unwrap().unwrap();
    assert!(output.contents == [data.clone()] && output.tensors == [tensor.clone()]);
    assert!(outputs.message().await.unwrap().is_none());
    // A refusal comes without headers, so that the call itself fails.
    let empty = wire::InferRequest { model: "same".into(), ..Default::default() };
    let refused = client.infer(empty).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
    let described = client.describe(wire::DescribeRequest {}).await.unwrap().into_inner();
    assert_eq!(described.models.len(), 3);
    // It is late by the worker's clock, whatever the client does then; the call has to begin in time.
    let request = wire::GenerateRequest { model: "late".into(), ..Default::default() };
    let mut request = Asked::new(request);
    request.metadata_mut().insert("grpc-timeout", "5S".parse().unwrap());
    let mut outputs = client.generate(request).await.unwrap().into_inner();
    let status = outputs.message().await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::DeadlineExceeded);
    assert_eq!(late.live_streams(), 0);
    tasks.cancel();
}

/// A worker in the manner of another language's: it leaves out what it can.
struct Other;

type Outputs<T> = BoxStream<'static, Result<T, Status>>;

#[tonic::async_trait]
impl Worker for Other {
    type GenerateStream = Outputs<wire::GenerateOutput>;
    type InferStream = Outputs<wire::InferOutput>;
    type GenerateTextStream = Outputs<wire::TextDelta>;
    type FetchStream = Outputs<wire::Chunk>;
    type WatchStream = Outputs<wire::WorkerEvent>;
    type PullBlocksStream = Outputs<wire::KvBlock>;

    async fn generate(
        &self,
        request: Asked<wire::GenerateRequest>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        let request = request.into_inner();
        if request.tokens == [0] {
            return Err(Status::resource_exhausted("not now"));
        }
        let output = |token| wire::GenerateOutput { tokens: vec![token], ..Default::default() };
        let outputs = request.tokens.into_iter().map(move |token| match token {
            99 => Err(Status::aborted("enough")),
            token => Ok(output(token)),
        });
        Ok(Response::new(stream::iter(outputs).boxed()))
    }

    async fn infer(
        &self,
        request: Asked<wire::InferRequest>,
    ) -> Result<Response<Self::InferStream>, Status> {
        let wire::InferRequest { inputs: tensors, contents, .. } = request.into_inner();
        let output = wire::InferOutput { tensors, contents, ..Default::default() };
        Ok(Response::new(stream::iter([Ok(output)]).boxed()))
    }

    async fn embed(
        &self,
        request: Asked<wire::EmbedRequest>,
    ) -> Result<Response<wire::Embedding>, Status> {
        let values = request.into_inner().tokens.into_iter().map(|token| token as f32).collect();
        Ok(Response::new(wire::Embedding { values }))
    }

    async fn generate_text(
        &self,
        request: Asked<wire::GenerateTextRequest>,
    ) -> Result<Response<Self::GenerateTextStream>, Status> {
        let Some(wire::generate_text_request::Body::Chat(body)) = request.into_inner().body else {
            return Err(Status::invalid_argument("expected a chat"));
        };
        let content = String::from_utf8_lossy(&body).into_owned();
        let delta = wire::TextDelta { content, ..Default::default() };
        Ok(Response::new(stream::iter([Ok(delta)]).boxed()))
    }

    async fn embed_text(
        &self,
        request: Asked<wire::EmbedTextRequest>,
    ) -> Result<Response<wire::TextEmbedding>, Status> {
        let values = request.into_inner().text.bytes().map(f32::from).collect();
        Ok(Response::new(wire::TextEmbedding { values, prompt_tokens: 1 }))
    }

    async fn describe(
        &self,
        _: Asked<wire::DescribeRequest>,
    ) -> Result<Response<wire::Description>, Status> {
        let model = wire::ServedModel { name: "model".into(), ..Default::default() };
        let models = vec![model];
        Ok(Response::new(wire::Description { models, ..Default::default() }))
    }

    async fn fetch(
        &self,
        _: Asked<wire::FetchRequest>,
    ) -> Result<Response<Self::FetchStream>, Status> {
        Err(Status::unimplemented("no files"))
    }

    async fn drain(
        &self,
        _: Asked<wire::DrainRequest>,
    ) -> Result<Response<wire::DrainReply>, Status> {
        Err(Status::unimplemented("no draining"))
    }

    async fn watch(
        &self,
        _: Asked<wire::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        Ok(Response::new(stream::pending().boxed()))
    }

    async fn pull_blocks(
        &self,
        _: Asked<wire::PullBlocksRequest>,
    ) -> Result<Response<Self::PullBlocksStream>, Status> {
        Err(Status::unimplemented("no blocks"))
    }
}

#[tokio::test]
async fn a_worker_of_another_make_is_called() {
    let tasks = Tasks::new();
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    tasks.spawn("other", async move {
        let server = tonic::transport::Server::builder().add_service(OtherServer::new(Other));
        server.serve(address).await.unwrap();
    });
    let config =
        ClientConfig { backoff_first: Duration::from_millis(1), ..ClientConfig::default() };
    let worker = RemoteWorker::new(Tcp::new(address.to_string()), config, &tasks).unwrap();
    while worker.connect().await.is_err() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(worker.describe(LONG).await.unwrap().models[0].name, "model");
    let model = worker.model("model");
    let ask = |tokens: &[u32]| {
        let request = GenerateRequest::new(tokens.to_vec(), StopConditions::after(1));
        let model = model.clone();
        async move { model.call(request, in_time()).await }
    };
    let outputs: Vec<_> = ask(&[4, 5]).await.unwrap().map(Result::unwrap).collect().await;
    assert_eq!(outputs, [tokens(&[4]), tokens(&[5])]);
    let refused = ask(&[0]).await.err().unwrap();
    assert_eq!((refused.kind(), refused.message()), (ErrorKind::Overloaded, "not now"));
    let outputs: Vec<_> = ask(&[4, 99, 5]).await.unwrap().collect().await;
    let error = outputs[1].as_ref().unwrap_err();
    assert_eq!((error.kind(), error.message()), (ErrorKind::Unavailable, "enough"));
    assert_eq!(outputs.len(), 2);

    let inputs = vec![Tensor::from_values("x", vec![70_000], 0..70_000i32)];
    let request = InferRequest { inputs: inputs.clone(), ..InferRequest::default() };
    let mut stream = model.call(request, in_time()).await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap().tensors, inputs);
    assert!(stream.next().await.is_none());
    let request = EmbedRequest { tokens: vec![6, 7].into(), adapter: None };
    let mut stream = model.call(request, in_time()).await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap().values, [6.0, 7.0]);
    let request = TextRequest { form: TextForm::Chat, body: "{}".into() };
    let mut stream = model.call(request, in_time()).await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap().content, "{}");
    let request = TextRequest { form: TextForm::Completion, body: "{}".into() };
    let refused = model.call(request, in_time()).await.err().unwrap();
    assert_eq!((refused.kind(), refused.message()), (ErrorKind::InvalidRequest, "expected a chat"));
    let request = EmbedTextRequest { text: "ab".into() };
    let mut stream = model.call(request, in_time()).await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap().values, [97.0, 98.0]);
    let error = worker.fetch("x", 1, LONG).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unimplemented);
    tasks.cancel();
}
