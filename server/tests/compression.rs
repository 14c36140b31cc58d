//! Every encoding of messages, both ways, by a client that knows all of them.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use proto::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use proto::inference::model_infer_request::InferInputTensor;
use proto::inference::{ModelInferRequest, ModelInferResponse};
use tonic::codec::CompressionEncoding;
use tonic::transport::Channel;

/// A running server; it ends with the test.
struct Server {
    process: Child,
    address: String,
}

impl Server {
    fn start(arguments: &[&str]) -> Self {
        let fixed = ["serve", "--no-default-model", "--builtin", "identity,datatype=FP32"];
        let quiet = ["--grpc-host", "127.0.0.1", "--grpc-port", "0", "--no-metrics"];
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

    async fn client(&self) -> GrpcInferenceServiceClient<Channel> {
        let address = format!("http://{}", self.address);
        let channel = Channel::from_shared(address).unwrap().connect().await.unwrap();
        GrpcInferenceServiceClient::new(channel)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn request() -> ModelInferRequest {
    let count = 100_000;
    let input = InferInputTensor {
        name: "INPUT0".into(),
        datatype: "FP32".into(),
        shape: vec![count],
        ..Default::default()
    };
    ModelInferRequest {
        model_name: "identity".into(),
        inputs: vec![input],
        raw_input_contents: vec![vec![7; 4 * count as usize].into()],
        ..Default::default()
    }
}

#[tokio::test]
async fn every_encoding_is_understood_and_spoken() {
    let encodings = [
        ("gzip", CompressionEncoding::Gzip),
        ("deflate", CompressionEncoding::Deflate),
        ("zstd", CompressionEncoding::Zstd),
    ];
    for (name, encoding) in encodings {
        let server = Server::start(&["--grpc-response-compression", name]);
        let client = server.client().await;
        let mut client = client.send_compressed(encoding).accept_compressed(encoding);
        let answer = client.model_infer(request()).await.unwrap();
        assert_eq!(answer.metadata().get("grpc-encoding").unwrap(), name);
        let answer: ModelInferResponse = answer.into_inner();
        assert_eq!(answer.raw_output_contents, request().raw_input_contents, "{name}");
        // A client that accepts no encoding gets none.
        let mut plain = server.client().await;
        let answer = plain.model_infer(request()).await.unwrap();
        assert!(answer.metadata().get("grpc-encoding").is_none(), "{name}");
    }
}
