//! What is asked of engines that take texts, and how their answers are told.

use engine::{CallDelta, FinishReason, InferRequest, TextLogprob, TextUsage};
use serde_json::json;
use tensor::{Parameter, Tensor};

use super::*;
use crate::TensorRequest;
use crate::api::{Asked, Body, Stamp, chat, completions, messages, responses};

fn bridge() -> TextBridge {
    TextBridge::of_texts("m", 0, false)
}

fn stamp() -> Stamp {
    Stamp { id: "0".repeat(32), created: 0, model: "m".into() }
}

type Read = fn(&TextBridge, Body, Stamp) -> Result<Asked>;

/// Reads a body and returns the first body that is made of it.
fn asked(read: Read, body: Json) -> Result<(TextForm, Json)> {
    let Json::Object(body) = body else { panic!("no object") };
    let completion = read(&bridge(), body, stamp())?.completion;
    first(&completion)
}

fn first(completion: &Completion) -> Result<(TextForm, Json)> {
    let (requests, _) = bridge().requests(completion)?;
    Ok((requests[0].form, serde_json::from_slice(&requests[0].body).unwrap()))
}

#[test]
fn who_continues_prompts_takes_no_messages() {
    let bridge = bridge().without_chats();
    let read = |read: Read, body: Json| {
        let Json::Object(body) = body else { panic!("no object") };
        read(&bridge, body, stamp()).map(drop)
    };
    let said = json!([{"role": "user", "content": "x"}]);
    for (door, body) in [
        (chat::read as Read, json!({"messages": said})),
        (messages::read, json!({"messages": said, "max_tokens": 1})),
        (responses::read, json!({"input": "x"})),
    ] {
        let error = read(door, body).unwrap_err();
        assert_eq!(error.kind(), engine::ErrorKind::InvalidRequest, "{error}");
        assert!(error.message().contains("continues prompts"), "{error}");
    }
    read(completions::read, json!({"prompt": "x"})).unwrap();
}

#[test]
fn a_chat_is_asked_as_the_client_asked_it() {
    let call = json!({"id": "c", "type": "function",
        "function": {"name": "f", "arguments": "{\"a\":1}"}});
    let image = json!({"type": "image_url", "image_url": {"url": "data:,"}});
    let body = json!({
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "see"}, image]},
            {"role": "assistant", "content": null, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c", "content": "2"},
        ],
        "model": "m",
        "temperature": 1.0,
        "top_k": 5,
        "seed": -1,
        "stop": "end",
        "max_completion_tokens": 7,
        "n": 2,
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
        "tool_choice": "required",
        "response_format": {"type": "text"},
        "logprobs": true,
        "top_logprobs": 3,
        "stream": true,
        "stream_options": {"include_usage": true},
        "user": "u",
    });
    let (form, sent) = asked(chat::read, body.clone()).unwrap();
    assert_eq!(form, TextForm::Chat);
    assert_eq!(sent["messages"], body["messages"]);
    let mut keys: Vec<&str> = sent.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    let expected = "logprobs max_tokens messages n response_format seed stop temperature \
        tool_choice tools top_k top_logprobs user";
    assert_eq!(keys.join(" "), expected);
    assert_eq!((&sent["seed"], &sent["stop"]), (&json!(-1), &json!(["end"])));
    assert_eq!((&sent["max_tokens"], &sent["tool_choice"]), (&json!(7), &json!("required")));
}

#[test]
fn what_is_not_said_is_not_sent() {
    let user = json!([{"role": "user", "content": "hi"}]);
    let (_, sent) = asked(chat::read, json!({"messages": user})).unwrap();
    assert_eq!(sent, json!({ "messages": user }));
    // A completion has the API's own limit, whatever the engine's is.
    let (_, sent) = asked(completions::read, json!({"prompt": [1, 2]})).unwrap();
    assert_eq!(sent, json!({"prompt": [1, 2], "max_tokens": 16}));
}

#[test]
fn other_apis_ask_as_chats() {
    let user = json!([{"role": "user", "content": "hi"}]);
    let (form, sent) =
        asked(messages::read, json!({"max_tokens": 5, "messages": user, "system": "s"})).unwrap();
    assert_eq!((form, &sent["max_tokens"]), (TextForm::Chat, &json!(5)));
    assert_eq!(sent["messages"][0], json!({"role": "system", "content": "s"}));
    let schema = json!({"type": "object"});
    let text = json!({"format": {"type": "json_schema", "name": "x", "schema": schema}});
    let (_, sent) = asked(responses::read, json!({"input": "hi", "text": text})).unwrap();
    let format = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}});
    assert_eq!(sent["response_format"], format);
}

#[test]
fn tensors_ask_a_row_each() {
    let bridge = bridge();
    let inputs = vec![
        Tensor::from_elements("text_input", vec![2], ["a", "b"]),
        Tensor::from_values("temperature", vec![2], [0.7f32, 0.1]),
    ];
    let parameters = [("top_k".to_owned(), Parameter::String("4".into()))].into();
    let request = InferRequest { inputs, parameters, ..InferRequest::default() };
    let Ok(TensorRequest::Generate(completion, _)) = bridge.parse(&request) else {
        panic!("no text")
    };
    let (requests, _) = bridge.requests(&completion).unwrap();
    let bodies: Vec<Json> =
        requests.iter().map(|one| serde_json::from_slice(&one.body).unwrap()).collect();
    let body = |prompt, heat| json!({"prompt": prompt, "temperature": heat, "top_k": 4, "max_tokens": 256});
    assert_eq!(bodies, [body("a", 0.7), body("b", 0.1)]);
}

