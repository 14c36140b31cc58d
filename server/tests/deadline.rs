//! `grpc-timeout` is the server's business too: a client that only sends the header, and keeps no
//! clock of its own, is answered when the time is over.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use bytes::{BufMut, Bytes};
use http::{HeaderMap, Request};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use proto::inference::ModelInferRequest;
use proto::inference::model_infer_request::InferInputTensor;

use harness::Server;

mod harness;

/// Returns the gRPC status and text that a call with a header of some timeout ends with.
async fn call(server: &Server, rpc: &str, timeout: &str) -> (String, String) {
    let input = InferInputTensor {
        name: "INPUT0".into(),
        datatype: "FP32".into(),
        shape: vec![1],
        ..Default::default()
    };
    let message = ModelInferRequest {
        model_name: "identity".into(),
        inputs: vec![input],
        raw_input_contents: vec![Bytes::from_static(&[0; 4])],
        ..Default::default()
    };
    let mut frame = vec![0];
    frame.put_u32(message.encoded_len() as u32);
    frame.extend(message.encode_to_vec());
    let request = Request::post(format!("http://x/inference.GRPCInferenceService/{rpc}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("grpc-timeout", timeout)
        .body(Full::new(Bytes::from(frame)))
        .unwrap();
    let stream = tokio::net::TcpStream::connect(&server.address).await.unwrap();
    let connection =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = connection.await.unwrap();
    let answer = async {
        let answer = sender.send_request(request).await.unwrap();
        let headers = answer.headers().clone();
        let collected = answer.into_body().collect().await.unwrap();
        collected.trailers().cloned().unwrap_or(headers)
    };
    let trailers: HeaderMap = tokio::select! {
        answer = answer => answer,
        ended = connection => panic!("the connection ended: {ended:?}"),
    };
    let text = |name: &str| {
        trailers.get(name).map_or(String::new(), |value| value.to_str().unwrap().to_owned())
    };
    (text("grpc-status"), text("grpc-message"))
}

#[tokio::test]
async fn a_timeout_in_the_header_ends_the_call_with_deadline_exceeded() {
    let server = Server::start(&["--builtin", "identity,datatype=FP32,delay_ms=5000"]);
    for rpc in ["ModelInfer", "ModelStreamInfer"] {
        let (code, text) = call(&server, rpc, "100m").await;
        assert_eq!(code, "4", "{rpc}: {text}");
        let (code, text) = call(&server, rpc, "soon").await;
        assert_eq!(code, "3", "{rpc}: {text}");
    }
}
