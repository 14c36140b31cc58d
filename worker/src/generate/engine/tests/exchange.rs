//! Blocks that one engine computed and another one goes on with: every answer is what it is alone,
//! whatever of them came.

use bytes::Bytes;
use engine::{KvBlocks, KvHandoff, KvLayout, KvStore, Salt};

use super::memory::{Memory, SIZE, remembering};
use super::sharing::{alone, essence, mixed};
use super::*;

fn start(blocks: usize) -> Arc<GenerateEngine> {
    Arc::new(remembering(Memory::new(blocks), SchedulerConfig::default()))
}

fn prompt(tokens: u32) -> GenerateRequest {
    let tokens: Vec<TokenId> = (0..tokens).map(|place| place * 7 % 200).collect();
    GenerateRequest::new(tokens, StopConditions { ignore_eos: true, ..StopConditions::after(20) })
}

/// Reads all blocks of a prompt from a place on.
async fn pull(store: &Arc<dyn KvStore>, tokens: &Arc<[TokenId]>, first: usize) -> Vec<Bytes> {
    let mut blocks = Vec::new();
    loop {
        let more = store.read(tokens, first + blocks.len()).await.unwrap();
        if more.is_empty() {
            return blocks;
        }
        blocks.extend(more);
    }
}

/// Lets an engine compute a prompt and nothing else.
async fn prefill(engine: &GenerateEngine, request: &GenerateRequest) {
    let stop = StopConditions::after(1);
    let request = GenerateRequest::new(request.tokens.clone(), stop);
    collect(call(engine, request).await).await.unwrap();
}

fn with(request: &GenerateRequest, first: usize, blocks: Vec<Bytes>) -> GenerateRequest {
    let handoff = Some(KvHandoff::Here(KvBlocks::new(first, blocks, Arc::new(()))));
    GenerateRequest { handoff, ..request.clone() }
}

#[tokio::test]
async fn a_prompt_that_another_engine_computed_costs_its_last_block_only() {
    for tokens in [16, 17, 50, 64, 400] {
        let (there, here) = (start(100), start(100));
        let request = prompt(tokens);
        let expected = alone(std::slice::from_ref(&request)).await.remove(0);
        prefill(&there, &request).await;
        let store = there.store(None).unwrap();
        let whole = tokens as usize / SIZE;
        assert_eq!(store.held(&request.tokens).await.unwrap(), whole, "{tokens} tokens");
        let blocks = pull(&store, &request.tokens, 0).await;
        assert_eq!(blocks.len(), whole);
        let answer = collect(call(&here, with(&request, 0, blocks)).await).await.unwrap();
        let cached = answer[0].usage.unwrap().cached_tokens as usize;
        assert_eq!(essence(answer), expected, "{tokens} tokens");
        settles(&here).await;
        // The last token is always computed.
        let found = (tokens as usize - 1) / SIZE;
        let totals = here.totals();
        assert_eq!(cached, found * SIZE);
        assert_eq!(totals.imported_blocks, found as u64);
        // What came from elsewhere says nothing of this cache.
        assert_eq!((totals.prefix_query_tokens, totals.prefix_hit_tokens), (tokens.into(), 0));
        assert_eq!(totals.prefill_tokens, u64::from(tokens) - (found * SIZE) as u64);
        // A step is counted after what it gave away.
        let is_counted = || there.totals().exported_blocks == whole as u64;
        assert!(comes(is_counted).await, "{:?}", there.totals());
    }
}

