//! Measures the scheduler alone: mock tokens through streams, in tokens a second.
//!
//! The first argument is the number of streams, 32 if there is none.

use std::time::Instant;

use engine::{Context, Engine, GenerateRequest, StopConditions};
use futures_util::StreamExt;
use worker::generate::{GenerateEngine, SchedulerConfig};
use worker::runner::mock::{self, MockConfig, MockRunner};

/// Tokens of each.
const TOKENS: u32 = 8000;

#[expect(clippy::print_stdout, reason = "the example's purpose is to print")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let streams = std::env::args().nth(1).map_or(Ok(32), |text| text.parse::<usize>())?;
    let runner = Box::new(MockRunner::new(MockConfig::default()));
    let vocabulary = mock::vocabulary();
    let max_running_sequences = streams.max(1);
    let config = SchedulerConfig { max_running_sequences, ..SchedulerConfig::default() };
    let engine = GenerateEngine::start(runner, &vocabulary, vec![256], config)?;
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let started = Instant::now();
    let (tokens, outputs) = runtime.block_on(async {
        let requests = (0..streams).map(|_| async {
            let request = GenerateRequest::new(vec![1; 16], StopConditions::after(TOKENS));
            let mut stream = engine.call(request, Context::new("")).await?;
            let (mut tokens, mut outputs) = (0, 0);
            while let Some(output) = stream.next().await {
                tokens += output?.tokens.len();
                outputs += 1;
            }
            Ok::<_, engine::Error>((tokens, outputs))
        });
        let sums = futures_util::future::join_all(requests).await;
        sums.into_iter()
            .try_fold((0, 0), |(tokens, outputs), sum| sum.map(|(t, o)| (tokens + t, outputs + o)))
    })?;
    let seconds = started.elapsed().as_secs_f64();
    println!("{streams} streams: {:.2} million tokens/s", tokens as f64 / seconds / 1e6);
    println!("{:.1} tokens an output", tokens as f64 / f64::from(outputs));
    Ok(())
}
