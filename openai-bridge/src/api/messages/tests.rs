//! Messages, streamed and whole: the order of events, the blocks, what is read and refused.

use super::*;
use crate::parser::Event;
use crate::{Delta, Finish};

fn form(is_streaming: bool) -> Messages {
    let stamp = Stamp { id: "0123".into(), created: 7, model: "m".into() };
    Messages {
        writer: Writer { stamp, is_streaming, has_calls: false, content: Vec::new() },
        blocks: Blocks::default(),
        fold: Fold::default(),
        has_begun: false,
    }
}

fn output(events: Vec<Event>, finish: Option<Finish>) -> TextOutput {
    let is_last = finish.is_some();
    let delta = Delta { events, finish, tokens: 1, ..Delta::default() };
    TextOutput { deltas: vec![delta], prompt_tokens: [3].into(), is_last, ..Default::default() }
}

fn finish(reason: FinishReason, stop: Option<&str>) -> Option<Finish> {
    Some(Finish { reason, stop: stop.map(str::to_owned), cached_tokens: 2 })
}

/// Returns the data of each frame, whose event has to be its type.
fn frames(out: &[u8]) -> Vec<Json> {
    let text = std::str::from_utf8(out).unwrap();
    let read = |frame: &str| {
        let (event, data) = frame.split_once('\n').unwrap();
        let data: Json = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(data["type"].as_str(), event.strip_prefix("event: "), "{frame}");
        data
    };
    text.split_terminator("\n\n").map(read).collect()
}

fn told() -> Vec<Event> {
    vec![
        Event::Reasoning("hm".into()),
        Event::Content("a".into()),
        Event::Content("b".into()),
        Event::CallBegun { index: 0, id: None, name: "f".into() },
        Event::Arguments { index: 0, text: "{\"x\":".into() },
        Event::Arguments { index: 0, text: "1}".into() },
    ]
}

#[test]
fn blocks_are_started_grown_and_stopped_in_turn() {
    let (mut form, mut out) = (form(true), Vec::new());
    for event in told() {
        form.write(output(vec![event], None), &mut out);
    }
    form.write(output(vec![], finish(FinishReason::Stop, None)), &mut out);
    form.end(&mut out);
    let frames = frames(&out);
    let line = |frame: &Json| {
        let kind = frame["type"].as_str().unwrap();
        let of = ["content_block", "delta"].iter().find_map(|key| frame[*key]["type"].as_str());
        match frame["index"].as_u64() {
            Some(index) => format!("{kind} {index} {}", of.unwrap_or("-")),
            None => kind.to_owned(),
        }
    };
    let lines: Vec<String> = frames.iter().map(line).collect();
    let expected = [
        "message_start",
        "content_block_start 0 thinking",
        "content_block_delta 0 thinking_delta",
        "content_block_delta 0 signature_delta",
        "content_block_stop 0 -",
        "content_block_start 1 text",
        "content_block_delta 1 text_delta",
        "content_block_delta 1 text_delta",
        "content_block_stop 1 -",
        "content_block_start 2 tool_use",
        "content_block_delta 2 input_json_delta",
        "content_block_delta 2 input_json_delta",
        "content_block_stop 2 -",
        "message_delta",
        "message_stop",
    ];
    assert_eq!(lines, expected);
    let message = &frames[0]["message"];
    assert_eq!((&message["id"], &message["content"]), (&json!("msg_0123"), &json!([])));
    assert_eq!(message["usage"]["input_tokens"], 3);
    assert_eq!(frames[1]["content_block"]["thinking"], "");
    assert_eq!(frames[9]["content_block"]["input"], json!({}));
    assert_eq!(frames[13]["delta"]["stop_reason"], "tool_use");
    let usage = &frames[13]["usage"];
    assert_eq!((&usage["input_tokens"], &usage["output_tokens"]), (&json!(1), &json!(7)));
    assert_eq!(usage["cache_read_input_tokens"], 2);
}

#[test]
fn a_whole_message_has_the_blocks_of_the_stream() {
    let mut form = form(false);
    for event in told() {
        form.collect(output(vec![event], None), &mut Fold::default());
    }
    form.collect(output(vec![], finish(FinishReason::Stop, None)), &mut Fold::default());
    let message = form.whole(Fold::default());
    let content = &message["content"];
    assert_eq!((&content[0]["thinking"], &content[1]["text"]), (&json!("hm"), &json!("ab")));
    assert_eq!((&content[2]["name"], &content[2]["input"]), (&json!("f"), &json!({"x": 1})));
    assert!(content[2]["id"].as_str().unwrap().starts_with("toolu_"));
    assert_eq!((&message["type"], &message["role"]), (&json!("message"), &json!("assistant")));
}

