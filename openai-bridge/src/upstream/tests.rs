//! Streams of several servers, whole and cut, good and bad.

use proptest::prelude::*;
use serde_json::json;

use super::*;

/// Reads a stream that is cut at every `cut` bytes.
fn read(form: TextForm, stream: &str, cut: usize) -> Result<Vec<TextDelta>> {
    let mut answer = UpstreamAnswer::new(form);
    for piece in stream.as_bytes().chunks(cut) {
        answer.push(piece)?;
    }
    answer.end()?;
    Ok(std::iter::from_fn(|| answer.delta()).collect())
}

fn events(events: &[Json]) -> String {
    events.iter().map(|event| format!("data: {event}\n\n")).collect()
}

/// What a server with thoughts, calls and probabilities sends, comments and line ends included.
fn chat() -> String {
    let choice = |delta: Json| json!({"choices": [{"index": 0, "delta": delta}]});
    let call = json!({"index": 0, "id": "c1", "type": "function",
        "function": {"name": "f", "arguments": ""}});
    let more = json!({"index": 0, "function": {"arguments": "{\"a\":\"ü\"}"}});
    let scores = json!({"choices": [{"index": 0, "delta": {"content": "é"}, "logprobs": {"content":
        [{"token": "Ã", "bytes": [195], "logprob": -0.5,
          "top_logprobs": [{"token": "a", "bytes": null, "logprob": -0.25}]}]}}]});
    let all = events(&[
        choice(json!({"role": "assistant", "content": ""})),
        choice(json!({"reasoning_content": "hm"})),
        choice(json!({"reasoning": "so"})),
        scores,
        choice(json!({"tool_calls": [call]})),
        choice(json!({"tool_calls": [more]})),
        json!({"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]}),
        json!({"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 9,
            "prompt_tokens_details": {"cached_tokens": 2}}}),
    ]);
    let all = all.replacen("\n\n", "\r\n\r\n: keep-alive\r\n\r\nevent: x\r\n", 1);
    format!("{all}data: [DONE]\n\ndata: nonsense\n\n")
}

#[test]
fn a_chat_is_read_with_all_that_it_may_have() {
    let deltas = read(TextForm::Chat, &chat(), usize::MAX).unwrap();
    let thoughts: String = deltas.iter().map(|delta| delta.reasoning.as_str()).collect();
    assert_eq!(thoughts, "hmso");
    let scored = deltas.iter().find(|delta| !delta.logprobs.is_empty()).unwrap();
    assert_eq!(scored.content, "é");
    assert_eq!(scored.logprobs[0].token, [195][..]);
    assert_eq!(scored.logprobs[0].top, [(Bytes::from_static(b"a"), -0.25)]);
    let calls: Vec<&CallDelta> = deltas.iter().flat_map(|delta| &delta.calls).collect();
    assert_eq!((calls[0].id.as_str(), calls[0].name.as_str()), ("c1", "f"));
    assert_eq!(calls[1].arguments, "{\"a\":\"ü\"}");
    let finishes: Vec<_> = deltas.iter().filter_map(|delta| delta.finish).collect();
    assert_eq!(finishes, [FinishReason::Stop]);
    let usage = deltas.last().unwrap().usage.unwrap();
    assert_eq!((usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens), (4, 9, 2));
}

proptest! {
    #[test]
    fn however_a_stream_is_cut_it_says_the_same(cut in 1usize..200) {
        let whole = read(TextForm::Chat, &chat(), usize::MAX).unwrap();
        prop_assert_eq!(read(TextForm::Chat, &chat(), cut).unwrap(), whole);
    }

    #[test]
    fn nothing_that_a_server_sends_is_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut answer = UpstreamAnswer::new(TextForm::Completion);
        let _ = answer.push(&bytes).and_then(|()| answer.end());
    }
}

