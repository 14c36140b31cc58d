//! The engine's promise, on the mock runner: order, finish, cancel, bounds, errors.

use std::num::NonZeroU32;
use std::time::Duration;

use engine::{FinishReason, GenerateOutput, Sampling, StopConditions};
use futures_util::StreamExt;

use super::*;
use crate::runner::mock::{self, MockConfig, MockRunner};
use crate::runner::{BlockId, Entry, Outputs};

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(60);

fn engine(mock: MockConfig, config: SchedulerConfig) -> GenerateEngine {
    let eos = mock::card("mock", &mock).eos_tokens;
    let runner = Box::new(MockRunner::new(mock));
    GenerateEngine::start(runner, &mock::vocabulary(), eos, config).unwrap()
}

fn quick() -> GenerateEngine {
    engine(MockConfig::default(), SchedulerConfig::default())
}

fn slow() -> MockConfig {
    MockConfig { pace: Duration::from_millis(5), ..MockConfig::default() }
}

fn request(prompt: usize, max_tokens: u32) -> GenerateRequest {
    GenerateRequest::new(vec![97; prompt], StopConditions::after(max_tokens))
}

async fn call(engine: &GenerateEngine, request: GenerateRequest) -> OutputStream<GenerateRequest> {
    engine.call(request, Context::new("test")).await.unwrap()
}

async fn collect(mut stream: OutputStream<GenerateRequest>) -> Result<Vec<GenerateOutput>> {
    let mut outputs: Vec<GenerateOutput> = Vec::new();
    while let Some(output) = stream.next().await {
        let output = output?;
        match outputs.iter_mut().find(|other| other.index == output.index) {
            Some(other) => {
                assert!(other.finish.is_none(), "an output after the last one");
                other.tokens.extend(output.tokens);
                other.logprobs.extend(output.logprobs);
                other.end_logprobs = output.end_logprobs;
                other.finish = output.finish;
                other.usage = output.usage;
            }
            None => outputs.push(output),
        }
    }
    outputs.sort_by_key(|output| output.index);
    Ok(outputs)
}

async fn refusal(engine: &GenerateEngine, request: GenerateRequest) -> Error {
    let outcome = engine.call(request, Context::new("test")).await;
    outcome.err().expect("the request had to be refused")
}

/// Waits until the engine holds nothing.
async fn settles(engine: &GenerateEngine) {
    let is_empty = || {
        let load = engine.load();
        (load.used_blocks, load.running_sequences, load.waiting_requests) == (0, 0, 0)
    };
    assert!(comes(is_empty).await, "the engine still holds {:?}", engine.load());
}

