//! What a call promises: order, exact errors, cancellation, deadlines, bounds.

use bytes::Bytes;
use engine::{Adapter, AdapterId, EmbedRequest, Embedding, Sequence, SequenceId, SequenceState};
use futures_util::{StreamExt, stream};
use tensor::{Datatype, Tensor};

use super::*;

#[tokio::test]
async fn outputs_come_in_order_and_then_the_end() {
    let script = (0..2000).map(|n| Step::Output(tokens(&[n, n + 1]))).collect();
    let pair = Pair::new(generates(Scripted::<GenerateRequest>::new(script))).await;
    let stream = pair.model().call(prompt(), context()).await.unwrap();
    let outputs: Vec<_> = stream.map(Result::unwrap).collect().await;
    let expected: Vec<_> = (0..2000).map(|n| tokens(&[n, n + 1])).collect();
    assert_eq!(outputs, expected);
    assert!(until(|| pair.server.open_calls() == 0).await < 100);
    assert_eq!(pair.worker.in_flight(), 0);
}

#[tokio::test]
async fn tensors_of_any_size_come_back() {
    let pair = Pair::new(infers(identity())).await;
    for size in [0, 1, 64, 2047, 2048, 70_000, 3 << 20] {
        let data: Vec<u8> = (0..size).map(|at: usize| (at * 7) as u8).collect();
        let shape = vec![size as i64];
        let input = Tensor::new("x", Datatype::Uint8, shape, Bytes::from(data));
        let request = InferRequest { inputs: vec![input.clone()], ..InferRequest::default() };
        let mut stream = pair.model().call(request, context()).await.unwrap();
        let output = stream.next().await.unwrap().unwrap();
        assert!(output.tensors == [input] && output.is_last, "{size}");
        assert!(stream.next().await.is_none());
    }
    assert_eq!(pair.connections(), 1);
}

#[tokio::test]
async fn a_context_arrives_as_it_left() {
    let engine = Function(|_: InferRequest, context: Context| {
        let left = context.deadline().unwrap() - Instant::now();
        assert!(left > LONG / 2 && left <= LONG, "{left:?}");
        assert_eq!((context.id(), context.priority()), ("request", 3));
        assert_eq!(context.trace_parent(), Some("00-ab-cd-01"));
        Ok(Box::pin(stream::iter([Ok(InferOutput::default())])) as OutputStream<InferRequest>)
    });
    let pair = Pair::new(infers(engine)).await;
    let context = in_time(LONG).with_priority(3).with_trace_parent(Some("00-ab-cd-01".into()));
    let stream = pair.model().call(InferRequest::default(), context).await.unwrap();
    assert_eq!(stream.count().await, 1);
}

#[tokio::test]
async fn a_refusal_is_the_calls_error_to_the_letter() {
    let error = Error::new(ErrorKind::Overloaded, "queue is full: 7 ä % wait")
        .with_param("input")
        .with_code("busy")
        .with_retry_after(Duration::from_millis(1500));
    let kept = error.clone();
    let pair = Pair::new(infers(Function(move |_: InferRequest, _| Err(kept.clone())))).await;
    let got = pair.model().call(InferRequest::default(), context()).await.err().unwrap();
    assert_eq!((got.kind(), got.message()), (error.kind(), error.message()));
    assert_eq!((got.param(), got.code()), (error.param(), error.code()));
    assert_eq!(got.retry_after(), error.retry_after());
}

#[tokio::test]
async fn an_error_behind_outputs_ends_the_stream_and_is_not_the_calls() {
    let script = vec![
        Step::Output(tokens(&[1])),
        Step::Error(Error::internal("the model broke").with_code("broken")),
        Step::Output(tokens(&[2])),
    ];
    let pair = Pair::new(generates(Scripted::<GenerateRequest>::new(script))).await;
    let mut stream = pair.model().call(prompt(), context()).await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap(), tokens(&[1]));
    let error = stream.next().await.unwrap().unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::Internal, Some("broken")));
    assert!(stream.next().await.is_none());
    // Also when there was no output: the worker had accepted.
    let script = vec![Step::Error(Error::internal("at once"))];
    pair.server.insert("other", generates(Scripted::<GenerateRequest>::new(script)));
    let mut stream = pair.worker.model("other").call(prompt(), context()).await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap_err().message(), "at once");
}

