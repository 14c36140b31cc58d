//! Responses, streamed and whole: the order of events, the items, what is read and refused.

use engine::FinishReason;
use proptest::prelude::*;

use super::*;
use crate::Delta;
use crate::parser::Event;

fn form(is_streaming: bool) -> Responses {
    let stamp = Stamp { id: "0123".into(), created: 7, model: "m".into() };
    let body = body(json!({"input": "hi", "instructions": "be brief"}));
    Responses {
        head: object::new(&body, &stamp).unwrap(),
        items: Some(input::items(&mut body.clone(), &stamp).unwrap()),
        writer: Writer::new(stamp, is_streaming, Offered::default()),
        blocks: Blocks::default(),
        fold: Fold::default(),
        has_begun: false,
        record: None,
    }
}

fn body(value: Json) -> Body {
    value.as_object().unwrap().clone()
}

fn output(events: Vec<Event>, finish: Option<FinishReason>) -> TextOutput {
    let finish = finish.map(|reason| Finish { reason, stop: None, cached_tokens: 2 });
    let is_last = finish.is_some();
    let delta = Delta { events, finish, tokens: 1, ..Delta::default() };
    TextOutput { deltas: vec![delta], prompt_tokens: [3].into(), is_last, ..Default::default() }
}

/// Returns the data of each frame, whose event has to be its type and whose numbers have to count.
fn frames(out: &[u8]) -> Vec<Json> {
    let text = std::str::from_utf8(out).unwrap();
    let read = |(number, frame): (usize, &str)| {
        let (event, data) = frame.split_once('\n').unwrap();
        let data: Json = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(data["type"].as_str(), event.strip_prefix("event: "), "{frame}");
        assert_eq!(data["sequence_number"], number, "{frame}");
        data
    };
    text.split_terminator("\n\n").enumerate().map(read).collect()
}

fn types(frames: &[Json]) -> Vec<&str> {
    let types = frames.iter().map(|frame| frame["type"].as_str().unwrap());
    types.map(|name| name.strip_prefix("response.").unwrap()).collect()
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
fn the_events_of_every_item_come_in_order() {
    let (mut form, mut out) = (form(true), Vec::new());
    for event in told() {
        form.write(output(vec![event], None), &mut out);
    }
    form.write(output(vec![], Some(FinishReason::Stop)), &mut out);
    form.end(&mut out);
    let frames = frames(&out);
    let expected = [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ];
    assert_eq!(types(&frames), expected);
    assert_eq!(frames[0]["response"]["status"], "in_progress");
    assert_eq!(frames[8]["item"]["content"], json!([]));
    assert_eq!((&frames[10]["delta"], &frames[10]["content_index"]), (&json!("a"), &json!(0)));
    assert_eq!(frames[12]["text"], "ab");
    assert_eq!((&frames[16]["delta"], &frames[16]["output_index"]), (&json!("{\"x\":"), &json!(2)));
    assert_eq!((&frames[18]["arguments"], &frames[18]["name"]), (&json!("{\"x\":1}"), &json!("f")));
    let response = &frames[20]["response"];
    assert_eq!((&response["status"], &response["id"]), (&json!("completed"), &json!("resp_0123")));
    let kinds: Vec<&Json> =
        response["output"].as_array().unwrap().iter().map(|item| &item["type"]).collect();
    assert_eq!(kinds, ["reasoning", "message", "function_call"]);
    assert_eq!(response["output"][1]["id"], frames[10]["item_id"]);
    assert_eq!(response["output"][2], frames[19]["item"]);
    assert_eq!(response["usage"]["input_tokens_details"]["cached_tokens"], 2);
    assert_eq!(response["usage"]["total_tokens"], 10);
    let record = form.record().unwrap();
    assert_eq!(record["response"], *response);
    assert_eq!(record["input"][0]["content"][0]["text"], "hi");
    assert!(form.record().is_none(), "a record is taken once");
}

#[test]
fn what_is_cut_off_is_incomplete_and_nothing_is_an_empty_message() {
    let (mut cut, mut out) = (form(true), Vec::new());
    let text = Event::Content("a".into());
    cut.write(output(vec![text], Some(FinishReason::Length)), &mut out);
    cut.end(&mut out);
    let frames = frames(&out);
    assert_eq!(types(&frames).last(), Some(&"incomplete"));
    let response = &frames.last().unwrap()["response"];
    assert_eq!(response["incomplete_details"], json!({"reason": "max_output_tokens"}));
    assert_eq!(response["output"][0]["status"], "incomplete");

    let mut empty = form(false);
    empty.collect(output(vec![], Some(FinishReason::Stop)), &mut Fold::default());
    let response = empty.whole(Fold::default());
    assert_eq!(response["output"][0]["content"][0]["text"], "");
    assert_eq!(response["status"], "completed");
}

#[test]
fn an_error_fails_the_response() {
    let (mut form, mut out) = (form(true), Vec::new());
    form.write(output(vec![Event::Content("a".into())], None), &mut out);
    form.fail(&json!({"message": "broken", "code": null}), &mut out);
    let frames = frames(&out);
    let last = frames.last().unwrap();
    assert_eq!(last["type"], "response.failed");
    let error = json!({"code": "server_error", "message": "broken"});
    assert_eq!(
        (&last["response"]["status"], &last["response"]["error"]),
        (&json!("failed"), &error)
    );
}

proptest! {
    #[test]
    fn both_forms_make_the_same_response(cuts in prop::collection::vec(any::<bool>(), 6)) {
        let (mut streamed, mut whole, mut out) = (form(true), form(false), Vec::new());
        let mut waiting = Vec::new();
        for (event, is_cut) in told().into_iter().zip(cuts) {
            waiting.push(event);
            if is_cut {
                let news = output(std::mem::take(&mut waiting), None);
                streamed.write(news.clone(), &mut out);
                whole.collect(news, &mut Fold::default());
            }
        }
        let news = output(waiting, Some(FinishReason::Stop));
        streamed.write(news.clone(), &mut out);
        streamed.end(&mut out);
        whole.collect(news, &mut Fold::default());
        let response = whole.whole(Fold::default());
        let frames = frames(&out);
        prop_assert_eq!(&frames.last().unwrap()["response"], &response);
        prop_assert_eq!(streamed.record(), whole.record());
    }
}

#[test]
fn items_are_a_conversation() {
    let stamp = Stamp { id: "9".into(), created: 7, model: "m".into() };
    let mut body = body(json!({"input": [
        {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "t"}]},
        {"type": "function_call", "id": "fc_1", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "1"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "b"}]},
    ]}));
    let items = input::items(&mut body, &stamp).unwrap();
    assert_eq!(items[2]["id"], "fc_1");
    assert!(items[0]["id"].as_str().unwrap().starts_with("msg_"));
    let messages = input::messages(Some("s"), &items, &Offered::default()).unwrap();
    let roles: Vec<&Json> = messages.iter().map(|message| &message["role"]).collect();
    assert_eq!(roles, ["system", "user", "assistant", "tool", "assistant"]);
    assert_eq!(messages[2]["reasoning_content"], "t");
    assert_eq!(messages[2]["tool_calls"][0]["id"], "c");
    assert_eq!(messages[4]["content"], "b");
}

