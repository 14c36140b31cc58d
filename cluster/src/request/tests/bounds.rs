//! What one end may cost the other: lengths of messages, bytes that are read, time that it takes.

use bytes::Bytes;
use futures_util::StreamExt;
use tensor::{Datatype, Tensor};
use tokio::net::TcpStream;

use super::super::codec::{Lane, Wire};
use super::super::failure;
use super::*;

fn bytes(length: usize) -> InferRequest {
    let data = Bytes::from(vec![7; length]);
    let input = Tensor::new("x", Datatype::Uint8, vec![length as i64], data);
    InferRequest { inputs: vec![input], ..InferRequest::default() }
}

fn long_prompt() -> GenerateRequest {
    GenerateRequest::new(vec![1; 2000], StopConditions::after(10))
}

fn both() -> Served {
    let script = vec![Step::Output(tokens(&[1]))];
    Served { infer: infers(identity()).infer, ..generates(Scripted::new(script)) }
}

#[tokio::test]
async fn tokens_have_a_limit_of_their_own_at_both_ends() {
    let short = ClientConfig { max_token_message_bytes: 1000, ..ClientConfig::default() };
    let here = Pair::with(both(), short).await;
    let serving = ServerConfig { max_token_message_bytes: 1000, ..ServerConfig::default() };
    let there = Pair::between(both(), ClientConfig::default(), serving).await;
    for pair in [here, there] {
        let error = pair.model().call(long_prompt(), context()).await.err().unwrap();
        assert_eq!(error.kind(), ErrorKind::InvalidRequest);
        assert!(error.message().contains("at most 1000 pass"), "{error}");
        assert!(pair.model().call(prompt(), context()).await.is_ok());
        assert!(pair.model().call(bytes(5000), context()).await.is_ok());
    }
}

#[tokio::test]
async fn what_is_asked_beside_inference_is_short() {
    let pair = Pair::new(both()).await;
    let error = pair.worker.fetch(&"x".repeat(70_000), 10, LONG).await.unwrap_err();
    assert!(error.message().contains("at most 65536 pass"), "{error}");
}

#[tokio::test]
async fn an_answer_that_is_too_long_is_not_the_clients_fault() {
    let engine = Function(|_: InferRequest, _| {
        let output = InferOutput { tensors: bytes(5000).inputs, ..InferOutput::default() };
        Ok(Box::pin(futures_util::stream::iter([Ok(output)])) as OutputStream<InferRequest>)
    });
    let serving = ServerConfig { max_message_bytes: 1000, ..ServerConfig::default() };
    let pair = Pair::between(infers(engine), ClientConfig::default(), serving).await;
    let mut stream = pair.model().call(InferRequest::default(), context()).await.unwrap();
    let error = stream.next().await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal, "{error}");
    assert!(error.message().contains("at most 1000 pass"), "{error}");
}

#[tokio::test]
async fn requests_have_a_bound_together_until_their_answers_end() {
    let hanging = Hanging::default();
    let waiting = hanging.0.clone();
    let serving = ServerConfig { max_buffered_bytes: 100_000, ..ServerConfig::default() };
    let pair = Pair::between(infers(hanging), ClientConfig::default(), serving).await;
    pair.server.insert("same", infers(identity()));
    let model = pair.model();
    let mut first = Box::pin(model.call(bytes(60_000), context()));
    assert!(futures_util::poll!(first.as_mut()).is_pending());
    tokio::select! {
        _ = first.as_mut() => panic!("it never accepts"),
        _ = until(|| waiting.load(Ordering::SeqCst) == 1) => {}
    }
    let same = pair.worker.model("same");
    let refused = same.call(bytes(60_000), context()).await.err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::Overloaded, "{refused}");
    assert!(same.call(bytes(10_000), context()).await.is_ok());
    drop(first);
    until(|| waiting.load(Ordering::SeqCst) == 0).await;
    // What an engine has taken counts until its answer ends.
    let endless = Function(|_: InferRequest, _| {
        Ok(Box::pin(futures_util::stream::pending()) as OutputStream<InferRequest>)
    });
    pair.server.insert("endless", infers(endless));
    let taken = pair.worker.model("endless").call(bytes(60_000), context()).await.unwrap();
    assert!(pair.server.buffered_bytes() > 60_000);
    assert!(same.call(bytes(60_000), context()).await.is_err());
    assert_eq!(pair.server.buffer_refusals(), 2);
    drop(taken);
    until(|| pair.server.buffered_bytes() == 0).await;
    assert!(same.call(bytes(60_000), context()).await.is_ok());
}

