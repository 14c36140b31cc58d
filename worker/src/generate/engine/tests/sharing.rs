//! Shared, copied and lost blocks change no answer: whatever happens to a request, it says what
//! it says alone.

use std::sync::atomic::Ordering;

use engine::{Constraint, EmbedRequest, Guided, Sampling};
use futures_util::future::join_all;

use super::memory::{Memory, SIZE, remembering};
use super::*;
use crate::generate::DiskTierConfig;

/// Requests of all kinds, many of which begin alike.
pub(super) fn mixed(count: usize, seed: u64) -> Vec<GenerateRequest> {
    let mut random = fastrand::Rng::with_seed(seed);
    let families: Vec<Vec<TokenId>> =
        (0..3).map(|_| (0..random.usize(40..90)).map(|_| random.u32(..256)).collect()).collect();
    let request = |index: usize| {
        let family = &families[random.usize(..3)];
        let mut tokens = family[..random.usize(1..=family.len())].to_vec();
        tokens.extend((0..random.usize(..20)).map(|_| random.u32(..256)));
        let mut request = GenerateRequest::new(tokens, StopConditions::after(random.u32(1..50)));
        let seed = Some(random.u64(..));
        match index % 5 {
            0 => {}
            1 => request.sampling = Sampling { temperature: 1.0, seed, ..Sampling::default() },
            2 => {
                request.sampling = Sampling {
                    temperature: 0.8,
                    top_p: 0.9,
                    frequency_penalty: 1.0,
                    repetition_penalty: 1.2,
                    seed,
                    ..Sampling::default()
                };
                request.choices = NonZeroU32::new(3).unwrap();
            }
            3 => {
                request.guided = Some(Guided::new(Constraint::Regex("[a-z]{5}( [0-9]+)*".into())));
                request.sampling = Sampling { temperature: 2.0, seed, ..Sampling::default() };
            }
            _ => request.prompt_logprobs = Some(1),
        }
        request.logprobs = Some(1).filter(|_| random.bool());
        request.stop.ignore_eos = random.bool();
        request
    };
    (0..count).map(request).collect()
}

/// What is the same however a request was computed.
pub(super) fn essence(outputs: Vec<GenerateOutput>) -> Vec<GenerateOutput> {
    let plain = |mut output: GenerateOutput| {
        output.queue_time = Duration::ZERO;
        if let Some(usage) = &mut output.usage {
            usage.cached_tokens = 0;
        }
        output
    };
    outputs.into_iter().map(plain).collect()
}

/// Returns the answers of requests that come one at a time to an engine that shares nothing.
pub(super) async fn alone(requests: &[GenerateRequest]) -> Vec<Vec<GenerateOutput>> {
    let config = SchedulerConfig { has_prefix_cache: false, ..SchedulerConfig::default() };
    let engine = remembering(Memory::new(1000), config);
    let mut answers = Vec::new();
    for request in requests {
        answers.push(essence(collect(call(&engine, request.clone()).await).await.unwrap()));
    }
    assert_eq!(engine.totals().preemptions, 0);
    answers
}

async fn together(
    engine: &GenerateEngine,
    requests: &[GenerateRequest],
) -> Vec<Vec<GenerateOutput>> {
    let calls = requests.iter().map(|request| async {
        essence(collect(call(engine, request.clone()).await).await.unwrap())
    });
    join_all(calls).await
}

#[tokio::test]
async fn the_prefix_cache_changes_no_answer() {
    let requests = mixed(60, 1);
    let expected = alone(&requests).await;
    for (blocks, batch_tokens) in [(1000, 512), (1000, 40), (60, 512)] {
        let config = SchedulerConfig { batch_tokens, ..SchedulerConfig::default() };
        let engine = remembering(Memory::new(blocks), config);
        for round in 0..3 {
            let answers = together(&engine, &requests).await;
            for (index, (answer, expected)) in answers.iter().zip(&expected).enumerate() {
                assert_eq!(answer, expected, "request {index}, round {round}, {blocks} blocks");
            }
        }
        let totals = engine.totals();
        assert!(totals.prefix_hit_tokens > totals.prefix_query_tokens / 4, "{totals:?}");
        settles(&engine).await;
    }
}

#[tokio::test]
async fn a_request_that_lost_its_blocks_says_what_it_says_alone() {
    let requests = mixed(60, 2);
    let expected = alone(&requests).await;
    for has_prefix_cache in [true, false] {
        for blocks in [12, 25] {
            let config = SchedulerConfig { has_prefix_cache, ..SchedulerConfig::default() };
            let engine = remembering(Memory::new(blocks), config);
            let answers = together(&engine, &requests).await;
            for (index, (answer, expected)) in answers.iter().zip(&expected).enumerate() {
                assert_eq!(answer, expected, "request {index} with {blocks} blocks");
            }
            assert!(engine.totals().preemptions > 10, "{:?}", engine.totals());
            settles(&engine).await;
        }
    }
}