#[test]
fn a_response_goes_on_where_the_one_before_it_ended() {
    let record = json!({
        "input": [{"type": "message", "role": "user", "content": "a"}],
        "response": {"output": [{"type": "message", "role": "assistant", "content": "b"}]},
    });
    let mut next = body(json!({"input": "c"}));
    follow(&mut next, &record);
    let stamp = Stamp { id: "9".into(), created: 7, model: "m".into() };
    let items = input::items(&mut next, &stamp).unwrap();
    let messages = input::messages(None, &items, &Offered::default()).unwrap();
    let texts: Vec<&Json> = messages.iter().map(|message| &message["content"]).collect();
    assert_eq!(texts, ["a", "b", "c"]);
}

#[test]
fn what_is_wrong_is_named() {
    let stamp = Stamp { id: "9".into(), created: 7, model: "m".into() };
    let table = [
        (json!({}), "input"),
        (json!({"input": []}), "input"),
        (json!({"input": [1]}), "input[0]"),
        (json!({"input": [{"type": "item_reference", "id": "x"}]}), "input[0].type"),
        (json!({"input": [{"role": "robot", "content": ""}]}), "input[0].role"),
        (json!({"input": [{"role": "user"}]}), "input[0].content"),
        (
            json!({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}),
            "input[0].content[0].type",
        ),
        (json!({"input": [{"type": "function_call", "call_id": "c"}]}), "input[0].name"),
        (json!({"input": "a", "truncation": "auto"}), "truncation"),
        (json!({"input": "a", "background": true}), "background"),
        (json!({"input": "a", "conversation": "c"}), "conversation"),
        (json!({"input": "a", "metadata": {"a": 1}}), "metadata"),
        (json!({"input": "a", "include": "x"}), "include"),
        (json!({"input": "a", "reasoning": "high"}), "reasoning"),
        (json!({"input": "a", "max_output_tokens": 0}), "max_output_tokens"),
    ];
    for (given, param) in table {
        let mut given = body(given);
        let read = || -> Result<()> {
            body::refuse(&given, &REFUSED)?;
            truncation(&given)?;
            object::new(&given, &stamp)?;
            let items = input::items(&mut given, &stamp)?;
            let messages = input::messages(None, &items, &Offered::default())?;
            chat_body(given, messages).map(drop)
        };
        let error = { read }().unwrap_err();
        assert_eq!(error.param(), Some(param), "{error}");
        assert!(error.message().starts_with(&format!("`{param}`")), "{error}");
    }
}

#[test]
fn settings_are_those_of_a_chat_under_other_names() {
    let given = body(json!({
        "max_output_tokens": 5,
        "reasoning": {"effort": "low"},
        "text": {"format": {"type": "json_object"}},
        "include": [LOGPROBS],
        "top_logprobs": 2,
        "temperature": 0,
        "n": 7,
    }));
    let chat = chat_body(given, vec![json!({"role": "user"})]).unwrap();
    let expected = json!({
        "max_completion_tokens": 5,
        "reasoning_effort": "low",
        "response_format": {"type": "json_object"},
        "logprobs": true,
        "top_logprobs": 2,
        "temperature": 0,
        "messages": [{"role": "user"}],
    });
    assert_eq!(Json::Object(chat), expected);
}
