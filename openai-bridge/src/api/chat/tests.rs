//! Chat completions, streamed and whole.

use engine::FinishReason;

use super::*;
use crate::Finish;

fn stamp() -> Stamp {
    Stamp { id: "0123".into(), created: 7, model: "m".into() }
}

fn form(options: StreamOptions) -> Chat {
    Chat::new(stamp(), options, 1, false)
}

fn output(events: Vec<Event>, finish: Option<FinishReason>) -> TextOutput {
    let finish = finish.map(|reason| Finish { reason, stop: None, cached_tokens: 0 });
    let is_last = finish.is_some();
    let delta = Delta { events, finish, tokens: 1, ..Delta::default() };
    TextOutput { deltas: vec![delta], prompt_tokens: [3].into(), is_last, ..Default::default() }
}

/// Returns the JSON of each frame but the last, which has to be the end.
fn frames(out: &[u8]) -> Vec<Json> {
    let text = std::str::from_utf8(out).unwrap();
    let mut frames: Vec<&str> = text.split_terminator("\n\n").collect();
    assert_eq!(frames.pop(), Some("data: [DONE]"));
    let json = |frame: &str| serde_json::from_str(frame.strip_prefix("data: ").unwrap()).unwrap();
    frames.into_iter().map(json).collect()
}

fn text(text: &str) -> Event {
    Event::Content(text.into())
}

#[test]
fn a_stream_has_a_role_deltas_an_end_and_the_usage() {
    let options = StreamOptions { is_streaming: true, has_usage: true, ..Default::default() };
    let (mut form, mut out) = (form(options), Vec::new());
    form.write(output(vec![text("a \"")], None), &mut out);
    form.write(output(vec![text("b")], Some(FinishReason::Length)), &mut out);
    form.end(&mut out);
    let frames = frames(&out);
    let deltas: Vec<&Json> = frames.iter().map(|frame| &frame["choices"][0]["delta"]).collect();
    assert_eq!(*deltas[0], json!({"role": "assistant", "content": "", "refusal": null}));
    assert_eq!((deltas[1], deltas[2]), (&json!({"content": "a \""}), &json!({"content": "b"})));
    assert_eq!(*deltas[3], json!({}));
    assert_eq!(frames[3]["choices"][0]["finish_reason"], "length");
    assert!(frames[..4].iter().all(|frame| frame.get("usage") == Some(&Json::Null)));
    assert_eq!(frames[4]["choices"], json!([]));
    assert_eq!(frames[4]["usage"]["total_tokens"], 5);
    assert!(frames.iter().all(|frame| frame["id"] == "chatcmpl-0123" && frame["created"] == 7));
}

#[test]
fn a_call_is_named_once_and_then_grows() {
    let call = |id: Option<&str>| Event::CallBegun {
        index: 0,
        id: id.map(str::to_owned),
        name: "f".into(),
    };
    let grown = |text: &str| Event::Arguments { index: 0, text: text.into() };
    let (mut form, mut out) = (form(StreamOptions::default()), Vec::new());
    form.write(output(vec![call(None), grown("{\"a\"")], None), &mut out);
    form.write(output(vec![grown(":1}")], Some(FinishReason::Stop)), &mut out);
    form.end(&mut out);
    let frames = frames(&out);
    let calls = |index: usize| &frames[index]["choices"][0]["delta"]["tool_calls"][0];
    let id = calls(1)["id"].as_str().unwrap();
    assert!(id.starts_with("call_") && id.len() == 29, "{id}");
    assert_eq!(calls(1)["function"], json!({"name": "f", "arguments": ""}));
    assert_eq!(*calls(2), json!({"index": 0, "function": {"arguments": "{\"a\""}}));
    assert_eq!(frames[4]["choices"][0]["finish_reason"], "tool_calls");

    let mut fold = Fold::default();
    fold.push(output(vec![call(None), grown("{}")], Some(FinishReason::Stop)));
    let whole = form.whole(fold);
    let message = &whole["choices"][0]["message"];
    assert_eq!(message["content"], Json::Null);
    assert_eq!(message["tool_calls"][0]["id"], id, "both forms give a call the same id");
    assert_eq!(whole["choices"][0]["finish_reason"], "tool_calls");
}

#[test]
fn a_call_that_was_cut_off_ended_by_length() {
    let call = Event::CallBegun { index: 0, id: None, name: "f".into() };
    let mut fold = Fold::default();
    fold.push(output(vec![call], Some(FinishReason::Length)));
    let whole = form(StreamOptions::default()).whole(fold);
    assert_eq!(whole["choices"][0]["finish_reason"], "length");
}

#[test]
fn an_error_ends_the_stream_with_a_frame() {
    let (mut form, mut out) = (form(StreamOptions::default()), Vec::new());
    form.write(output(vec![text("a")], None), &mut out);
    form.fail(&json!({"message": "broken"}), &mut out);
    assert_eq!(frames(&out).pop(), Some(json!({"error": {"message": "broken"}})));
}
