//! What tests of texts share: a real scheduler over the mock, and whole answers.

use std::sync::Arc;
use std::time::Duration;

use engine::{GenerateOutput, GenerateRequest, OutputStream, Result};
use futures_util::StreamExt;
use worker::generate::{GenerateEngine, SchedulerConfig};
use worker::runner::mock::{self, MockConfig, MockRunner};

pub(crate) mod oracle;

/// Starts a scheduler over the mock.
pub(crate) fn scheduler() -> Arc<GenerateEngine> {
    scheduler_of(MockConfig::default().blocks)
}

/// Starts one with so many KV blocks, of 16 tokens each.
pub(crate) fn scheduler_of(blocks: usize) -> Arc<GenerateEngine> {
    let mock = MockConfig { blocks, ..MockConfig::default() };
    let eos = mock::card("mock", &mock).eos_tokens;
    let runner = Box::new(MockRunner::new(mock));
    let engine =
        GenerateEngine::start(runner, &mock::vocabulary(), eos, SchedulerConfig::default());
    Arc::new(engine.unwrap())
}

/// Puts the outputs of each continuation together.
pub(crate) async fn collect(
    mut stream: OutputStream<GenerateRequest>,
) -> Result<Vec<GenerateOutput>> {
    let mut outputs: Vec<GenerateOutput> = Vec::new();
    while let Some(output) = stream.next().await {
        let mut output = output?;
        assert!(output.kv_source.is_none(), "clients are not told where blocks are");
        output.queue_time = Duration::ZERO;
        match outputs.iter_mut().find(|other| other.index == output.index) {
            Some(other) => {
                assert!(other.finish.is_none(), "an output after the last one");
                other.tokens.extend(output.tokens);
                other.logprobs.extend(output.logprobs);
                other.prompt_logprobs.extend(output.prompt_logprobs);
                (other.finish, other.usage) = (output.finish, output.usage);
                other.end_logprobs = output.end_logprobs;
            }
            None => outputs.push(output),
        }
    }
    outputs.sort_by_key(|output| output.index);
    for usage in outputs.iter_mut().filter_map(|output| output.usage.as_mut()) {
        usage.cached_tokens = 0; // Who comes second finds more.
    }
    Ok(outputs)
}
