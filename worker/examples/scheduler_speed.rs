//! Measures streams through the scheduler without a server, in tokens a second:
//! `scheduler_speed [STREAMS [TOKENS [MODEL [THREADS [TEMPERATURE]]]]]`; without a model, or with
//! `-`, the mock, which takes no time of its own.
//!
//! Each stream has a prompt of its own: equal ones would be read from the same blocks of the cache
//! for as long as their tokens agree.

use std::path::Path;
use std::time::Instant;

use engine::{Context, Engine, GenerateRequest, Sampling, StopConditions, TokenId};
use futures_util::StreamExt;
use futures_util::future::try_join_all;
use worker::generate::{GenerateEngine, SchedulerConfig};
use worker::runner::cpu::{CpuOptions, CpuRunner};
use worker::runner::mock::{self, MockConfig, MockRunner};

/// How often all streams are run.
const ROUNDS: usize = 3;

fn start(streams: usize, model: Option<&str>, threads: usize) -> Result<GenerateEngine, Error> {
    let max_running_sequences = streams.max(1);
    let config = SchedulerConfig { max_running_sequences, ..SchedulerConfig::default() };
    let Some(model) = model else {
        let runner = Box::new(MockRunner::new(MockConfig::default()));
        return Ok(GenerateEngine::start(runner, &mock::vocabulary(), vec![256], config)?);
    };
    let options = CpuOptions {
        threads,
        context_length: None,
        kv_cache_bytes: 1 << 30,
        batch_tokens: config.batch_tokens,
    };
    let loaded = CpuRunner::load(Path::new(model), &options)?;
    let (runner, eos) = (Box::new(loaded.runner), loaded.card.eos_tokens);
    Ok(GenerateEngine::start(runner, &loaded.vocabulary, eos, config)?)
}

/// Returns the prompt of a stream: its tokens go by the stream's digits to the base of 250.
fn prompt(stream: usize) -> Vec<TokenId> {
    let digits = std::iter::successors(Some(stream), |rest| Some(rest / 250));
    let token = |(place, digit): (usize, usize)| (digit % 250 * 7 + place * 11) % 250 + 1;
    digits.take(16).enumerate().map(|each| token(each) as TokenId).collect()
}

/// Runs one stream; returns its tokens and outputs.
async fn run(
    engine: &GenerateEngine,
    stream: usize,
    tokens: usize,
    temperature: f32,
) -> engine::Result<(usize, usize)> {
    let stop = StopConditions { ignore_eos: true, ..StopConditions::after(tokens as u32) };
    let mut request = GenerateRequest::new(prompt(stream), stop);
    request.sampling = Sampling { temperature, ..Sampling::default() };
    let mut stream = engine.call(request, Context::new("")).await?;
    let (mut tokens, mut outputs) = (0, 0);
    while let Some(output) = stream.next().await {
        tokens += output?.tokens.len();
        outputs += 1;
    }
    Ok((tokens, outputs))
}

type Error = Box<dyn std::error::Error>;

#[expect(clippy::print_stdout, reason = "the example's purpose is to print")]
fn main() -> Result<(), Error> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |index: usize, default: usize| {
        arguments.get(index).map_or(Ok(default), |text| text.parse::<usize>())
    };
    let (streams, tokens) = (number(0, 32)?, number(1, 8000)?);
    let model = arguments.get(2).map(String::as_str).filter(|model| *model != "-");
    let engine = start(streams, model, number(3, 2)?)?;
    let temperature = arguments.get(4).map_or(Ok(0.0), |text| text.parse::<f32>())?;
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    for _ in 0..ROUNDS {
        let started = Instant::now();
        let each = (0..streams).map(|stream| run(&engine, stream, tokens, temperature));
        let sums = runtime.block_on(try_join_all(each))?;
        let (tokens, outputs) =
            sums.into_iter().fold((0, 0), |(t, o), (tokens, outputs)| (t + tokens, o + outputs));
        let rate = tokens as f64 / started.elapsed().as_secs_f64();
        let each = tokens as f64 / outputs as f64;
        println!("{streams} streams: {rate:.0} tokens/s, {each:.1} tokens an output");
    }
    Ok(())
}
