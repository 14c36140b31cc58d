//! Shows Stator's gRPC service in six steps: `./run [host:port] [model]`.

use std::error::Error;
use std::io::Write;

use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use inference::infer_parameter::ParameterChoice::{self, BoolParam, DoubleParam, Int64Param};
use inference::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use inference::{InferParameter, InferTensorContents as Contents, ModelConfigRequest};
use inference::{ModelInferRequest, ModelMetadataRequest, ModelStreamInferResponse};

#[expect(clippy::enum_variant_names, reason = "generated")]
mod inference {
    tonic::include_proto!("inference");
}

type Client = GrpcInferenceServiceClient<Channel>;
type Messages = Streaming<ModelStreamInferResponse>;
type Outcome = Result<(), Box<dyn Error>>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Outcome {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().unwrap_or("localhost:8001".into());
    let model = arguments.next().unwrap_or("smollm2-135m-instruct".into());
    let mut client = Client::connect(format!("http://{address}")).await?;

    show_metadata(&mut client, &model).await?;
    show_config(&mut client, &model).await?;
    infer_sums(&mut client).await?;
    stream_text(&mut client, &model).await?;
    cancel_after_three(&mut client, &model).await?;
    show_error(&mut client).await
}

async fn show_metadata(client: &mut Client, model: &str) -> Outcome {
    let request = ModelMetadataRequest { name: model.into(), ..Default::default() };
    let metadata = client.model_metadata(request).await?.into_inner();
    let inputs = metadata.inputs.iter().map(|input| format!("{} {}", input.name, input.datatype));
    println!("metadata: {}", inputs.collect::<Vec<_>>().join(", "));
    Ok(())
}

async fn show_config(client: &mut Client, model: &str) -> Outcome {
    let request = ModelConfigRequest { name: model.into(), ..Default::default() };
    let config = client.model_config(request).await?.into_inner().config.unwrap_or_default();
    let decoupled = config.model_transaction_policy.is_some_and(|policy| policy.decoupled);
    println!("config: max_batch_size {}, decoupled {decoupled}", config.max_batch_size);
    Ok(())
}

async fn infer_sums(client: &mut Client) -> Outcome {
    let row = |name, numbers| {
        let contents = Contents { int_contents: numbers, ..Default::default() };
        tensor(name, "INT32", vec![1, 16], contents)
    };
    let inputs = vec![row("INPUT0", (0..16).collect()), row("INPUT1", vec![100; 16])];
    let response = client.model_infer(ask("add_sub", inputs, "OUTPUT0")).await?.into_inner();
    // Outputs are raw: here little-endian numbers of four bytes.
    let (numbers, _) = response.raw_output_contents[0].as_chunks();
    let sums = numbers.iter().map(|bytes| i32::from_le_bytes(*bytes).to_string());
    println!("infer: {}", sums.collect::<Vec<_>>().join(" "));
    Ok(())
}

async fn stream_text(client: &mut Client, model: &str) -> Outcome {
    let short = [("max_tokens", Int64Param(16))];
    let mut stream = generate(client, model, "The capital of France is", short).await?;
    print!("stream:");
    let mut is_last = false;
    while !is_last {
        let text;
        (text, is_last) = next(&mut stream).await?;
        print!("{text}");
        std::io::stdout().flush()?;
    }
    println!();
    Ok(())
}

async fn cancel_after_three(client: &mut Client, model: &str) -> Outcome {
    let long = [("max_tokens", Int64Param(1000)), ("ignore_eos", BoolParam(true))];
    let mut stream = generate(client, model, "Once upon a time", long).await?;
    for _ in 0..3 {
        next(&mut stream).await?;
    }
    // In Rust dropping is cancelling: the call ends CANCELLED, and nobody is left to be told.
    drop(stream);
    println!("cancel: CANCELLED after 3 tokens");
    Ok(())
}

async fn show_error(client: &mut Client) -> Outcome {
    match client.model_infer(ask("no_such_model", vec![], "")).await {
        Err(status) if status.code() == Code::NotFound => {
            println!("error: NOT_FOUND: {}", status.message());
            Ok(())
        }
        other => Err(format!("an unknown model should be NOT_FOUND, got {other:?}").into()),
    }
}

/// Opens a stream with one request on it, for a generation that is streamed.
async fn generate(
    client: &mut Client,
    model: &str,
    prompt: &str,
    settings: impl IntoIterator<Item = (&str, ParameterChoice)>,
) -> Result<Messages, Status> {
    let text = Contents { bytes_contents: vec![prompt.into()], ..Default::default() };
    let mut request = ask(model, vec![tensor("text_input", "BYTES", vec![1], text)], "text_output");
    let always = [("stream", BoolParam(true)), ("temperature", DoubleParam(0.0))];
    for (name, value) in always.into_iter().chain(settings) {
        request.parameters.insert(name.into(), InferParameter { parameter_choice: Some(value) });
    }
    Ok(client.model_stream_infer(tokio_stream::once(request)).await?.into_inner())
}

/// Returns the new text of a stream's next message, and whether it is the last one.
async fn next(stream: &mut Messages) -> Result<(String, bool), Box<dyn Error>> {
    let message = stream.message().await?.ok_or("the stream ended before its last response")?;
    if !message.error_message.is_empty() {
        return Err(message.error_message.into());
    }
    let response = message.infer_response.unwrap_or_default();
    // An element of a BYTES tensor begins with its length, in four bytes.
    let text = response.raw_output_contents.first().and_then(|raw| raw.get(4..));
    let last = response.parameters.get("triton_final_response");
    let is_last = last.is_some_and(|last| last.parameter_choice == Some(BoolParam(true)));
    Ok((String::from_utf8_lossy(text.unwrap_or_default()).into(), is_last))
}

fn ask(model: &str, inputs: Vec<InferInputTensor>, output: &str) -> ModelInferRequest {
    let outputs = vec![InferRequestedOutputTensor { name: output.into(), ..Default::default() }];
    ModelInferRequest { model_name: model.into(), inputs, outputs, ..Default::default() }
}

fn tensor(name: &str, datatype: &str, shape: Vec<i64>, contents: Contents) -> InferInputTensor {
    let (name, datatype, contents) = (name.into(), datatype.into(), Some(contents));
    InferInputTensor { name, datatype, shape, contents, ..Default::default() }
}