#[test]
fn a_message_says_why_it_ended() {
    let call = || Event::CallBegun { index: 0, id: None, name: "f".into() };
    let text = || Event::Content("a".into());
    let table = [
        (text(), FinishReason::Stop, None, "end_turn"),
        (text(), FinishReason::Length, None, "max_tokens"),
        (text(), FinishReason::Stop, Some("END"), "stop_sequence"),
        (call(), FinishReason::Stop, None, "tool_use"),
        (call(), FinishReason::Length, None, "max_tokens"),
    ];
    for (event, reason, stop, expected) in table {
        let mut form = form(false);
        form.collect(output(vec![event], finish(reason, stop)), &mut Fold::default());
        let message = form.whole(Fold::default());
        assert_eq!(
            (&message["stop_reason"], &message["stop_sequence"]),
            (&json!(expected), &json!(stop))
        );
    }
}

#[test]
fn an_error_is_an_event() {
    let mut out = Vec::new();
    form(true).fail(&json!({"type": "api_error", "message": "broken"}), &mut out);
    let expected = json!({"type": "error", "error": {"type": "api_error", "message": "broken"}});
    assert_eq!(frames(&out), [expected]);
}

fn chat(value: Json) -> Result<Body> {
    input::chat(value.as_object().unwrap().clone())
}

#[test]
fn blocks_are_a_conversation_and_settings_are_those_of_a_chat() {
    let read = chat(json!({
        "system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}],
        "max_tokens": 5,
        "top_k": 3,
        "stop_sequences": ["END"],
        "thinking": {"type": "disabled"},
        "metadata": {"user_id": "u"},
        "tools": [{"name": "f", "description": "d", "input_schema": {"type": "object"}}],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": true},
        "output_config": {"effort": "max", "format": {"type": "json_schema", "schema": {}}},
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "t", "signature": "x"},
                {"type": "tool_use", "id": "c", "name": "f", "input": {"x": 1}},
            ]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "c", "content": [{"type": "text", "text": "1"}]},
                {"type": "text", "text": "go on"},
            ]},
        ],
    }));
    let call =
        json!({"id": "c", "type": "function", "function": {"name": "f", "arguments": "{\"x\":1}"}});
    let expected = json!({
        "max_tokens": 5,
        "top_k": 3,
        "stop": ["END"],
        "chat_template_kwargs": {"enable_thinking": false, "thinking": false},
        "tools": [{"type": "function", "function":
            {"name": "f", "description": "d", "parameters": {"type": "object"}}}],
        "tool_choice": "required",
        "parallel_tool_calls": false,
        "reasoning_effort": "xhigh",
        "response_format": {"type": "json_schema", "schema": {}},
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "a\nb"},
            {"role": "assistant", "content": "", "reasoning_content": "t", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c", "content": "1"},
            {"role": "user", "content": "go on"},
        ],
    });
    assert_eq!(Json::Object(read.unwrap()), expected);
}

#[test]
fn a_message_goes_on_with_what_the_assistant_began() {
    let said = |content: Json| {
        let messages =
            json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": content}]);
        chat(json!({"max_tokens": 1, "messages": messages})).unwrap()
    };
    assert_eq!(said(json!("The"))["continue_final_message"], true);
    let call = json!([{"type": "tool_use", "id": "c", "name": "f", "input": {}}]);
    assert!(!said(call).contains_key("continue_final_message"));
}

#[test]
fn what_is_wrong_is_named() {
    let user = json!([{"role": "user", "content": "a"}]);
    let blocks = |block: Json| json!({"messages": [{"role": "user", "content": [block]}]});
    let with = |key: &str, value: Json| json!({"messages": user, key: value});
    let table = [
        (json!({}), "messages"),
        (json!({"messages": []}), "messages"),
        (json!({"messages": [1]}), "messages.0.role"),
        (json!({"messages": [{"role": "user"}]}), "messages.0.content"),
        (blocks(json!({"type": "image", "source": {}})), "messages.0.content.0.type"),
        (blocks(json!({"type": "tool_use"})), "messages.0.content.0.type"),
        (blocks(json!({"type": "tool_result"})), "messages.0.content.0.tool_use_id"),
        (with("max_tokens", json!(0)), "max_tokens"),
        (with("temperature", json!(1.5)), "temperature"),
        (with("top_k", json!(-1)), "top_k"),
        (with("system", json!(3)), "system"),
        (with("stop_sequences", json!("a")), "stop_sequences"),
        (with("thinking", json!({"type": "loud"})), "thinking.type"),
        (with("tools", json!([{"type": "bash_20250124", "name": "bash"}])), "tools.0.type"),
        (with("tools", json!([{"name": "f"}])), "tools.0.input_schema"),
        (with("tool_choice", json!("auto")), "tool_choice.type"),
        (with("tool_choice", json!({"type": "tool"})), "tool_choice.name"),
        (with("container", json!("c")), "container"),
    ];
    for (given, param) in table {
        let error = chat(given).unwrap_err();
        assert_eq!(error.param(), Some(param), "{error}");
    }
}
