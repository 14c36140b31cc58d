//! Measures streams through a server, in tokens a second:
//! `stream_speed HOST:PORT MODEL [STREAMS [TOKENS [TEMPERATURE [ROUNDS]]]]`.
//!
//! Each round starts all streams at once, each on a connection of its own, and divides the tokens that
//! came by the time until the last stream has ended. The prompts are those of the worker's
//! `scheduler_speed`, which measures the same without a server. On Linux it also prints what the client
//! took of a core, since a server beside it has to do without.

use std::str::FromStr;
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use proto::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use proto::inference::model_infer_request::InferInputTensor;
use proto::inference::{InferTensorContents as Contents, ModelInferRequest};
use tonic::transport::Channel;

const USAGE: &str = "usage: stream_speed HOST:PORT MODEL [STREAMS [TOKENS [TEMPERATURE [ROUNDS]]]]";

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
            flag("return_num_output_tokens"),
            input("temperature", "FP32", 1, real),
        ],
        ..Default::default()
    }
}

/// Runs one stream to its end; returns its tokens.
async fn run(mut client: Client, request: ModelInferRequest) -> Result<usize, Error> {
    let requests = futures_util::stream::iter([request]);
    let mut answers = client.model_stream_infer(requests).await?.into_inner();
    let mut tokens = 0;
    while let Some(answer) = answers.message().await? {
        if !answer.error_message.is_empty() {
            return Err(answer.error_message.into());
        }
        let answer = answer.infer_response.unwrap_or_default();
        for (output, bytes) in answer.outputs.iter().zip(&answer.raw_output_contents) {
            if output.name == "num_output_tokens" {
                let counts = bytes.as_chunks::<4>().0.iter();
                tokens += counts.map(|count| u32::from_le_bytes(*count) as usize).sum::<usize>();
            }
        }
    }
    Ok(tokens)
}

/// Returns the time that this thread, the only one, had a core, where the system tells.
fn core_time() -> Option<Duration> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    Some(Duration::from_nanos(text.split(' ').next()?.parse().ok()?))
}

/// Returns an argument, or what it is by default.
fn number<T: FromStr>(arguments: &[String], index: usize, default: T) -> Result<T, String> {
    let parse = |text: &String| text.parse().map_err(|_| format!("`{text}`: {USAGE}"));
    arguments.get(index).map_or(Ok(default), parse)
}

#[tokio::main(flavor = "current_thread")]
#[expect(clippy::print_stdout, reason = "the example's purpose is to print")]
async fn main() -> Result<(), Error> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, model, ..] = &arguments[..] else { return Err(USAGE.into()) };
    let (streams, tokens): (usize, usize) =
        (number(&arguments, 2, 32)?, number(&arguments, 3, 120)?);
    let (temperature, rounds) = (number(&arguments, 4, 0.0)?, number(&arguments, 5, 3)?);
    let server = Channel::from_shared(format!("http://{address}"))?;
    let channels = try_join_all((0..streams).map(|_| server.connect())).await?;
    let clients: Vec<Client> = channels.into_iter().map(Client::new).collect();
    for _ in 0..rounds {
        let (started, before) = (Instant::now(), core_time());
        let each = clients.iter().enumerate().map(|(stream, client)| {
            run(client.clone(), request(model, stream, tokens, temperature))
        });
        let tokens: usize = try_join_all(each).await?.into_iter().sum();
        let seconds = started.elapsed().as_secs_f64();
        print!("{streams} streams: {:.0} tokens/s", tokens as f64 / seconds);
        match core_time().zip(before) {
            Some((after, before)) => {
                let share = 100.0 * (after - before).as_secs_f64() / seconds;
                println!("; the client took {share:.1} % of a core");
            }
            None => println!(),
        }
    }
    Ok(())
}