#[tokio::test]
async fn whatever_comes_of_the_blocks_no_answer_changes() {
    let requests = mixed(60, 6);
    let expected = alone(&requests).await;
    let mut random = fastrand::Rng::with_seed(6);
    let there = start(1000);
    for request in &requests {
        prefill(&there, request).await;
    }
    let store = there.store(None).unwrap();
    for blocks in [1000, 40] {
        let here = start(blocks);
        let mut handed = Vec::new();
        for request in &requests {
            let whole = request.tokens.len() / SIZE;
            let first = random.usize(..=whole).saturating_sub(1);
            let mut blocks = pull(&store, &request.tokens, first).await;
            blocks.truncate(random.usize(..=blocks.len()));
            if random.u32(..8) == 0
                && let Some(last) = blocks.last_mut()
            {
                *last = last.slice(1..); // Of another model: it is left alone.
            }
            handed.push(with(request, first, blocks));
        }
        for round in 0..2 {
            let calls = handed.iter().map(|request| async {
                essence(collect(call(&here, request.clone()).await).await.unwrap())
            });
            let answers = futures_util::future::join_all(calls).await;
            for (index, (answer, expected)) in answers.iter().zip(&expected).enumerate() {
                assert_eq!(answer, expected, "request {index}, round {round}, {blocks} blocks");
            }
        }
        settles(&here).await;
        // How many are used depends on who comes first: what one has computed others find.
        assert!(here.totals().imported_blocks > 0, "{:?}", here.totals());
    }
}

#[tokio::test]
async fn a_long_prompt_is_put_back_in_parts_while_others_go_on() {
    let there = start(100);
    let long = GenerateRequest::new(vec![9; 800], StopConditions::after(1));
    let expected = essence(collect(call(&there, long.clone()).await).await.unwrap());
    let blocks = pull(&there.store(None).unwrap(), &long.tokens, 0).await;
    let runner = Memory::slow(100, Duration::from_millis(5));
    let most_written = runner.most_written();
    let config = SchedulerConfig { restored_blocks: 4, ..SchedulerConfig::default() };
    let here = remembering(runner, config);
    let mut busy = prompt(3);
    busy.stop.max_tokens = 700;
    let mut busy = call(&here, busy).await;
    busy.next().await.unwrap().unwrap();
    let answer = collect(call(&here, with(&long, 0, blocks)).await).await.unwrap();
    assert_eq!(essence(answer), expected);
    drop(busy);
    settles(&here).await;
    let most = most_written.load(std::sync::atomic::Ordering::Relaxed);
    assert!((1..=4).contains(&most), "{most} blocks were written between two steps");
}

#[tokio::test]
async fn what_lies_in_front_of_the_blocks_that_came_is_computed_and_no_more() {
    for (first, tokens) in [(1, 33), (5, 100), (5, 400), (24, 400), (25, 400), (40, 800)] {
        let (there, here) = (start(100), start(100));
        let request = prompt(tokens);
        let expected = alone(std::slice::from_ref(&request)).await.remove(0);
        prefill(&there, &request).await;
        let blocks = pull(&there.store(None).unwrap(), &request.tokens, first).await;
        // As if those in front had been here when it was asked, and given up since.
        let answer = collect(call(&here, with(&request, first, blocks)).await).await.unwrap();
        assert_eq!(essence(answer), expected, "{tokens} tokens from block {first} on");
        settles(&here).await;
        let last = (tokens as usize - 1) / SIZE;
        let imported = last.saturating_sub(first);
        let totals = here.totals();
        assert_eq!(
            totals.imported_blocks, imported as u64,
            "{tokens} tokens from block {first} on"
        );
        assert_eq!(totals.prefill_tokens, u64::from(tokens) - (imported * SIZE) as u64);
    }
}

#[tokio::test]
async fn blocks_that_found_no_room_are_put_back_when_there_is_some() {
    let there = start(100);
    let request = prompt(400);
    let expected = alone(std::slice::from_ref(&request)).await.remove(0);
    prefill(&there, &request).await;
    let blocks = pull(&there.store(None).unwrap(), &request.tokens, 0).await;
    // It is let in when its first chunk has room, and takes the rest from one that is less urgent.
    let config = SchedulerConfig { batch_tokens: 32, ..SchedulerConfig::default() };
    // That one stands still behind its prompt until the other is asked for.
    let (runner, go) = Memory::slow(30, Duration::from_millis(2)).held_at(320);
    let here = remembering(runner, config);
    let mut idler = GenerateRequest::new(vec![3; 320], StopConditions::after(100));
    idler.stop.ignore_eos = true;
    let mut idler = call(&here, idler).await;
    idler.next().await.unwrap().unwrap();
    let context = Context::new("test").with_priority(1);
    let answer = here.call(with(&request, 0, blocks), context).await.unwrap();
    go.send(()).unwrap();
    assert_eq!(essence(collect(answer).await.unwrap()), expected);
    collect(idler).await.unwrap();
    let totals = here.totals();
    assert!(totals.preemptions > 0, "{totals:?}");
    assert!((20..=24).contains(&totals.imported_blocks), "{totals:?}");
}