#[test]
fn a_completion_has_lists_of_probabilities() {
    let logprobs = json!({"tokens": ["a", "bytes:\\xe2\\x82"], "token_logprobs": [-1.0, -2.0],
        "top_logprobs": [{"b": -3.0, "a": -1.0}, null], "text_offset": [0, 1]});
    let stream = events(&[
        json!({"choices": [{"index": 1, "text": "a€", "logprobs": logprobs}]}),
        json!({"choices": [{"index": 1, "text": "", "finish_reason": "length"}]}),
    ]);
    let deltas = read(TextForm::Completion, &stream, 7).unwrap();
    assert_eq!((deltas[0].index, deltas[0].content.as_str()), (1, "a€"));
    let top = [(Bytes::from_static(b"a"), -1.0), (Bytes::from_static(b"b"), -3.0)];
    assert_eq!(deltas[0].logprobs[0].top, top);
    assert_eq!(deltas[0].logprobs[1].token, [0xe2, 0x82][..]);
    assert_eq!(deltas[1].finish, Some(FinishReason::Length));
    // It counted nothing, so its events are counted.
    assert_eq!(deltas[2].usage.unwrap().completion_tokens, 1);
}

#[test]
fn an_answer_in_one_piece_is_read_as_well() {
    let calls = json!([{"id": "a", "function": {"name": "f", "arguments": "{}"}},
        {"id": "b", "function": {"name": "g", "arguments": "{}"}}]);
    let body = json!({"choices": [{"index": 0, "finish_reason": "tool_calls",
        "message": {"content": null, "tool_calls": calls}}], "usage": {"prompt_tokens": 1}});
    let mut answer = UpstreamAnswer::new(TextForm::Chat);
    answer.whole(body.to_string().as_bytes()).unwrap();
    let delta = answer.delta().unwrap();
    let numbers: Vec<u32> = delta.calls.iter().map(|call| call.index).collect();
    assert_eq!((numbers, delta.finish), (vec![0, 1], Some(FinishReason::Stop)));
    assert_eq!(answer.delta().unwrap().usage.unwrap().prompt_tokens, 1);
}

#[test]
fn what_breaks_off_or_is_no_answer_is_an_error() {
    let begun = events(&[json!({"choices": [{"index": 0, "text": "a"}]})]);
    let kind = |stream: &str| read(TextForm::Completion, stream, 5).unwrap_err().kind();
    assert_eq!(kind(""), ErrorKind::Unavailable);
    assert_eq!(kind(&begun), ErrorKind::Unavailable);
    assert_eq!(kind(&format!("{begun}data: [DONE]\n\n")), ErrorKind::Unavailable);
    assert_eq!(kind("data: {\n\n"), ErrorKind::Internal);
    let gone = events(&[json!({"choices": [{"index": 0, "text": "", "finish_reason": "abort"}]})]);
    assert_eq!(kind(&gone), ErrorKind::Unavailable);
    let told =
        events(&[json!({"error": {"message": "no", "type": "BadRequestError", "code": 400}})]);
    assert_eq!(kind(&format!("{begun}{told}")), ErrorKind::InvalidRequest);
    let long = format!("data: {}", "x".repeat(MAX_EVENT_BYTES));
    let refused = read(TextForm::Completion, &long, 1 << 16).unwrap_err();
    assert!(refused.message().contains("more than"), "{refused}");
}

#[test]
fn errors_keep_their_kind_and_what_they_say() {
    let told = json!({"message": "too long", "type": "invalid_request_error", "param": "messages",
        "code": "context_length_exceeded"});
    let error = upstream_error(&told, Some(400));
    assert_eq!((error.kind(), error.message()), (ErrorKind::InvalidRequest, "too long"));
    assert_eq!(error.param(), Some("messages"));
    assert_eq!(error.code(), Some("context_length_exceeded"));
    for (status, kind) in [
        (401, ErrorKind::Internal),
        (404, ErrorKind::NotFound),
        (422, ErrorKind::InvalidRequest),
        (429, ErrorKind::Overloaded),
        (500, ErrorKind::Internal),
        (503, ErrorKind::Unavailable),
    ] {
        assert_eq!(upstream_error(&json!({"message": "x"}), Some(status)).kind(), kind, "{status}");
    }
    assert!(!upstream_error(&json!("key sk-1"), Some(401)).message().contains("sk-1"));
}