#[tokio::test]
async fn what_a_worker_does_not_have_is_refused() {
    let pair = Pair::new(infers(identity())).await;
    let kind = |result: Result<OutputStream<InferRequest>>| result.err().unwrap().kind();
    let unknown = pair.worker.model("nobody");
    assert_eq!(kind(unknown.call(InferRequest::default(), context()).await), ErrorKind::NotFound);
    let other = pair.model().call(prompt(), context()).await;
    assert_eq!(other.err().unwrap().kind(), ErrorKind::Unimplemented);
    pair.server.remove("model");
    // Others may have it still.
    let removed = pair.model();
    let gone = removed.call(InferRequest::default(), context()).await.err().unwrap();
    assert_eq!((gone.kind(), gone.code()), (ErrorKind::Unavailable, Some("model_gone")));
    // One that goes away says that, whatever it has let go of already.
    pair.server.drain();
    for model in [removed, pair.worker.model("nobody")] {
        let late = model.call(InferRequest::default(), context()).await.err().unwrap();
        assert_eq!((late.kind(), late.code()), (ErrorKind::Unavailable, Some("draining")));
    }
}

struct OneAdapter(Arc<()>);

impl Adapters for OneAdapter {
    fn adapter(&self, id: AdapterId) -> Result<Adapter> {
        let has_it = id == AdapterId(7);
        has_it.then(|| Adapter::new(id, self.0.clone())).ok_or_else(|| Error::not_found("no"))
    }
}

#[tokio::test]
async fn an_adapter_is_held_while_its_request_runs() {
    let engine = Function(|request: EmbedRequest, _| {
        let adapter = request.adapter;
        let output = Embedding { values: vec![adapter.as_ref().map_or(0.0, |a| a.id().0 as f32)] };
        let outputs = stream::iter([Ok(output)]).chain(stream::pending().map(move |item| {
            let _ = &adapter;
            item
        }));
        Ok(Box::pin(outputs) as OutputStream<EmbedRequest>)
    });
    let lease = Arc::new(());
    let pair = Pair::new(Served {
        embed: Some(Arc::new(engine)),
        adapters: Some(Arc::new(OneAdapter(lease.clone()))),
        ..Served::default()
    })
    .await;
    let request = |id: Option<u64>| EmbedRequest {
        tokens: vec![1].into(),
        adapter: id.map(|id| Adapter::new(AdapterId(id), Arc::new(()))),
    };
    let mut stream = pair.model().call(request(Some(7)), context()).await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap().values, [7.0]);
    assert_eq!(Arc::strong_count(&lease), 3);
    drop(stream);
    until(|| Arc::strong_count(&lease) == 2).await;
    let refused = pair.model().call(request(Some(8)), context()).await;
    assert_eq!(refused.err().unwrap().kind(), ErrorKind::NotFound);
    let mut plain = pair.model().call(request(None), context()).await.unwrap();
    assert_eq!(plain.next().await.unwrap().unwrap().values, [0.0]);
}

#[tokio::test]
async fn a_sequences_state_goes_along_and_comes_back() {
    let engine = Function(|request: InferRequest, _| {
        let state = request.sequence.unwrap().state;
        let sum = move || {
            let mut kept = state.lock();
            let before: i32 = kept.iter().flat_map(|t| t.values::<i32>().unwrap()).sum();
            let input: i32 = request.inputs[0].values::<i32>().unwrap().sum();
            *kept = vec![Tensor::from_values("sum", vec![1], [before + input])];
            InferOutput { tensors: kept.clone(), is_last: true, ..InferOutput::default() }
        };
        // The state changes while the stream runs, not before.
        Ok(Box::pin(stream::once(async move { Ok(sum()) })) as OutputStream<InferRequest>)
    });
    let pair = Pair::new(infers(engine)).await;
    let state = SequenceState::default();
    for (number, sum) in [(5, 5), (7, 12), (-2, 10)] {
        let id = SequenceId::Number(1);
        let sequence = Sequence { id, start: sum == 5, end: false, state: state.clone() };
        let request = InferRequest {
            inputs: vec![Tensor::from_values("x", vec![1], [number])],
            sequence: Some(sequence),
            ..InferRequest::default()
        };
        let stream = pair.model().call(request, context()).await.unwrap();
        let outputs: Vec<_> = stream.map(Result::unwrap).collect().await;
        assert_eq!(outputs.len(), 1);
        assert_eq!(outputs[0].tensors[0].values::<i32>().unwrap().sum::<i32>(), sum);
        assert_eq!(*state.lock(), [Tensor::from_values("sum", vec![1], [sum])]);
    }
}