#[tokio::test]
async fn others_go_on_between_the_parts_of_a_copy() {
    // Two blocks come at once, so a prompt of five takes three reads, and two of these fill a step.
    let runner = Memory::slow(100, Duration::from_millis(20)).with_block_bytes(4 << 20);
    let reads = runner.reads();
    let engine = Arc::new(remembering(runner, SchedulerConfig::default()));
    let request = prompt(80);
    prefill(&engine, &request).await;
    // Its text takes 20 s, far longer than all that is read here.
    let mut busy = prompt(3);
    busy.stop.max_tokens = 990;
    let mut busy = call(&engine, busy).await;
    busy.next().await.unwrap().unwrap();
    let store = engine.store(None).unwrap();
    let blocks = pull(&store, &request.tokens, 0).await;
    assert_eq!((blocks.len(), blocks[0].len()), (5, 4 << 20));
    let alone = std::mem::take(&mut *reads.lock().unwrap());
    assert!(alone.len() == 5 && alone[0] < alone[4], "no pass in between: {alone:?}");
    let pulls = (0..4).map(|_| pull(&store, &request.tokens, 0));
    let all = futures_util::future::join_all(pulls).await;
    assert!(all.iter().all(|others| *others == blocks));
    busy.next().await.unwrap().unwrap();
    drop(busy);
    // One that is short of 16 MiB takes those of one more order: five blocks.
    let reads = std::mem::take(&mut *reads.lock().unwrap());
    let most = reads.chunk_by(|one, next| one == next).map(<[usize]>::len).max();
    assert!(reads.len() == 20 && most <= Some(5), "{reads:?}");
}

#[tokio::test]
async fn only_equal_tokens_of_an_equal_adapter_are_found() {
    let engine = start(100);
    let request = prompt(64);
    prefill(&engine, &request).await;
    let store = engine.store(None).unwrap();
    let other: Arc<[TokenId]> = prompt(64).tokens.iter().map(|token| token + 1).collect();
    let longer: Arc<[TokenId]> = request.tokens.iter().copied().chain([1; 40]).collect();
    for (tokens, held) in [(&request.tokens, 4), (&other, 0), (&longer, 4)] {
        assert_eq!(store.held(tokens).await.unwrap(), held);
    }
    assert!(store.read(&request.tokens, 4).await.unwrap().is_empty());
    assert!(store.read(&request.tokens, usize::MAX).await.unwrap().is_empty());
    let adapted = engine.store(Some(AdapterId(7))).unwrap();
    assert_eq!(adapted.held(&request.tokens).await.unwrap(), 0);
    let layout = KvLayout { salt: Salt(7), ..store.layout() };
    assert_eq!(adapted.layout(), layout);
    let config = SchedulerConfig { has_prefix_cache: false, ..SchedulerConfig::default() };
    assert!(Arc::new(remembering(Memory::new(4), config)).store(None).is_none());
}

#[tokio::test]
async fn an_engine_that_has_stopped_says_so_and_one_that_is_idle_answers() {
    let engine = start(100);
    let store = engine.store(None).unwrap();
    let tokens = prompt(64).tokens;
    for _ in 0..100 {
        assert_eq!(store.held(&tokens).await.unwrap(), 0);
    }
    for job in engine.waiting.close(Error::new(ErrorKind::Unavailable, "stopped")) {
        drop(job);
    }
    assert_eq!(store.held(&tokens).await.unwrap_err().kind(), ErrorKind::Unavailable);
}
