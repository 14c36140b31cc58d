//! Whatever the engine's types can say comes back from the wire as it was.

use std::num::NonZeroU32;
use std::time::Duration;

use bytes::Bytes;
use engine::{
    AdapterId, BlockHash, Constraint, EmbedRequest, Embedding, FinishReason, GenerateOutput,
    GenerateRequest, Guided, InferOutput, InferRequest, KvEvent, KvHandoff, KvLayout, KvSource,
    RequestedOutput, Salt, Sampling, Sequence, SequenceHash, SequenceId, SequenceState,
    StopConditions, StoredBlock, TokenLogprobs, Usage, WorkerLoad,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proto::Received;
use tensor::{Datatype, Parameter, Parameters, Tensor};

use super::*;

/// The frames of an outbox as messages, after a network that cuts them anew.
fn sent(mut outbox: Outbox, cut: usize) -> Vec<Payload> {
    let mut received = Received::default();
    let mut messages = Vec::new();
    while let Some((frame, _)) = outbox.next() {
        for start in (0..frame.len()).step_by(cut) {
            received.push(frame.slice(start..frame.len().min(start + cut)));
            while let Some(message) = received.message(usize::MAX).unwrap() {
                messages.push(message);
            }
        }
    }
    assert!(received.is_empty());
    messages
}

pub(super) fn one(outbox: Outbox, cut: usize) -> Payload {
    let mut messages = sent(outbox, cut);
    assert_eq!(messages.len(), 1);
    messages.remove(0)
}

/// Sends a request and says what arrives.
fn arrival<R: Wire>(request: R, context: &Context, cut: usize) -> Arrival<R> {
    let mut outbox = Outbox::new(usize::MAX);
    request.encode("the model", context, &mut outbox).unwrap();
    let arrival = R::decode(one(outbox, cut)).unwrap();
    assert_eq!(arrival.model, "the model");
    assert_eq!(arrival.context.id(), context.id());
    assert_eq!(arrival.context.priority(), context.priority());
    assert_eq!(arrival.context.trace_parent(), context.trace_parent());
    arrival
}

fn output<R: Wire>(output: R::Output, kept: &R::Kept, cut: usize) -> Option<R::Output> {
    let mut outbox = Outbox::new(usize::MAX);
    R::encode_output(output, &mut outbox).unwrap();
    R::decode_output(one(outbox, cut), kept).unwrap()
}

fn contexts() -> impl Strategy<Value = Context> {
    let trace = option::of("[0-9a-f]{2}-[0-9a-f]{32}");
    (".{0,8}", any::<u64>(), trace).prop_map(|(id, priority, trace)| {
        Context::new(id).with_priority(priority).with_trace_parent(trace.map(Arc::from))
    })
}

fn pairs() -> impl Strategy<Value = Vec<(u32, f32)>> {
    vec((any::<u32>(), -100f32..100.0), 0..4)
}

fn samplings() -> impl Strategy<Value = Sampling> {
    let numbers = [0f32..2.0, 0.0..1.0, 0.0..1.0, 0.0..3.0, -2.0..2.0, -2.0..2.0];
    (numbers, any::<u32>(), any::<Option<u64>>(), pairs()).prop_map(|(n, top_k, seed, bias)| {
        Sampling {
            temperature: n[0],
            top_k,
            top_p: n[1],
            min_p: n[2],
            repetition_penalty: n[3],
            presence_penalty: n[4],
            frequency_penalty: n[5],
            seed,
            logit_bias: bias,
        }
    })
}

fn constraints() -> impl Strategy<Value = Guided> {
    let text = ".{0,8}";
    let constraint = prop_oneof![
        Just(Constraint::JsonObject),
        text.prop_map(Constraint::JsonSchema),
        text.prop_map(Constraint::Regex),
        text.prop_map(Constraint::Grammar),
        vec(text, 0..3).prop_map(Constraint::Choice),
    ];
    (constraint, option::of(text)).prop_map(|(constraint, after)| Guided { constraint, after })
}

prop_compose! {
    fn stops()(
        max_tokens in any::<u32>(),
        min_tokens in any::<u32>(),
        stop_token_ids in vec(any::<u32>(), 0..3),
        ignore_eos in any::<bool>(),
    ) -> StopConditions {
        StopConditions { max_tokens, min_tokens, stop_token_ids, ignore_eos }
    }
}

prop_compose! {
    fn generate_requests()(
        tokens in vec(any::<u32>(), 0..900),
        generated in any::<u32>(),
        choice_offset in any::<u32>(),
        choices in 1u32..,
        sampling in samplings(),
        stop in stops(),
        logprobs in any::<Option<u32>>(),
        prompt_logprobs in any::<Option<u32>>(),
        guided in option::of(constraints()),
        adapter in any::<Option<u64>>(),
        source in kv_sources(),
    ) -> GenerateRequest {
        GenerateRequest {
            tokens: tokens.into(),
            generated,
            choice_offset,
            choices: NonZeroU32::new(choices).unwrap(),
            sampling,
            stop,
            logprobs,
            prompt_logprobs,
            guided,
            adapter: adapter.map(|id| Adapter::new(AdapterId(id), Arc::new(()))),
            handoff: source.map(KvHandoff::At),
        }
    }
}

fn kv_sources() -> impl Strategy<Value = Option<Arc<KvSource>>> {
    let numbers = (any::<u64>(), any::<u64>(), any::<u32>(), any::<u64>());
    let source = (".{0,8}", vec(".{0,8}", 0..3), numbers).prop_map(
        |(address, more_addresses, (fingerprint, salt, block_tokens, block_bytes))| {
            let salt = Salt(salt);
            let layout = KvLayout { fingerprint, salt, block_tokens, block_bytes };
            Arc::new(KvSource { address, more_addresses, layout })
        },
    );
    option::of(source)
}

prop_compose! {
    fn logprobs()(logprob in -50f32..0.0, rank in any::<u32>(), top in pairs()) -> TokenLogprobs {
        TokenLogprobs { logprob, rank, top }
    }
}

prop_compose! {
    fn generate_outputs()(
        index in any::<u32>(),
        tokens in vec(any::<u32>(), 0..5),
        logprobs in vec(logprobs(), 0..3),
        end_logprobs in option::of((any::<u32>(), logprobs())),
        prompt_logprobs in vec(option::of(logprobs()), 0..3),
        finish in option::of(prop_oneof![Just(FinishReason::Stop), Just(FinishReason::Length)]),
        usage in option::of(any::<(u32, u32, u32)>()),
        queue_time in any::<u64>(),
        kv_source in kv_sources(),
    ) -> GenerateOutput {
        let usage = usage.map(|(prompt_tokens, completion_tokens, cached_tokens)| Usage {
            prompt_tokens,
            completion_tokens,
            cached_tokens,
        });
        let queue_time = Duration::from_nanos(queue_time);
        GenerateOutput {
            index,
            tokens,
            logprobs,
            end_logprobs,
            prompt_logprobs,
            finish,
            usage,
            queue_time,
            kv_source,
        }
    }
}

fn parameters() -> impl Strategy<Value = Parameters> {
    let value = prop_oneof![
        any::<bool>().prop_map(Parameter::Bool),
        any::<i64>().prop_map(Parameter::Int64),
        any::<u64>().prop_map(Parameter::Uint64),
        (-1e300..1e300).prop_map(Parameter::Double),
        ".{0,8}".prop_map(Parameter::String),
    ];
    proptest::collection::btree_map(".{0,4}", value, 0..3)
}

prop_compose! {
    fn tensors()(
        name in ".{0,8}",
        kind in 0..Datatype::ALL.len(),
        rows in 0i64..40,
        columns in prop_oneof![0i64..4, Just(700)],
        parameters in parameters(),
        seed in any::<u8>(),
        pieces in 1usize..4,
    ) -> Tensor {
        let datatype = Datatype::ALL[kind];
        let length = (rows * columns) as usize * datatype.size_bytes().unwrap_or(1);
        let data: Vec<u8> = (0..length).map(|at| (at as u8).wrapping_mul(31) ^ seed).collect();
        let piece = length.div_ceil(pieces).max(1);
        let data: Payload = data.chunks(piece).map(Bytes::copy_from_slice).collect();
        let mut tensor = Tensor::new(name, datatype, vec![rows, columns], data);
        tensor.parameters = parameters;
        tensor
    }
}

fn sequences() -> impl Strategy<Value = Sequence> {
    let id = prop_oneof![
        (1..u64::MAX).prop_map(SequenceId::Number),
        ".{1,8}".prop_map(SequenceId::Text),
    ];
    (id, any::<bool>(), any::<bool>(), vec(tensors(), 0..3)).prop_map(|(id, start, end, kept)| {
        let state = SequenceState::default();
        *state.lock() = kept;
        Sequence { id, start, end, state }
    })
}

prop_compose! {
    fn infer_requests()(
        inputs in vec(tensors(), 0..4),
        outputs in vec((".{0,8}", parameters()), 0..3),
        parameters in parameters(),
        sequence in option::of(sequences()),
        is_unary in any::<bool>(),
    ) -> InferRequest {
        let outputs = outputs.into_iter();
        let outputs = outputs.map(|(name, parameters)| RequestedOutput { name, parameters });
        InferRequest { inputs, outputs: outputs.collect(), parameters, sequence, is_unary }
    }
}

/// What a request says, without how its data lies in memory.
fn told(request: &InferRequest) -> String {
    let InferRequest { outputs, parameters, sequence, is_unary, .. } = request;
    let sequence = sequence.as_ref().map(|s| (s.id.clone(), s.start, s.end));
    format!("{outputs:?} {parameters:?} {sequence:?} {is_unary}")
}

fn state_of(request: &InferRequest) -> Option<Vec<Tensor>> {
    request.sequence.as_ref().map(|sequence| sequence.state.lock().clone())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn generation_comes_back(
        request in generate_requests(),
        answer in generate_outputs(),
        context in contexts(),
        cut in 1usize..5000,
    ) {
        let mut back = arrival(request.clone(), &context, cut);
        if let Some(id) = back.adapter {
            back.request.adapt(Adapter::new(id, Arc::new(())));
        }
        prop_assert_eq!(format!("{:?}", back.request), format!("{request:?}"));
        prop_assert_eq!(output::<GenerateRequest>(answer.clone(), &(), cut), Some(answer));
    }

    #[test]
    fn embeddings_come_back(
        tokens in vec(any::<u32>(), 0..50),
        adapter in any::<Option<u64>>(),
        values in vec(-1f32..1.0, 0..900),
        context in contexts(),
        cut in 1usize..5000,
    ) {
        let lease = adapter.map(|id| Adapter::new(AdapterId(id), Arc::new(())));
        let back = arrival(EmbedRequest { tokens: tokens.clone().into(), adapter: lease }, &context, cut);
        prop_assert_eq!(&back.request.tokens[..], &tokens[..]);
        prop_assert_eq!(back.adapter, adapter.map(AdapterId));
        let answer = Embedding { values };
        prop_assert_eq!(output::<EmbedRequest>(answer.clone(), &(), cut), Some(answer));
    }

    #[test]
    fn tensors_and_sequences_come_back(
        request in infer_requests(),
        answer in vec(tensors(), 0..4),
        (parameters, is_last, queue_time) in (parameters(), any::<bool>(), any::<u64>()),
        context in contexts(),
        cut in 1usize..9000,
    ) {
        let back = arrival(request.clone(), &context, cut).request;
        prop_assert_eq!(&back.inputs, &request.inputs);
        prop_assert_eq!(told(&back), told(&request));
        prop_assert_eq!(state_of(&back), state_of(&request));
        let queue_time = Duration::from_nanos(queue_time);
        let answer = InferOutput { tensors: answer, parameters, is_last, queue_time };
        let heard = output::<InferRequest>(answer.clone(), &None, cut).unwrap();
        prop_assert_eq!(&heard.tensors, &answer.tensors);
        prop_assert_eq!(heard.parameters, answer.parameters);
        prop_assert_eq!((heard.is_last, heard.queue_time), (is_last, queue_time));
    }

    #[test]
    fn the_state_that_a_model_leaves_comes_back(kept in vec(tensors(), 0..3), cut in 1usize..9000) {
        let there = SequenceState::default();
        *there.lock() = kept.clone();
        let mut outbox = Outbox::new(usize::MAX);
        InferRequest::encode_end(&Some(there), &mut outbox).unwrap();
        let here = SequenceState::default();
        here.lock().push(Tensor::from_values("old", vec![1], [1i32]));
        let heard = InferRequest::decode_output(one(outbox, cut), &Some(here.clone())).unwrap();
        prop_assert!(heard.is_none());
        prop_assert_eq!(&*here.lock(), &kept);
    }

    #[test]
    fn news_come_back(
        blocks in vec(any::<(u64, u64)>(), 0..4),
        parent in any::<Option<u64>>(),
        block_tokens in any::<u32>(),
        load in any::<[u32; 6]>(),
    ) {
        let stored = blocks.iter().map(|&(sequence, block)| StoredBlock {
            sequence: SequenceHash(sequence),
            block: BlockHash(block),
        });
        let removed = blocks.iter().map(|&(sequence, _)| SequenceHash(sequence)).collect();
        let parent = parent.map(SequenceHash);
        let events = [
            KvEvent::Stored { parent, blocks: stored.collect(), block_tokens },
            KvEvent::Removed { blocks: removed },
            KvEvent::Cleared,
        ];
        for event in events {
            prop_assert_eq!(event_of(event_to(event.clone())).unwrap(), Some(event));
        }
        let load = WorkerLoad {
            waiting_requests: load[0],
            running_sequences: load[1],
            used_blocks: load[2],
            cached_blocks: load[3],
            total_blocks: load[4],
            block_tokens: load[5],
        };
        prop_assert_eq!(load_of(load_to(load)), load);
    }

    #[test]
    fn no_bytes_make_a_reader_panic(bytes in vec(any::<u8>(), 0..200), cut in 1usize..50) {
        let message = || bytes.chunks(cut).map(Bytes::copy_from_slice).collect::<Payload>();
        let _ = GenerateRequest::decode(message());
        let _ = GenerateRequest::decode_output(message(), &());
        let _ = InferRequest::decode(message());
        let _ = InferRequest::decode_output(message(), &Some(SequenceState::default()));
        let _ = EmbedRequest::decode(message());
    }
}

#[test]
fn a_large_tensor_is_never_copied() {
    let data = Bytes::from(vec![7u8; 1 << 20]);
    let tensor = Tensor::new("x", Datatype::Uint8, vec![1 << 20], data.clone());
    let request = InferRequest { inputs: vec![tensor], ..InferRequest::default() };
    let mut outbox = Outbox::new(usize::MAX);
    request.encode("m", &Context::new(""), &mut outbox).unwrap();
    let frames: Vec<Bytes> = std::iter::from_fn(|| outbox.next().map(|(frame, _)| frame)).collect();
    let large: Vec<&Bytes> = frames.iter().filter(|frame| frame.len() > 4096).collect();
    assert_eq!(large.iter().map(|frame| frame.as_ptr()).collect::<Vec<_>>(), [data.as_ptr()]);
    // It comes in frames of HTTP/2, and each of them is a piece of the tensor.
    let mut received = Received::default();
    let pieces: Vec<Bytes> = (0..4).map(|n| data.slice(n << 18..(n + 1) << 18)).collect();
    frames[..frames.len() - 1].iter().cloned().chain(pieces).for_each(|f| received.push(f));
    let message = received.message(usize::MAX).unwrap().unwrap();
    let tensor = InferRequest::decode(message).unwrap().request.inputs.remove(0);
    let found: Vec<*const u8> = tensor.data.segments().map(|segment| segment.as_ptr()).collect();
    assert_eq!(found, (0..4).map(|n| data[n << 18..].as_ptr()).collect::<Vec<_>>());
}

#[test]
fn what_makes_no_sense_is_refused() {
    let refused = |message: wire::InferRequest| {
        InferRequest::decode(Payload::from(message.encode_to_vec())).unwrap_err().to_string()
    };
    let tensor = |datatype: &str, shape: &[i64]| wire::Tensor {
        name: "x".into(),
        datatype: datatype.into(),
        shape: shape.to_vec(),
        ..wire::Tensor::default()
    };
    let with = |tensor, data: &'static [u8]| wire::InferRequest {
        inputs: vec![tensor],
        contents: vec![Bytes::from_static(data)],
        ..wire::InferRequest::default()
    };
    let table = [
        (with(tensor("FP33", &[1]), b"1234"), "tensor `x`: no datatype `FP33`"),
        (with(tensor("FP32", &[2]), b"1234"), "tensor `x`: expected 8 bytes for FP32 [2], got 4"),
        (with(tensor("FP32", &[-1]), b"1234"), "shape [-1] has a negative dimension"),
        (
            wire::InferRequest { contents: Vec::new(), ..with(tensor("FP32", &[1]), b"1234") },
            "`contents`: expected 1 entries, got 0",
        ),
        (
            wire::InferRequest {
                sequence: Some(wire::Sequence::default()),
                ..wire::InferRequest::default()
            },
            "`sequence`: expected an id that is not 0 and not empty",
        ),
    ];
    for (message, text) in table {
        assert_eq!(refused(message), text);
    }
    let guided = wire::GenerateRequest {
        guided: Some(wire::Guided::default()),
        ..wire::GenerateRequest::default()
    };
    let error = GenerateRequest::decode(Payload::from(guided.encode_to_vec())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unimplemented);
    let mut outbox = Outbox::new(10);
    let long = EmbedRequest { tokens: vec![1; 20].into(), adapter: None };
    let error = long.encode("model", &Context::new("id"), &mut outbox).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidRequest);
    assert!(outbox.is_empty());
}

