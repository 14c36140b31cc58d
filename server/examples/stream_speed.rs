//! Measures streams through a server, in tokens a second:
//! `stream_speed HOST:PORT MODEL [STREAMS [TOKENS [TEMPERATURE [ROUNDS]]]]`.
//!
//! Each round starts all streams at once, each on a connection of its own, and divides their tokens
//! by the time until the last has ended. The prompts are those of the worker's `scheduler_speed`,
//! which measures the same without a server. What the client takes of a core is printed too, since a
//! server beside it has to do without.

use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use proto::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use proto::inference::model_infer_request::InferInputTensor;
use proto::inference::{InferTensorContents as Contents, ModelInferRequest};
use tonic::transport::Channel;

type Client = GrpcInferenceServiceClient<Channel>;
type Error = Box<dyn std::error::Error>;

/// Returns the prompt of a stream: its tokens go by the stream's digits to the base of 250.
fn prompt(stream: usize) -> Vec<i32> {
    let digits = std::iter::successors(Some(stream), |rest| Some(rest / 250));
    let token = |(place, digit): (usize, usize)| (digit % 250 * 7 + place * 11) % 250 + 1;
    digits.take(16).enumerate().map(|each| token(each) as i32).collect()
}

fn input(name: &str, datatype: &str, length: usize, contents: Contents) -> InferInputTensor {
    InferInputTensor {
        name: name.into(),
        datatype: datatype.into(),
        shape: vec![length as i64],
        contents: Some(contents),
        ..Default::default()
    }
}

fn request(model: &str, stream: usize, tokens: usize, temperature: f32) -> ModelInferRequest {
    let numbers = |name, numbers: Vec<i32>| {
        let length = numbers.len();
        input(name, "INT32", length, Contents { int_contents: numbers, ..Default::default() })
    };
    let flag =
        |name| input(name, "BOOL", 1, Contents { bool_contents: vec![true], ..Default::default() });
    let real = Contents { fp32_contents: vec![temperature], ..Default::default() };
    ModelInferRequest {
        model_name: model.into(),
        inputs: vec![
            numbers("input_ids", prompt(stream)),
            numbers("max_tokens", vec![tokens as i32]),
            flag("stream"),
            flag("ignore_eos"),
            input("temperature", "FP32", 1, real),
        ],
        ..Default::default()
    }
}

/// Runs one stream to its end.
async fn run(mut client: Client, request: ModelInferRequest) -> Result<(), Error> {
    let requests = futures_util::stream::iter([request]);
    let mut answers = client.model_stream_infer(requests).await?.into_inner();
    while let Some(answer) = answers.message().await? {
        if !answer.error_message.is_empty() {
            return Err(answer.error_message.into());
        }
    }
    Ok(())
}

/// Returns the time that this thread, the only one, had a core.
fn core_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let first = text.split(' ').next().and_then(|number| number.parse().ok());
    Duration::from_nanos(first.unwrap_or_default())
}

#[tokio::main(flavor = "current_thread")]
#[expect(clippy::print_stdout, reason = "the example's purpose is to print")]
async fn main() -> Result<(), Error> {
    let usage = "usage: stream_speed HOST:PORT MODEL [STREAMS [TOKENS [TEMPERATURE [ROUNDS]]]]";
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, model, ..] = &arguments[..] else { return Err(usage.into()) };
    let number = |index: usize, default: usize| {
        arguments.get(index).map_or(Ok(default), |text| text.parse::<usize>())
    };
    let (streams, tokens, rounds) = (number(2, 32)?, number(3, 120)?, number(5, 3)?);
    let temperature = arguments.get(4).map_or(Ok(0.0), |text| text.parse::<f32>())?;
    let server = Channel::from_shared(format!("http://{address}"))?;
    let channels = try_join_all((0..streams).map(|_| server.connect())).await?;
    let clients: Vec<Client> = channels.into_iter().map(Client::new).collect();
    for _ in 0..rounds {
        let (started, before) = (Instant::now(), core_time());
        let each = clients.iter().enumerate().map(|(stream, client)| {
            run(client.clone(), request(model, stream, tokens, temperature))
        });
        try_join_all(each).await?;
        let seconds = started.elapsed().as_secs_f64();
        let rate = (streams * tokens) as f64 / seconds;
        let share = 100.0 * (core_time() - before).as_secs_f64() / seconds;
        println!("{streams} streams: {rate:.0} tokens/s; the client took {share:.1} % of a core");
    }
    Ok(())
}