#[tokio::test]
async fn thirty_two_mixed_requests_get_the_tokens_that_each_gets_alone() {
    let requests = mixed(32, 3);
    let expected = alone(&requests).await;
    let engine = remembering(Memory::new(400), SchedulerConfig::default());
    let text: Vec<TokenId> = requests[0].tokens.to_vec();
    let vector = || async {
        let request = EmbedRequest { tokens: text.clone().into(), adapter: None };
        let mut stream = engine.call(request, Context::new("test")).await.unwrap();
        stream.next().await.unwrap().unwrap()
    };
    let first = vector().await;
    let (answers, again) = futures_util::future::join(together(&engine, &requests), vector()).await;
    assert_eq!(answers, expected);
    assert_eq!(again, first);
}

#[tokio::test]
async fn continuations_compute_their_prompt_once_and_equal_separate_requests() {
    for (prompt, has_prefix_cache) in [(5, true), (37, true), (37, false), (48, true)] {
        let config = SchedulerConfig { has_prefix_cache, ..SchedulerConfig::default() };
        let engine = remembering(Memory::new(200), config);
        let mut request = GenerateRequest::new(
            (0..prompt).map(|token| token * 7 % 256).collect::<Vec<TokenId>>(),
            StopConditions { ignore_eos: true, ..StopConditions::after(40) },
        );
        request.sampling = Sampling { temperature: 1.5, seed: Some(11), ..Sampling::default() };
        request.choices = NonZeroU32::new(5).unwrap();
        let answers = collect(call(&engine, request.clone()).await).await.unwrap();
        settles(&engine).await;
        let totals = engine.totals();
        assert_eq!(totals.prefill_tokens, u64::from(prompt));
        assert_eq!(totals.decode_tokens, 5 * 39);
        for answer in &answers {
            let mut single = request.clone();
            single.choices = NonZeroU32::MIN;
            // The seed that this continuation's draws begin with.
            let offset = u64::from(answer.index).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            single.sampling.seed = Some(11 ^ offset);
            let single = collect(call(&engine, single).await).await.unwrap();
            assert_eq!(single[0].tokens, answer.tokens);
        }
    }
}

#[tokio::test]
async fn a_prompt_that_was_seen_costs_its_last_tokens_only() {
    let engine = remembering(Memory::new(100), SchedulerConfig::default());
    let tokens: Vec<TokenId> = (0..64).collect();
    let request =
        |end: usize| GenerateRequest::new(tokens[..end].to_vec(), StopConditions::after(1));
    for (end, cached, computed) in
        [(40, 0, 40), (40, 32, 8), (64, 32, 32), (64, 48, 16), (33, 32, 1)]
    {
        let before = engine.totals().prefill_tokens;
        let outputs = collect(call(&engine, request(end)).await).await.unwrap();
        settles(&engine).await;
        assert_eq!(outputs[0].usage.unwrap().cached_tokens, cached, "{end} tokens");
        assert_eq!(engine.totals().prefill_tokens - before, computed, "{end} tokens");
    }
    // What was drawn is found as well: the next turn of a conversation begins with it.
    let mut turn = request(20);
    turn.stop = StopConditions { ignore_eos: true, ..StopConditions::after(30) };
    let first = collect(call(&engine, turn).await).await.unwrap();
    let next: Vec<TokenId> = tokens[..20].iter().chain(&first[0].tokens).copied().collect();
    let next = GenerateRequest::new(next, StopConditions::after(1));
    let outputs = collect(call(&engine, next).await).await.unwrap();
    assert_eq!(outputs[0].usage.unwrap().cached_tokens, 48);
    settles(&engine).await;
    let load = engine.load();
    assert!(load.cached_blocks >= 6 && load.used_blocks == 0, "{load:?}");
}

#[tokio::test]
async fn prompts_that_begin_alike_and_come_together_are_computed_once() {
    let config = SchedulerConfig { batch_tokens: 64, ..SchedulerConfig::default() };
    let engine = remembering(Memory::new(400), config);
    let requests: Vec<GenerateRequest> = (0..8)
        .map(|last| {
            let mut tokens: Vec<TokenId> = (0..240).map(|token| token % 200).collect();
            tokens.push(last);
            GenerateRequest::new(tokens, StopConditions::after(3))
        })
        .collect();
    let answers = together(&engine, &requests).await;
    settles(&engine).await;
    assert_eq!(answers, alone(&requests).await);
    let totals = engine.totals();
    assert_eq!(totals.prefill_tokens, 240 + 8, "{totals:?}");
    assert_eq!(totals.prefix_hit_tokens, 7 * 240);
}

#[tokio::test]
async fn a_sequence_that_fills_all_blocks_alone_ends_there() {
    let engine = remembering(Memory::new(4), SchedulerConfig::default());
    let mut long = request(30, 500);
    long.stop.ignore_eos = true;
    long.choices = NonZeroU32::new(3).unwrap();
    long.sampling = Sampling { temperature: 1.0, seed: Some(1), ..Sampling::default() };
    let outputs = collect(call(&engine, long).await).await.unwrap();
    for output in &outputs {
        // The last token drawn needs no place.
        let tokens = output.tokens.len();
        assert_eq!((tokens, output.finish), (4 * SIZE + 1 - 30, Some(FinishReason::Length)));
    }
    settles(&engine).await;
}