#[tokio::test]
async fn dropping_frees_the_worker_at_once_in_every_phase() {
    let hanging = Hanging::default();
    let waiting = hanging.0.clone();
    let middle = vec![Step::Output(tokens(&[1])), Step::Sleep(LONG)];
    let middle = Arc::new(Scripted::<GenerateRequest>::new(middle));
    let before = Arc::new(Scripted::<GenerateRequest>::new(vec![Step::Sleep(LONG)]));
    let pair = Pair::new(generates(hanging)).await;
    pair.server.insert("before", generates(before.clone()));
    pair.server.insert("middle", generates(middle.clone()));
    let mut times_ms: [Vec<usize>; 3] = Default::default();
    for _ in 0..20 {
        let model = pair.model();
        let mut call = Box::pin(model.call(prompt(), context()));
        assert!(futures_util::poll!(call.as_mut()).is_pending());
        tokio::select! {
            _ = call.as_mut() => panic!("it never accepts"),
            _ = until(|| waiting.load(Ordering::SeqCst) == 1) => {}
        }
        drop(call);
        times_ms[0].push(until(|| waiting.load(Ordering::SeqCst) == 0).await);

        let stream = pair.worker.model("before").call(prompt(), context()).await.unwrap();
        assert_eq!(before.live_streams(), 1);
        drop(stream);
        times_ms[1].push(until(|| before.live_streams() == 0).await);

        let mut stream = pair.worker.model("middle").call(prompt(), context()).await.unwrap();
        stream.next().await.unwrap().unwrap();
        assert_eq!(middle.live_streams(), 1);
        drop(stream);
        times_ms[2].push(until(|| middle.live_streams() == 0).await);
    }
    for phase in &mut times_ms {
        phase.sort();
        assert!(phase[phase.len() / 2] < 10, "{phase:?}");
    }
    assert_eq!((pair.connections(), pair.worker.in_flight()), (1, 0));
    until(|| pair.server.open_calls() == 0).await;
}