/// Waits for what an engine does soon, and returns whether it came.
async fn comes(is_so: impl Fn() -> bool) -> bool {
    let begun = Instant::now();
    while !is_so() {
        if begun.elapsed() > LONG {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    true
}

#[tokio::test]
async fn a_request_gets_its_tokens_and_its_usage() {
    let engine = quick();
    let mut request = request(20, 7);
    request.logprobs = Some(2);
    let outputs = collect(call(&engine, request).await).await.unwrap();
    let [output] = &outputs[..] else { panic!("{outputs:?}") };
    assert_eq!((output.tokens.len(), output.logprobs.len()), (7, 7));
    assert_eq!(output.logprobs[0].top.len(), 2);
    assert_eq!(output.finish, Some(FinishReason::Length));
    let usage = output.usage.unwrap();
    assert_eq!((usage.prompt_tokens, usage.completion_tokens), (20, 7));
    settles(&engine).await;
}

#[tokio::test]
async fn continuations_are_told_apart_and_share_the_answer() {
    let engine = quick();
    let mut request = request(3, 5);
    request.choices = NonZeroU32::new(4).unwrap();
    // Warm enough for the mock's certainty to leave a choice.
    request.sampling.temperature = 20.0;
    request.sampling.seed = Some(1);
    let outputs = collect(call(&engine, request.clone()).await).await.unwrap();
    assert_eq!(outputs.iter().map(|o| o.index).collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert!(outputs.iter().all(|output| output.tokens.len() == 5));
    assert_ne!(outputs[0].tokens, outputs[1].tokens);
    let again = collect(call(&engine, request).await).await.unwrap();
    assert_eq!(outputs[3].tokens, again[3].tokens, "a seed repeats");
}

#[tokio::test]
async fn a_request_gets_the_same_tokens_alone_and_in_a_crowd() {
    let chunked = SchedulerConfig { batch_tokens: 48, ..SchedulerConfig::default() };
    let engine = engine(MockConfig::default(), chunked);
    let alone: Vec<_> = collect(call(&engine, request(100, 30)).await).await.unwrap();
    let mut crowd = Vec::new();
    for prompt in 1..60 {
        crowd.push(call(&engine, request(prompt, 30)).await);
    }
    let among = call(&engine, request(100, 30)).await;
    let others = futures_util::future::join_all(crowd.into_iter().map(collect)).await;
    assert!(others.iter().all(|outputs| outputs.as_ref().unwrap()[0].tokens.len() == 30));
    assert_eq!(collect(among).await.unwrap()[0].tokens, alone[0].tokens);
    settles(&engine).await;
}

#[tokio::test]
async fn a_slow_reader_gets_coalesced_outputs() {
    let engine = quick();
    let mut stream = call(&engine, request(1, 500)).await;
    settles(&engine).await;
    let output = stream.next().await.unwrap().unwrap();
    assert_eq!((output.tokens.len(), output.finish), (500, Some(FinishReason::Length)));
    assert!(stream.next().await.is_none());
}

#[tokio::test]
async fn a_full_queue_refuses_and_urgent_requests_overtake() {
    let config = SchedulerConfig {
        max_running_sequences: 1,
        max_waiting_requests: 3,
        ..SchedulerConfig::default()
    };
    let (engine, passes) = pace::timed(config, MockConfig::default());
    let mut running = call(&engine, request(1, 5000)).await;
    running.next().await.unwrap().unwrap();
    let mut waiting = Vec::new();
    for (priority, prompt) in [(0, 2), (9, 3), (2, 4)] {
        let context = Context::new("test").with_priority(priority);
        waiting.push(engine.call(request(prompt, 2), context).await.unwrap());
    }
    let error = refusal(&engine, request(1, 2)).await;
    assert_eq!(error.kind(), ErrorKind::Overloaded);
    assert!(error.message().contains("Exceeds maximum queue size"), "{error}");
    drop(running);
    for answer in futures_util::future::join_all(waiting.into_iter().map(collect)).await {
        answer.unwrap();
    }
    let prompts = passes.lock().unwrap().iter().map(|(_, prompt, _)| *prompt).collect::<Vec<_>>();
    let order: Vec<_> = prompts.into_iter().filter(|&prompt| prompt > 0).collect();
    assert_eq!(order, [1, 4, 3, 2]);
}

#[tokio::test]
async fn requests_that_can_never_run_are_refused_with_the_numbers() {
    let mock = MockConfig { context_length: 100, blocks: 4, ..MockConfig::default() };
    let engine = engine(mock, SchedulerConfig::default());
    let mut many = request(1, 1);
    many.choices = NonZeroU32::new(65).unwrap();
    let mut strange = request(1, 1);
    strange.tokens = vec![1_000_000].into();
    let scored = |logprobs, prompt_logprobs| GenerateRequest {
        logprobs: Some(logprobs),
        prompt_logprobs: Some(prompt_logprobs),
        ..request(1, 1)
    };
    let cold = Sampling { temperature: -1.0, ..Sampling::default() };
    let table = [
        (scored(21, 0), "`logprobs`: expected at most 20, got 21"),
        (scored(20, u32::MAX), "`prompt_logprobs`: expected at most 20, got 4294967295"),
        (
            GenerateRequest { sampling: cold, ..request(1, 1) },
            "`temperature`: expected a finite number",
        ),
        (request(0, 1), "the prompt has no tokens"),
        (request(1, 0), "`max_tokens`: expected at least 1"),
        (request(100, 1), "the prompt has 100 tokens, the model's context of 100"),
        (request(64, 1), "65 tokens, one to be drawn among them, are more than the 64 that 4 KV"),
        (many, "`n`: expected at most 64 continuations, got 65"),
        (strange, "token 1000000 is not one of"),
    ];
    for (request, fragment) in table {
        let error = refusal(&engine, request).await;
        assert_eq!(error.kind(), ErrorKind::InvalidRequest);
        assert!(error.message().contains(fragment), "expected `{fragment}` in `{error}`");
    }
    let outputs = collect(call(&engine, request(50, 14)).await).await.unwrap();
    assert_eq!(outputs[0].tokens.len(), 14);
    // More than there is room for is no reason to refuse: it ends there.
    let outputs = collect(call(&engine, request(60, 1000)).await).await.unwrap();
    assert_eq!((outputs[0].tokens.len(), outputs[0].finish), (5, Some(FinishReason::Length)));
    settles(&engine).await;
}

#[tokio::test]
async fn the_context_ends_a_request_that_asks_for_more() {
    let mock = MockConfig { context_length: 32, ..MockConfig::default() };
    let engine = engine(mock, SchedulerConfig::default());
    let outputs = collect(call(&engine, request(30, 1000)).await).await.unwrap();
    assert_eq!(outputs[0].tokens.len(), 2);
    assert_eq!(outputs[0].finish, Some(FinishReason::Length));
}

#[tokio::test]
async fn a_deadline_ends_a_request() {
    let engine = engine(slow(), SchedulerConfig::default());
    let deadline = Instant::now() + Duration::from_millis(50);
    let context = Context::new("test").with_deadline(Some(deadline));
    let stream = engine.call(request(1, 5000), context).await.unwrap();
    let error = collect(stream).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    settles(&engine).await;
}

#[tokio::test]
async fn stop_tokens_end_a_request_and_minimum_tokens_hold_them_back() {
    let engine = quick();
    let free = collect(call(&engine, request(1, 10)).await).await.unwrap();
    let fourth = free[0].tokens[3];
    let first = free[0].tokens.iter().position(|&token| token == fourth).unwrap();
    let mut stopped = request(1, 10);
    stopped.stop.stop_token_ids = vec![fourth];
    let outputs = collect(call(&engine, stopped.clone()).await).await.unwrap();
    assert_eq!(outputs[0].tokens, free[0].tokens[..first]);
    assert_eq!(outputs[0].finish, Some(FinishReason::Stop));
    assert_eq!(outputs[0].usage.unwrap().completion_tokens as usize, first + 1);
    stopped.stop.min_tokens = 10;
    let outputs = collect(call(&engine, stopped).await).await.unwrap();
    assert_eq!(outputs[0].tokens.len(), 10);
    assert!(!outputs[0].tokens.contains(&fourth));
}

#[tokio::test]
async fn a_stopped_engine_ends_its_streams() {
    let engine = engine(slow(), SchedulerConfig::default());
    let mut stream = call(&engine, request(1, 5000)).await;
    stream.next().await.unwrap().unwrap();
    drop(engine);
    let error = collect(stream).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
}

fn lonely(runner: Broken) -> GenerateEngine {
    let (vocabulary, config) = (Vocabulary::default(), SchedulerConfig::default());
    GenerateEngine::start(Box::new(runner), &vocabulary, vec![], config).unwrap()
}

/// Fails or panics in its second pass.
struct Broken {
    passes: u32,
    panics: bool,
    logits: Vec<f32>,
}

impl Runner for Broken {
    fn limits(&self) -> Limits {
        MockRunner::new(MockConfig::default()).limits()
    }

    fn forward(&mut self, batch: &[Entry<'_>]) -> std::result::Result<Outputs<'_>, crate::Error> {
        self.passes += 1;
        let vocabulary = self.limits().vocabulary;
        self.logits.resize(batch.len() * vocabulary, 0.0);
        match (self.passes == 2, self.panics) {
            (true, true) => panic!("as the test wants"),
            (true, false) => Err(crate::Error::Device("lost".into())),
            (false, _) => {
                Ok(Outputs { logits: &self.logits, vocabulary, hidden: &[], dimensions: 64 })
            }
        }
    }

    fn copy_block(&mut self, _: BlockId, _: BlockId) -> std::result::Result<(), crate::Error> {
        Ok(())
    }

    fn read_block(&mut self, _: BlockId, _: &mut Vec<u8>) -> std::result::Result<(), crate::Error> {
        Ok(())
    }

    fn write_block(&mut self, _: BlockId, _: &[u8]) -> std::result::Result<(), crate::Error> {
        Ok(())
    }
}

#[tokio::test]
async fn a_failed_pass_fails_its_requests_and_no_others() {
    let runner = Broken { passes: 0, panics: false, logits: Vec::new() };
    let engine = lonely(runner);
    let error = collect(call(&engine, request(1, 9)).await).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal);
    let outputs = collect(call(&engine, request(1, 9)).await).await.unwrap();
    assert_eq!(outputs[0].tokens.len(), 9);
    assert!(engine.is_healthy());
}

#[tokio::test]
async fn a_panic_hangs_nobody_and_is_told() {
    let runner = Broken { passes: 0, panics: true, logits: Vec::new() };
    let engine = lonely(runner);
    let error = collect(call(&engine, request(1, 9)).await).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal);
    assert!(!engine.is_healthy());
    assert_eq!(refusal(&engine, request(1, 9)).await.kind(), ErrorKind::Internal);
}

mod constraints;
mod exchange;
mod fairness;
mod memory;
mod numbers;
mod pace;
mod prompts;
mod resuming;
mod sharing;
mod steps;