/// Nests a message into a field with a length.
fn nested(field: u8, message: &[u8]) -> Vec<u8> {
    let mut nested = vec![field << 3 | 2];
    prost::encoding::encode_varint(message.len() as u64, &mut nested);
    nested.extend_from_slice(message);
    nested
}

#[test]
fn messages_of_many_empty_things_are_refused_before_they_are_decoded() {
    let many = |field: u8, count: usize| [field << 3 | 2, 0].repeat(count);
    let over = MAX_FIELDS + 1;
    let requests = [
        many(3, over),
        many(4, over),
        many(7, over),
        nested(3, &many(4, over)),
        nested(6, &many(5, over)),
        nested(5, &nested(2, &many(5, over))),
    ];
    for bytes in requests {
        for cut in [bytes.len(), 100_000] {
            let payload: Payload = bytes.chunks(cut).map(Bytes::copy_from_slice).collect();
            let error = InferRequest::decode(payload).unwrap_err();
            assert!(error.message().contains("has too many fields"), "{error}");
        }
    }
    let texts = nested(9, &nested(5, &many(1, over)));
    let error = GenerateRequest::decode(texts.into()).unwrap_err();
    assert!(error.message().contains("has too many fields"), "{error}");
    for output in [many(3, MAX_OUTPUT_FIELDS + 1), nested(4, &many(1, MAX_OUTPUT_FIELDS + 1))] {
        let error = GenerateRequest::decode_output(output.into(), &()).unwrap_err();
        assert!(error.message().contains("has too many fields"), "{error}");
    }
    let error = InferRequest::decode_output(many(3, over).into(), &None).unwrap_err();
    assert!(error.message().contains("has too many fields"), "{error}");
    let delta = nested(5, &many(3, over));
    let error = engine::TextRequest::decode_output(delta.into(), &()).unwrap_err();
    assert!(error.message().contains("has too many fields"), "{error}");
    let models: Result<wire::Description> = message(&many(1, over).into());
    assert!(models.unwrap_err().message().contains("has too many fields"));
}

#[test]
fn as_many_tensors_as_frontends_let_in_pass() {
    let input = Tensor::new("x", Datatype::Uint8, vec![3], Bytes::from_static(b"abc"));
    let output = RequestedOutput { name: "y".to_owned(), ..RequestedOutput::default() };
    let request = InferRequest {
        inputs: vec![input; proto::MAX_TENSORS],
        outputs: vec![output; proto::MAX_TENSORS],
        ..InferRequest::default()
    };
    let back = arrival(request.clone(), &Context::new("1"), 1 << 20).request;
    assert!(back.inputs == request.inputs && back.outputs == request.outputs);
}