#[tokio::test]
async fn a_deadline_ends_every_phase_at_both_ends() {
    let hanging = Hanging::default();
    let waiting = hanging.0.clone();
    let late = Arc::new(Scripted::<GenerateRequest>::new(vec![Step::Sleep(LONG)]));
    let pair = Pair::new(generates(hanging)).await;
    pair.server.insert("late", generates(late.clone()));
    let started = Instant::now();
    let short = in_time(Duration::from_millis(50));
    let error = pair.model().call(prompt(), short).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    until(|| waiting.load(Ordering::SeqCst) == 0).await;
    // It has to be accepted within it.
    let longer = in_time(Duration::from_secs(5));
    let mut stream = pair.worker.model("late").call(prompt(), longer).await.unwrap();
    let error = stream.next().await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    assert!(stream.next().await.is_none());
    until(|| late.live_streams() == 0).await;
    let passed = context().with_deadline(Some(Instant::now()));
    let error = pair.model().call(prompt(), passed).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    // Nobody waited for an engine.
    assert!(started.elapsed() < LONG / 2, "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_slow_reader_slows_its_own_engine_and_nobody_else() {
    let made = Arc::new(AtomicUsize::new(0));
    let count = made.clone();
    let endless = Function(move |_: GenerateRequest, _| {
        let count = count.clone();
        let outputs = stream::repeat_with(move || {
            count.fetch_add(1, Ordering::SeqCst);
            Ok(tokens(&[7; 100]))
        });
        Ok(Box::pin(outputs) as OutputStream<GenerateRequest>)
    });
    let pair = Pair::new(generates(endless)).await;
    let quick = Scripted::<GenerateRequest>::new(vec![Step::Output(tokens(&[1]))]);
    pair.server.insert("quick", generates(quick));
    let mut slow = Vec::new();
    for _ in 0..40 {
        slow.push(pair.model().call(prompt(), context()).await.unwrap());
    }
    let mut before = usize::MAX;
    while before != made.load(Ordering::SeqCst) {
        before = made.load(Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // An output has some 107 bytes: each reader has its window, and a frame that waits.
    let most = 40 * ((64 << 10) + (32 << 10)) / 107;
    assert!(before <= most, "{before} outputs were made, expected at most {most}");
    for _ in 0..100 {
        let stream = pair.worker.model("quick").call(prompt(), context()).await.unwrap();
        assert_eq!(stream.count().await, 1);
    }
    for stream in &mut slow {
        for _ in 0..2000 {
            assert_eq!(stream.next().await.unwrap().unwrap(), tokens(&[7; 100]));
        }
    }
    assert!(made.load(Ordering::SeqCst) > 40 * 2000 / 2);
    assert_eq!(pair.connections(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_requests_at_once_use_one_connection() {
    let pair = Pair::new(infers(identity())).await;
    let model = pair.model();
    let calls = stream::iter(0..1000i32).map(|n| {
        let model = model.clone();
        async move {
            let inputs = vec![Tensor::from_values("x", vec![1], [n])];
            let request = InferRequest { inputs, ..InferRequest::default() };
            let mut stream = model.call(request, in_time(LONG)).await.unwrap();
            let output = stream.next().await.unwrap().unwrap();
            assert_eq!(output.tensors[0].values::<i32>().unwrap().next(), Some(n));
        }
    });
    calls.buffer_unordered(1000).collect::<Vec<()>>().await;
    assert_eq!(pair.connections(), 1);
    assert_eq!(pair.worker.in_flight(), 0);
}

#[tokio::test]
async fn calls_over_the_bound_are_refused() {
    let engine = Scripted::<GenerateRequest>::new(vec![Step::Sleep(LONG)]);
    let config = ClientConfig { max_in_flight: 3, ..ClientConfig::default() };
    let pair = Pair::with(generates(engine), config).await;
    let model = pair.model();
    let mut streams = Vec::new();
    for _ in 0..3 {
        streams.push(model.call(prompt(), context()).await.unwrap());
    }
    let refused = model.call(prompt(), context()).await.err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::Overloaded);
    // What asks whether it is alive is no call.
    assert_eq!(pair.worker.describe(LONG).await.unwrap().models.len(), 1);
    streams.pop();
    assert!(model.call(prompt(), context()).await.is_ok());
}

#[tokio::test]
async fn a_connection_gets_no_more_calls_than_the_worker_takes() {
    let engine = Scripted::<GenerateRequest>::new(vec![Step::Sleep(LONG)]);
    let serving = ServerConfig { max_streams: 8, ..ServerConfig::default() };
    let config = ClientConfig { connections: 2, ..ClientConfig::default() };
    let pair = Pair::between(generates(engine), config, serving).await;
    let mut streams = Vec::new();
    // One of eight is kept for probes, of both connections.
    for _ in 0..14 {
        streams.push(pair.model().call(prompt(), in_time(LONG)).await.unwrap());
    }
    let refused = pair.model().call(prompt(), in_time(LONG)).await.err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::Overloaded, "{refused}");
    assert_eq!(pair.worker.describe(LONG).await.unwrap().models.len(), 1);
    drop(streams.remove(3));
    assert!(pair.model().call(prompt(), in_time(LONG)).await.is_ok());
    assert_eq!(pair.server.connections(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_cancels_leave_nothing_behind() {
    let script = (0..50).flat_map(|n| {
        [Step::Output(tokens(&[n])), Step::Sleep(Duration::from_micros(u64::from(n % 3)))]
    });
    let engine = Arc::new(Scripted::<GenerateRequest>::new(script.collect()));
    let pair = Pair::new(generates(engine.clone())).await;
    let model = pair.model();
    let calls = stream::iter(0..10_000u32).map(|n| {
        let model = model.clone();
        async move {
            let call = model.call(prompt(), context());
            let patience = Duration::from_micros(u64::from(n % 97) * 20);
            let Ok(stream) = tokio::time::timeout(patience, call).await else { return };
            let _: Vec<_> = stream.unwrap().take(n as usize % 40).collect().await;
        }
    });
    calls.buffer_unordered(64).collect::<Vec<()>>().await;
    until(|| engine.live_streams() == 0 && pair.server.open_calls() == 0).await;
    assert_eq!((pair.connections(), pair.worker.in_flight()), (1, 0));
    let whole = model.call(prompt(), context()).await.unwrap();
    assert_eq!(whole.count().await, 50);
}
