//! Hostile bodies: whatever stands in a field, the answer is a request or an error.

use engine::{ModelCard, TokenKind, Vocabulary};
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::{Now, TextBridge};

fn bridge() -> TextBridge {
    let mut tokens: Vec<String> = (b'!'..=b'~').map(|byte| char::from(byte).to_string()).collect();
    tokens.extend(["Ġ", "Ċ", "<|im_end|>"].map(str::to_owned));
    let mut kinds = vec![TokenKind::Normal; tokens.len() - 1];
    kinds.push(TokenKind::Control);
    let template = "{% for m in messages %}{{ m.role }}:{{ m.content }}<|im_end|>{% endfor %}";
    let vocabulary = Vocabulary {
        model: "gpt2".into(),
        tokens,
        kinds,
        chat_template: Some(template.into()),
        ..Vocabulary::default()
    };
    let card = ModelCard {
        name: "m".into(),
        architecture: "mock".into(),
        context_length: 4096,
        block_size: 16,
        eos_tokens: vec![],
    };
    TextBridge::new(&card, &vocabulary).unwrap()
}

/// Bodies that use every field.
fn seeds() -> [Json; 4] {
    let tools = json!([{"type": "function", "function": {"name": "f", "parameters":
        {"type": "object", "properties": {"a": {"$ref": "#/$defs/A"}}, "$defs": {"A": {}}}}}]);
    [
        json!({"messages": [{"role": "system", "content": "s"}, {"role": "user", "content":
            [{"type": "text", "text": "t"}]}, {"role": "assistant", "content": null, "tool_calls":
            [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "c", "content": "r"}], "tools": tools,
            "tool_choice": {"type": "function", "function": {"name": "f"}}, "n": 2,
            "parallel_tool_calls": false, "logprobs": true, "top_logprobs": 2, "stop": ["a"],
            "stream": true, "stream_options": {"include_usage": true}, "seed": 1,
            "logit_bias": {"5": 1}, "chat_template_kwargs": {"a": 1}, "temperature": 0.5,
            "reasoning_effort": "low", "max_completion_tokens": 5, "metadata": {}}),
        json!({"prompt": ["a", "b"], "echo": true, "logprobs": 1, "max_tokens": 0, "n": 1,
            "best_of": 1, "suffix": "", "stop": "x", "top_p": 0.5, "top_k": 3, "min_p": 0.1,
            "response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}),
        json!({"input": [{"type": "message", "role": "user", "content": [{"type": "input_text",
            "text": "t"}]}, {"type": "function_call", "call_id": "c", "name": "f", "arguments":
            "{}"}, {"type": "function_call_output", "call_id": "c", "output": "r"}],
            "instructions": "i", "text": {"format": {"type": "text"}}, "reasoning": {"effort":
            "low"}, "max_output_tokens": 3, "store": true, "include": [], "query": "q",
            "documents": ["d", {"text": "e"}], "dimensions": 3, "encoding_format": "float"}),
        json!({"system": [{"type": "text", "text": "s"}], "messages": [{"role": "user", "content":
            [{"type": "tool_result", "tool_use_id": "c", "content": "r"}]}, {"role": "assistant",
            "content": [{"type": "tool_use", "id": "c", "name": "f", "input": {}}]}],
            "max_tokens": 5, "stop_sequences": ["a"], "tools": [{"name": "f", "input_schema":
            {"type": "object"}}], "tool_choice": {"type": "any"}, "thinking": {"type": "enabled",
            "budget_tokens": 1024}}),
    ]
}

fn any_json() -> impl Strategy<Value = Json> {
    prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::from),
        any::<i64>().prop_map(Json::from),
        any::<f64>().prop_map(|number| json!(number)),
        "[a-z\\PC]{0,6}".prop_map(Json::from),
        Just(json!([])),
        Just(json!({})),
        Just(json!([1, "a", null, {"type": "text"}])),
        Just(json!({"type": "function", "name": 1, "text": [], "role": {}})),
    ]
}

/// Puts a value at the place that a path of numbers leads to.
fn put(at: &mut Json, path: &[usize], value: Json) {
    let Some((first, rest)) = path.split_first() else {
        *at = value;
        return;
    };
    let next = match at {
        Json::Array(all) if !all.is_empty() => {
            let place = first % all.len();
            all.get_mut(place)
        }
        Json::Object(all) if !all.is_empty() => {
            let place = first % all.len();
            all.values_mut().nth(place)
        }
        _ => None,
    };
    match next {
        Some(next) => put(next, rest, value),
        None => *at = value,
    }
}

/// Reads a body as every API does; returns how many accepted it.
fn read_all(bridge: &TextBridge, body: &Body) -> usize {
    let stamp = || Stamp { id: "0".into(), created: 0, model: "m".into() };
    let readers = [chat::read, completions::read, responses::read, messages::read];
    let texts = readers.into_iter().filter(|read| {
        let asked = read(bridge, body.clone(), stamp());
        asked.is_ok_and(|asked| bridge.encode(&asked.completion, Now::default()).is_ok())
    });
    let others = [
        embeddings::read(body).is_ok(),
        rerank::read(body).is_ok(),
        tokens::tokenize(bridge, body, Now::default()).is_ok(),
        tokens::detokenize(bridge, body).is_ok(),
        super::messages::count_tokens(bridge, body.clone(), Now::default()).is_ok(),
    ];
    texts.count() + others.into_iter().filter(|is_ok| *is_ok).count()
}

#[test]
fn the_seeds_are_accepted_where_they_belong() {
    let bridge = bridge();
    for seed in seeds() {
        let Json::Object(body) = seed else { panic!("not an object") };
        assert!(read_all(&bridge, &body) > 0, "{body:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn wherever_a_body_is_wrong_it_is_refused_or_read(
        seed in 0usize..4,
        changes in prop::collection::vec(
            (prop::collection::vec(0usize..40, 1..6), any_json()), 1..4),
    ) {
        use std::sync::LazyLock;
        static BRIDGE: LazyLock<TextBridge> = LazyLock::new(bridge);
        let mut body = seeds()[seed].clone();
        for (path, value) in changes {
            put(&mut body, &path, value);
        }
        if let Json::Object(body) = body {
            read_all(&BRIDGE, &body);
        }
    }
}