#[test]
fn what_needs_tokens_is_refused_by_name() {
    let user = json!([{"role": "user", "content": "hi"}]);
    for (field, read, body) in [
        (
            "prompt_logprobs",
            completions::read as Read,
            json!({"prompt": "a", "prompt_logprobs": 1}),
        ),
        ("echo", completions::read, json!({"prompt": [1], "echo": true})),
        ("return_token_ids", chat::read, json!({"messages": user, "return_token_ids": true})),
    ] {
        let refused = asked(read, body).unwrap_err();
        assert_eq!(refused.param(), Some(field), "{refused}");
    }
    let refused = bridge().tokenize("a", true).unwrap_err();
    assert!(refused.message().contains("tokenizer"), "{refused}");
}

/// Answers of one prompt with two choices that has an echo.
fn answers() -> TextAnswers {
    TextAnswers::new(vec!["P".into()], 2)
}

fn text(index: u32, content: &str) -> TextDelta {
    TextDelta { index, content: content.into(), ..TextDelta::default() }
}

fn end(index: u32, reason: FinishReason) -> TextDelta {
    TextDelta { index, finish: Some(reason), ..TextDelta::default() }
}

#[test]
fn texts_are_told_as_they_come_and_the_last_end_has_the_cost() {
    let mut answers = answers();
    let news = answers.push(0, text(1, "x")).unwrap().unwrap();
    assert_eq!(news.deltas[0].index, 1);
    let told = [Event::Content("P".into()), Event::Content("x".into())];
    assert_eq!(news.deltas[0].events, told);
    let news = answers.push(0, end(1, FinishReason::Length)).unwrap().unwrap();
    assert_eq!(news.deltas[0].finish.as_ref().unwrap().reason, FinishReason::Length);
    assert!(answers.push(0, text(1, "late")).unwrap().is_none());
    assert!(answers.end(0).is_err(), "choice 0 goes on");
    answers.push(0, text(0, "y")).unwrap().unwrap();
    assert!(answers.push(0, end(0, FinishReason::Stop)).unwrap().is_none(), "the cost comes");
    let usage =
        TextUsage { prompt_tokens: 3, completion_tokens: 5, cached_tokens: 1, reasoning_tokens: 2 };
    assert!(
        answers
            .push(0, TextDelta { usage: Some(usage), ..TextDelta::default() })
            .unwrap()
            .is_none()
    );
    let last = answers.end(0).unwrap();
    assert!(last.is_last);
    assert_eq!(*last.prompt_tokens, [3]);
    assert_eq!((last.deltas[0].tokens, last.deltas[0].reasoning_tokens), (5, 2));
    assert_eq!(last.deltas[0].finish.as_ref().unwrap().cached_tokens, 1);
}

#[test]
fn a_token_without_text_is_scored_with_the_text_behind_it_or_at_the_end() {
    let scored = |content: &str, logprob: f32| {
        let token = content.to_owned().into();
        let logprobs = vec![TextLogprob { token, logprob, top: Vec::new() }];
        TextDelta { logprobs, ..text(0, content) }
    };
    let told = |output: &TextOutput| -> Vec<f32> {
        output.deltas[0].logprobs.iter().map(|score| score.token.logprob).collect()
    };
    let mut answers = TextAnswers::new(vec![String::new()], 1);
    assert!(answers.push(0, scored("", -1.0)).unwrap().is_none(), "nobody can show it yet");
    assert!(answers.push(0, scored("", -2.0)).unwrap().is_none());
    let news = answers.push(0, scored("x", -3.0)).unwrap().unwrap();
    assert_eq!(told(&news), [-1.0, -2.0, -3.0]);
    assert!(answers.push(0, scored("", -4.0)).unwrap().is_none());
    let end = TextDelta { finish: Some(FinishReason::Stop), ..scored("", -5.0) };
    assert!(answers.push(0, end).unwrap().is_none(), "the cost comes");
    assert_eq!(told(&answers.end(0).unwrap()), [-4.0, -5.0]);
    // What waits is bounded.
    let mut answers = TextAnswers::new(vec![String::new()], 1);
    for _ in 0..MAX_SCORES {
        assert!(answers.push(0, scored("", -1.0)).unwrap().is_none());
    }
    let news = answers.push(0, scored("", -1.0)).unwrap().unwrap();
    assert_eq!(told(&news).len(), MAX_SCORES + 1);
}

#[test]
fn calls_are_numbered_anew_and_begin_with_a_name() {
    let call = |index, name: &str, arguments: &str| TextDelta {
        calls: vec![CallDelta {
            index,
            id: String::new(),
            name: name.into(),
            arguments: arguments.into(),
        }],
        ..TextDelta::default()
    };
    let mut answers = TextAnswers::new(vec![String::new()], 1);
    let mut events = Vec::new();
    // Some engines repeat the name in every piece.
    for delta in [call(4, "f", ""), call(4, "f", "{"), call(4, "", "}"), call(7, "g", "{}")] {
        events.extend(
            answers
                .push(0, delta)
                .unwrap()
                .into_iter()
                .flat_map(|news| news.deltas)
                .flat_map(|delta| delta.events),
        );
    }
    let begun = |index, name: &str| Event::CallBegun { index, id: None, name: name.into() };
    let grown = |index, text: &str| Event::Arguments { index, text: text.into() };
    let told = [begun(0, "f"), grown(0, "{"), grown(0, "}"), begun(1, "g"), grown(1, "{}")];
    assert_eq!(events, told);
    assert!(answers.push(0, call(9, "", "{}")).is_err());
    assert!(answers.push(0, text(1, "no such choice")).is_err());
}
