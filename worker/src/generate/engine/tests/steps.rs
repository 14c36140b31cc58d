//! What happens between two forward passes, which a test lets go one by one.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use super::*;

/// Longer than any pass waits that comes at all.
const EVER: Duration = Duration::from_secs(60);

/// A mock runner whose passes wait until they are let go.
struct Stepped {
    mock: MockRunner,
    begun: SyncSender<usize>,
    go: Receiver<()>,
}

/// Lets passes go; when it is dropped all go.
struct Steps {
    begun: Receiver<usize>,
    go: SyncSender<()>,
}

impl Steps {
    /// Waits until a pass has begun, and returns how many sequences are in it.
    fn begun(&self) -> usize {
        self.begun.recv_timeout(EVER).expect("a pass begins")
    }

    /// Lets the pass go that has begun, and waits for the next one.
    fn next(&self) -> usize {
        self.go.send(()).unwrap();
        self.begun()
    }
}

impl Runner for Stepped {
    fn limits(&self) -> Limits {
        self.mock.limits()
    }

    fn forward(&mut self, batch: &[Entry<'_>]) -> std::result::Result<Outputs<'_>, crate::Error> {
        // Both fail when the test no longer counts.
        let _ = self.begun.send(batch.len());
        let _ = self.go.recv();
        self.mock.forward(batch)
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

fn stepped(blocks: usize, config: SchedulerConfig) -> (GenerateEngine, Steps) {
    let ((begun, seen), (go, wait)) = (sync_channel(1), sync_channel(1));
    let mock = MockRunner::new(MockConfig { blocks, ..MockConfig::default() });
    let runner = Box::new(Stepped { mock, begun, go: wait });
    let engine = GenerateEngine::start(runner, &mock::vocabulary(), Vec::new(), config).unwrap();
    (engine, Steps { begun: seen, go })
}

#[tokio::test]
async fn dropping_the_stream_frees_everything_within_a_step() {
    let config = SchedulerConfig { max_running_sequences: 1, ..SchedulerConfig::default() };
    let (engine, steps) = stepped(100, config);
    let running = call(&engine, request(1, 5000)).await;
    assert_eq!(steps.begun(), 1);
    steps.next();
    let waiting = call(&engine, request(1, 5000)).await;
    assert_eq!(engine.load().waiting_requests, 1);
    drop(waiting);
    assert_eq!(engine.load().waiting_requests, 0);
    // The pass that has begun is the last one.
    drop(running);
    steps.go.send(()).unwrap();
    settles(&engine).await;
    assert!(steps.begun.try_recv().is_err(), "nobody draws from another pass");
}

#[tokio::test]
async fn who_left_makes_no_other_one_wait() {
    let (engine, steps) = stepped(100, SchedulerConfig::default());
    let kept = call(&engine, request(1, 5000)).await;
    let left = call(&engine, request(20, 5000)).await;
    steps.begun();
    while engine.load().used_blocks < 3 {
        steps.next();
    }
    assert_eq!(engine.load().running_sequences, 2);
    drop(left);
    assert_eq!(steps.next(), 1);
    assert_eq!((engine.load().running_sequences, engine.load().used_blocks), (1, 1));
    drop((kept, steps));
    settles(&engine).await;
}

/// Runs two requests in blocks that are too few until one has lost its own; returns the streams, that
/// one's last, or none if its deadline came first.
async fn crowded(
    (engine, steps): (&GenerateEngine, &Steps),
    deadline: Option<Instant>,
) -> Option<[OutputStream<GenerateRequest>; 2]> {
    let urgent = Context::new("urgent").with_priority(1);
    let urgent = engine.call(request(1, 60), urgent).await.unwrap();
    let other = Context::new("other").with_deadline(deadline);
    let other = engine.call(request(1, 60), other).await.unwrap();
    steps.begun();
    for _ in 0..45 {
        if engine.totals().preemptions > 0 {
            return match engine.load().waiting_requests {
                1 => Some([urgent, other]),
                _ if deadline.is_some_and(|at| at <= Instant::now()) => None,
                waiting => panic!("{waiting} wait for blocks"),
            };
        }
        steps.next();
    }
    None
}

fn two() -> SchedulerConfig {
    // Both say the same, and must not find their blocks in each other's.
    SchedulerConfig { has_prefix_cache: false, watermark: 0.0, ..SchedulerConfig::default() }
}

#[tokio::test]
async fn who_leaves_while_it_waits_for_blocks_is_gone_within_a_step() {
    let (engine, steps) = stepped(4, two());
    let [urgent, other] = crowded((&engine, &steps), None).await.expect("blocks for one only");
    drop(other);
    assert_eq!(steps.next(), 1);
    let load = engine.load();
    assert_eq!((load.waiting_requests, load.running_sequences), (0, 1), "{load:?}");
    drop(steps);
    assert_eq!(collect(urgent).await.unwrap()[0].tokens.len(), 60);
    settles(&engine).await;
}

#[tokio::test]
async fn a_deadline_is_told_while_a_sequence_waits_for_blocks() {
    // A machine that is too busy for a short time has a longer one.
    for seconds in [1, 30] {
        let (engine, steps) = stepped(4, two());
        let deadline = Instant::now() + Duration::from_secs(seconds);
        let streams = crowded((&engine, &steps), Some(deadline)).await;
        let Some([urgent, other]) = streams else { continue };
        tokio::time::sleep_until(deadline.into()).await;
        assert_eq!(steps.next(), 1);
        assert_eq!(engine.load().waiting_requests, 0);
        let error = collect(other).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
        assert!(error.message().contains("while generating"), "{error}");
        drop(steps);
        assert_eq!(collect(urgent).await.unwrap()[0].tokens.len(), 60);
        return;
    }
    panic!("no sequence lost its blocks within half a minute");
}

#[tokio::test]
async fn a_request_leaves_others_the_blocks_that_it_is_told_to() {
    // Five of ten blocks for the newcomer, and one that is taken.
    for (watermark, joins) in [(0.0, true), (0.4, true), (0.5, false), (1.0, false)] {
        let config = SchedulerConfig { watermark, ..SchedulerConfig::default() };
        let (engine, steps) = stepped(10, config);
        let first = call(&engine, request(1, 10)).await;
        assert_eq!(steps.begun(), 1);
        let newcomer = call(&engine, request(80, 1)).await;
        steps.next();
        assert_eq!(engine.load().running_sequences, 1 + u32::from(joins), "{watermark}");
        drop(steps);
        assert_eq!(collect(first).await.unwrap()[0].tokens.len(), 10);
        // Where nobody else runs there is nobody to leave blocks for.
        assert_eq!(collect(newcomer).await.unwrap()[0].tokens.len(), 1);
    }
}
