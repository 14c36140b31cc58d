//! Who gets in when, who is told what while waiting, and that nobody waits for ever.

use std::sync::Mutex;

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
    let engine = engine(slow(), single());
    let mut running = call(&engine, request(1, 30)).await;
    running.next().await.unwrap().unwrap();
    let order = Mutex::new(Vec::new());
    let finished = |name: usize, stream| {
        let order = &order;
        async move {
            collect(stream).await.unwrap();
            order.lock().unwrap().push(name);
        }
    };
    let patient = call(&engine, request(1, 1)).await;
    let mut all = vec![finished(1000, patient)];
    for name in 0..40 {
        let context = Context::new("test").with_priority(1);
        let stream = engine.call(request(1, 1), context).await.unwrap();
        all.push(finished(name, stream));
    }
    drop(running);
    join_all(all).await;
    let order = order.into_inner().unwrap();
    let place = order.iter().position(|&name| name == 1000).unwrap();
    assert!(place > 5 && place <= 16, "it came in {place}: {order:?}");
}

#[tokio::test]
async fn the_youngest_of_the_least_urgent_gives_way() {
    let engine = remembering(
        Memory::slow(8, Duration::from_millis(1)),
        SchedulerConfig { watermark: 0.0, ..SchedulerConfig::default() },
    );
    let order = Mutex::new(Vec::new());
    let run = |name: usize, priority| {
        let mut request = request(1 + name, 80);
        request.stop.ignore_eos = true;
        let (engine, order) = (&engine, &order);
        async move {
            let context = Context::new("test").with_priority(priority);
            let stream = engine.call(request, context).await.unwrap();
            let outputs = collect(stream).await.unwrap();
            assert_eq!(outputs[0].tokens.len(), 80);
            order.lock().unwrap().push(name);
        }
    };
    // Each needs 6 of 8 blocks in the end, so only one can finish at a time.
    futures_util::join!(run(0, 5), run(1, 5), run(2, 2), run(3, 0));
    assert!(engine.totals().preemptions >= 3);
    assert_eq!(order.into_inner().unwrap(), [2, 0, 1, 3]);
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