#[tokio::test]
async fn packed_tokens_count_as_the_numbers_that_they_become() {
    let serving = ServerConfig { max_buffered_bytes: 400_000, ..ServerConfig::default() };
    let pair = Pair::between(both(), ClientConfig::default(), serving).await;
    let prompt = |tokens| GenerateRequest::new(vec![1; tokens], StopConditions::after(10));
    let error = pair.model().call(prompt(100_000), context()).await.err().unwrap();
    assert_eq!((error.kind(), error.code()), (ErrorKind::Overloaded, Some("no_buffers")));
    assert!(pair.model().call(prompt(10_000), context()).await.is_ok());
}

#[tokio::test]
async fn what_comes_behind_a_calls_message_is_let_fall() {
    let hanging = Hanging::default();
    let waiting = hanging.0.clone();
    let windows_bytes = (256 << 10, 512 << 10);
    let serving = ServerConfig { windows_bytes, ..ServerConfig::default() };
    let pair = Pair::between(infers(hanging), ClientConfig::default(), serving).await;
    pair.server.insert("same", infers(identity()));
    let stream = TcpStream::connect(pair.address).await.unwrap();
    let (mut sender, connection) = h2::client::handshake(stream).await.unwrap();
    pair.here.spawn("connection", async move {
        let _ = connection.await;
    });
    let mut begin = |model: &str, behind: usize| {
        let request = http::Request::post("http://worker/stator.worker.v1.Worker/Infer");
        let begun = sender.send_request(request.body(()).unwrap(), false);
        let (response, mut body) = begun.unwrap();
        let mut outbox = pair.worker.outbox(Lane::Bulk);
        bytes(50_000).encode(model, &context(), &mut outbox).unwrap();
        while let Some((frame, _)) = outbox.next() {
            body.send_data(frame, false).unwrap();
        }
        body.send_data(vec![7; behind].into(), false).unwrap();
        (response, body)
    };
    // Together they are more than the connection's window takes.
    let _calls: Vec<_> = (0..4).map(|_| begin("model", 200 << 10)).collect();
    until(|| waiting.load(Ordering::SeqCst) == 4).await;
    let (response, _body) = begin("same", 0);
    let response = tokio::time::timeout(LONG, response).await.expect("there is room").unwrap();
    assert!(failure::read(response.headers()).is_none());
}

#[tokio::test]
async fn a_request_that_does_not_come_is_not_waited_for() {
    let wait = Duration::from_millis(100);
    let serving = ServerConfig { body_timeout: wait, ..ServerConfig::default() };
    let pair = Pair::between(both(), ClientConfig::default(), serving).await;
    let stream = TcpStream::connect(pair.address).await.unwrap();
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    pair.here.spawn("connection", async move {
        let _ = connection.await;
    });
    let request = http::Request::post("http://worker/stator.worker.v1.Worker/Infer");
    let mut sender = sender.ready().await.unwrap();
    let (response, mut body) = sender.send_request(request.body(()).unwrap(), false).unwrap();
    body.send_data(Bytes::from_static(&[0, 0, 0, 0, 9, 1]), false).unwrap();
    let response = tokio::time::timeout(LONG, response).await.unwrap().unwrap();
    let error = failure::read(response.headers()).unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    assert_eq!(error.message(), "the request did not come within 100ms");
}
