//! Every encoding of messages, both ways, by a client that knows all of them.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use proto::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use proto::inference::model_infer_request::InferInputTensor;
use proto::inference::{ModelInferRequest, ModelInferResponse};
use tonic::codec::CompressionEncoding;
use tonic::transport::Channel;

use harness::Server;

mod harness;

async fn connect(server: &Server) -> GrpcInferenceServiceClient<Channel> {
    let address = format!("http://{}", server.address);
    let channel = Channel::from_shared(address).unwrap().connect().await.unwrap();
    GrpcInferenceServiceClient::new(channel)
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
        let server = Server::start(&[
            "--builtin",
            "identity,datatype=FP32",
            "--grpc-response-compression",
            name,
        ]);
        let client = connect(&server).await;
        let mut client = client.send_compressed(encoding).accept_compressed(encoding);
        let answer = client.model_infer(request()).await.unwrap();
        assert_eq!(answer.metadata().get("grpc-encoding").unwrap(), name);
        let answer: ModelInferResponse = answer.into_inner();
        assert_eq!(answer.raw_output_contents, request().raw_input_contents, "{name}");
        // A client that accepts no encoding gets none.
        let mut plain = connect(&server).await;
        let answer = plain.model_infer(request()).await.unwrap();
        assert!(answer.metadata().get("grpc-encoding").is_none(), "{name}");
    }
}