#[tokio::test]
async fn guesses_change_no_answer() {
    let mut requests = mixed(40, 4);
    let expected = alone(&requests).await;
    for (blocks, draft_tokens) in [(1000, 4), (30, 3)] {
        let config = SchedulerConfig { draft_tokens, ..SchedulerConfig::default() };
        let engine = remembering(Memory::new(blocks), config);
        assert_eq!(together(&engine, &requests).await, expected);
        // One at a time there is room for guesses.
        for (request, expected) in requests.iter().zip(&expected) {
            let answer = collect(call(&engine, request.clone()).await).await.unwrap();
            assert_eq!(&essence(answer), expected);
        }
        assert!(engine.totals().drafted_tokens > 10, "{:?}", engine.totals());
        settles(&engine).await;
    }
    // A text that repeats itself is guessed, and its answer takes fewer steps.
    let reply = "one two three one two three one two three one two three one two three.";
    let mock = MockConfig { reply: Some(reply.into()), ..MockConfig::default() };
    let config = SchedulerConfig { draft_tokens: 6, ..SchedulerConfig::default() };
    let engine = engine(mock, config);
    requests.truncate(1);
    requests[0] = request(4, 200);
    let answer = together(&engine, &requests).await.remove(0).remove(0);
    let bytes: Vec<u8> = answer.tokens.iter().map(|&token| token as u8).collect();
    assert_eq!(bytes, reply.as_bytes());
    settles(&engine).await;
    let totals = engine.totals();
    assert!(totals.accepted_tokens > 35 && totals.steps < 40, "{totals:?}");
}

#[tokio::test]
async fn blocks_come_back_from_memory_and_disk_as_they_were() {
    let requests = mixed(60, 5);
    let expected = alone(&requests).await;
    let folder = tempfile::tempdir().unwrap();
    for (host_tier_bytes, disk_bytes) in [(1 << 20, 0), (0, 1 << 20), (5000, 1 << 20), (900, 4000)]
    {
        let folder = folder.path().join(format!("{host_tier_bytes}-{disk_bytes}"));
        let disk = DiskTierConfig { folder, max_bytes: disk_bytes };
        let config = SchedulerConfig {
            host_tier_bytes,
            disk_tier: Some(disk).filter(|disk| disk.max_bytes > 0),
            ..SchedulerConfig::default()
        };
        let engine = remembering(Memory::new(30), config);
        let all_came_back = |totals: &engine::WorkerTotals| {
            (host_tier_bytes < 1 << 20 || totals.host_hit_blocks > 50)
                && (disk_bytes < 1 << 20 || totals.disk_hit_blocks > 20)
        };
        // A disk that is busy with other things takes fewer blocks in a round.
        for round in 0..100 {
            let answers = together(&engine, &requests).await;
            for (index, (answer, expected)) in answers.iter().zip(&expected).enumerate() {
                assert_eq!(answer, expected, "request {index}, round {round}");
            }
            if round >= 2 && all_came_back(&engine.totals()) {
                break;
            }
        }
        settles(&engine).await;
        assert!(all_came_back(&engine.totals()), "{:?}", engine.totals());
    }
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let disk = DiskTierConfig { folder: file, max_bytes: 1 };
    let config = SchedulerConfig { disk_tier: Some(disk), ..SchedulerConfig::default() };
    let runner = Box::new(Memory::new(1));
    let error = GenerateEngine::start(runner, &Vocabulary::default(), vec![], config).unwrap_err();
    assert!(error.to_string().contains("file"), "{error}");
}

#[tokio::test]
async fn a_long_prompt_comes_back_in_parts_while_others_go_on() {
    let runner = Memory::slow(70, Duration::from_millis(5));
    let most_written = runner.most_written();
    let config = SchedulerConfig {
        host_tier_bytes: 1 << 20,
        restored_blocks: 4,
        ..SchedulerConfig::default()
    };
    let engine = remembering(runner, config);
    let prompt = |first: u32| {
        let tokens: Vec<TokenId> = (0..800).map(|place| (first + place * 7) % 200 + 20).collect();
        GenerateRequest::new(tokens, StopConditions::after(1))
    };
    let expected = essence(collect(call(&engine, prompt(1)).await).await.unwrap());
    // Another long prompt takes all blocks.
    collect(call(&engine, prompt(2)).await).await.unwrap();
    let mut busy = request(3, 900);
    busy.stop.ignore_eos = true;
    let mut busy = call(&engine, busy).await;
    busy.next().await.unwrap().unwrap();
    let restored = essence(collect(call(&engine, prompt(1)).await).await.unwrap());
    assert_eq!(restored, expected);
    drop(busy);
    settles(&engine).await;
    let (totals, most) = (engine.totals(), most_written.load(Ordering::Relaxed));
    assert!(totals.host_hit_blocks >= 20, "{totals:?}");
    assert!((1..=4).contains(&most), "{most} blocks were written between two steps");
}
