//! Who gets in when, who is told what while waiting, and that nobody waits for ever.

use futures_util::future::join_all;

use super::memory::{Memory, remembering};
use super::*;

fn single() -> SchedulerConfig {
    SchedulerConfig { max_running_sequences: 1, ..SchedulerConfig::default() }
}

#[tokio::test]
async fn a_deadline_is_told_while_the_request_waits_for_a_place() {
    let engine = engine(slow(), single());
    let mut running = call(&engine, request(1, 5000)).await;
    running.next().await.unwrap().unwrap();
    let deadline = Instant::now() + Duration::from_millis(30);
    let context = Context::new("test").with_deadline(Some(deadline));
    let waiting = engine.call(request(1, 1), context).await.unwrap();
    let error = collect(waiting).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    assert!(error.message().contains("while the request waited"), "{error}");
    assert_eq!(engine.load().running_sequences, 1, "the other one still runs");
    assert_eq!(engine.load().waiting_requests, 0);
    drop(running);
    settles(&engine).await;
}

#[tokio::test]
async fn urgent_requests_cannot_hold_back_others_for_ever() {
    let (engine, passes) = pace::timed(single(), MockConfig::default());
    let mut running = call(&engine, request(1, 5000)).await;
    running.next().await.unwrap().unwrap();
    // Its prompt is longer than the others'.
    let mut all = vec![call(&engine, request(2, 1)).await];
    for _ in 0..40 {
        let context = Context::new("test").with_priority(1);
        all.push(engine.call(request(1, 1), context).await.unwrap());
    }
    drop(running);
    for answer in join_all(all.into_iter().map(collect)).await {
        answer.unwrap();
    }
    let prompts = passes.lock().unwrap().iter().map(|(_, prompt, _)| *prompt).collect::<Vec<_>>();
    // The first one is of whoever ran.
    let order: Vec<_> = prompts.into_iter().filter(|&prompt| prompt > 0).skip(1).collect();
    assert_eq!(order.len(), 41);
    let place = order.iter().position(|&prompt| prompt == 2).unwrap();
    assert!(place > 5 && place <= 16, "it came in {place}: {order:?}");
}

#[tokio::test]
async fn the_youngest_of_the_least_urgent_gives_way() {
    let (runner, go) = Memory::new(8).held_at(1);
    let last_passes = runner.last_passes();
    let config = SchedulerConfig { watermark: 0.0, ..SchedulerConfig::default() };
    let engine = remembering(runner, config);
    let mut streams = Vec::new();
    for (priority, prompt) in [5, 5, 2, 0].into_iter().zip(1..) {
        let mut request = request(prompt, 80);
        request.stop.ignore_eos = true;
        let context = Context::new("test").with_priority(priority);
        streams.push(engine.call(request, context).await.unwrap());
    }
    // All are there before one of them has its second token.
    go.send(()).unwrap();
    // Each needs 6 of 8 blocks in the end, so only one can finish at a time.
    for outputs in join_all(streams.into_iter().map(collect)).await {
        assert_eq!(outputs.unwrap()[0].tokens.len(), 80);
    }
    assert!(engine.totals().preemptions >= 3);
    let mut order = [1, 2, 3, 4];
    order.sort_by_key(|prompt| last_passes.lock().unwrap()[prompt]);
    assert_eq!(order, [3, 1, 2, 4], "by the tokens of their prompts");
    settles(&engine).await;
}

#[tokio::test]
async fn small_budgets_leave_nobody_out() {
    // More decoding sequences than tokens of a pass, and prompts among them.
    let config = SchedulerConfig { batch_tokens: 4, ..SchedulerConfig::default() };
    let engine = remembering(Memory::new(500), config);
    let runs = (0..30).map(|index| {
        let mut request = request(1 + index * 3, 20);
        request.stop.ignore_eos = true;
        collect_from(&engine, request)
    });
    for outputs in join_all(runs).await {
        assert_eq!(outputs[0].tokens.len(), 20);
    }
    settles(&engine).await;
}

async fn collect_from(engine: &GenerateEngine, request: GenerateRequest) -> Vec<GenerateOutput> {
    collect(call(engine, request).await).await.unwrap()
}
