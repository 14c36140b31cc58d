//! Requests as clients of both backends send them, and what is refused.

use engine::{InferRequest, TokenKind};
use tensor::{Datatype, Parameter};

use super::*;
use crate::TensorRequest;

fn bridge() -> TextBridge {
    let mut tokens: Vec<String> = (b'!'..=b'~').map(|byte| char::from(byte).to_string()).collect();
    tokens.extend(["Ġ", "Ċ", "<|im_start|>", "<|im_end|>"].map(str::to_owned));
    let kind = |token: &String| match token.len() > 3 {
        true => TokenKind::Control,
        false => TokenKind::Normal,
    };
    let kinds = tokens.iter().map(kind).collect();
    let template =
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}";
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
        context_length: 100,
        block_size: 16,
        eos_tokens: vec![],
    };
    TextBridge::new(&card, &vocabulary).unwrap()
}

/// Takes tensors the whole way: normalise, validate, parse, encode.
fn run(mut inputs: Vec<Tensor>, parameters: &[(&str, Parameter)]) -> Result<Vec<GenerateRequest>> {
    let bridge = bridge();
    bridge.normalize(&mut inputs);
    bridge.config().validate(&inputs, [])?;
    let parameters = parameters.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect();
    let request = InferRequest { inputs, parameters, ..InferRequest::default() };
    match bridge.parse(&request)? {
        TensorRequest::Generate(completion, _) => Ok(bridge.encode(&completion, Now::default())?.0),
        other => panic!("not a request for text: {other:?}"),
    }
}

fn prompt(shape: &[i64], texts: &[&str]) -> Tensor {
    Tensor::from_elements("text_input", shape.to_vec(), texts)
}

fn sampling(json: &str) -> Tensor {
    Tensor::from_elements("sampling_parameters", vec![1], [json])
}

#[test]
fn prompts_of_all_accepted_shapes_are_rows() {
    for (shape, texts) in [(&[1][..], &["a"][..]), (&[1, 1], &["a"]), (&[3], &["a", "b", "c"])] {
        assert_eq!(run(vec![prompt(shape, texts)], &[]).unwrap().len(), texts.len());
    }
    let requests = run(vec![prompt(&[2, 1], &["ab", "c"])], &[]).unwrap();
    assert_eq!(requests.iter().map(|r| r.tokens.len()).collect::<Vec<_>>(), [2, 1]);
    assert_eq!(requests[0].stop.max_tokens, crate::DEFAULT_MAX_TOKENS);
    assert_eq!(requests[0].sampling.temperature, 1.0);
}

#[test]
fn an_answer_has_a_bound_on_its_log_probabilities() {
    let many = |n: i32, max_tokens: i32| {
        let json = format!(r#"{{"n": {n}, "max_tokens": {max_tokens}, "logprobs": 20}}"#);
        let bridge = TextBridge { context_length: 100_000, ..bridge() };
        let inputs = vec![
            prompt(&[1], &["a"]),
            sampling(&json),
            Tensor::from_values("return_logprobs", vec![1], [true]),
        ];
        let request = InferRequest { inputs, ..InferRequest::default() };
        match bridge.parse(&request)? {
            TensorRequest::Generate(completion, _) => bridge.encode(&completion, Now::default()),
            other => panic!("not a request for text: {other:?}"),
        }
    };
    let refused = many(128, 8000).unwrap_err();
    assert_eq!(refused.param(), Some("max_tokens"));
    for part in ["`max_tokens`: 8000", "128 of `n`", "21 for `logprobs`", "more than 4000000"] {
        assert!(refused.message().contains(part), "{refused}");
    }
    assert_eq!(many(128, 1400).unwrap().0[0].choices.get(), 128);
    // No more than the context holds is counted.
    assert!(many(1, i32::MAX).is_ok());
}

#[test]
fn settings_come_from_tensors_json_and_parameters_in_this_order() {
    let max_tokens = |n: i32| Tensor::from_values("max_tokens", vec![1, 1], [n]);
    let json = r#"{"max_tokens": "20", "temperature": 0.5, "top_p": null, "stop": ["x", "y"]}"#;
    let inputs = vec![prompt(&[1], &["a"]), max_tokens(10), sampling(json)];
    let parameters = [
        ("max_tokens", Parameter::Int64(30)),
        ("temperature", Parameter::Double(0.25)),
        ("top_k", Parameter::Uint64(7)),
        ("seed", Parameter::String("18446744073709551615".into())),
        ("somebody_elses", Parameter::Bool(true)),
    ];
    let request = run(inputs, &parameters).unwrap().remove(0);
    assert_eq!(request.stop.max_tokens, 10);
    assert_eq!((request.sampling.temperature, request.sampling.top_k), (0.5, 7));
    assert_eq!(request.sampling.seed, Some(u64::MAX));
}

#[test]
fn tensorrt_llm_names_have_one_value_for_all_rows_or_one_a_row() {
    let inputs = vec![
        prompt(&[2, 1], &["a", "b"]),
        Tensor::from_values("max_tokens", vec![2, 1], [5i32, 6]),
        Tensor::from_values("temperature", vec![1], [0.5f32]),
        Tensor::from_values("num_return_sequences", vec![1], [3i32]),
        Tensor::from_values("random_seed", vec![2], [8u64, 9]),
        Tensor::from_values("end_id", vec![1, 1], [2i32]),
        Tensor::from_elements("stop_words", vec![1, 2], ["x", ""]),
        Tensor::from_values("beam_width", vec![1], [1i32]),
        Tensor::from_values("streaming", vec![1, 1], [true]),
    ];
    let requests = run(inputs, &[]).unwrap();
    let limits: Vec<u32> = requests.iter().map(|r| r.stop.max_tokens).collect();
    assert_eq!((limits, requests[1].sampling.seed), (vec![5, 6], Some(9)));
    assert_eq!((requests[0].choices.get(), requests[0].sampling.temperature), (3, 0.5));
    assert_eq!(requests[0].stop.stop_token_ids, [2]);
}

#[test]
fn a_conversation_goes_through_the_template() {
    let json = r#"[{"role": "user", "content": "hi"}]"#;
    let messages = Tensor::from_elements("messages", vec![1], [json]);
    let request = run(vec![messages], &[]).unwrap().remove(0);
    // One control token, four letters and a line end, two letters, one control token.
    assert_eq!(request.tokens.len(), 1 + 5 + 2 + 1);
}

#[test]
fn wrong_settings_are_named() {
    let one = || prompt(&[1], &["a"]);
    let float = |name: &'static str, value: f32| Tensor::from_values(name, vec![1], [value]);
    let int = |name: &'static str, value: i32| Tensor::from_values(name, vec![1], [value]);
    let flag = |name: &'static str, value: bool| Tensor::from_values(name, vec![1], [value]);
    let table: Vec<(Vec<Tensor>, &str)> = vec![
        (vec![], "`text_input` or input `messages`, got neither"),
        (vec![prompt(&[0], &[])], "expected at least 1 prompt"),
        (vec![one(), float("top_p", 1.5)], "input `top_p`: expected a number above 0 and up to 1"),
        (vec![one(), float("temperature", f32::NAN)], "input `temperature`: expected a number"),
        (vec![one(), float("temperature", -1.0)], "from 0 to 2, got -1"),
        (vec![one(), int("max_tokens", 0)], "input `max_tokens`: expected a whole number from 1"),
        (vec![one(), int("n", 0)], "input `n`: expected a whole number from 1 to 128"),
        (
            vec![one(), int("beam_width", 2)],
            "input `beam_width`: expected a whole number from 1 to 1",
        ),
        (vec![one(), int("min_tokens", 999)], "input `min_tokens`: expected at most `max_tokens`"),
        (vec![one(), float("max_tokens", 1.0)], "data-type is 'FP32', but model 'm' expects"),
        (vec![one(), sampling("{")], "`sampling_parameters`: EOF"),
        (vec![one(), sampling("[]")], "`sampling_parameters`: expected a JSON object"),
        (vec![one(), sampling(r#"{"x": 1}"#)], "`sampling_parameters`: key `x` is not known"),
        (vec![one(), sampling(r#"{"top_k": "many"}"#)], r#"key `top_k`: expected a whole number"#),
        (vec![one(), sampling(r#"{"stop": [1]}"#)], "key `stop`: expected a text, got 1"),
        (vec![one(), sampling(r#"{"n": 2, "num_return_sequences": 3}"#)], "mean the same"),
        (vec![one(), flag("stream", true), flag("streaming", false)], "mean the same and differ"),
        (
            vec![one(), flag("stream", true), flag("exclude_input_in_output", false)],
            "Error generating stream: When streaming, `exclude_input_in_output` = False",
        ),
        (
            vec![prompt(&[2], &["a", "b"]), Tensor::from_values("n", vec![2], [1i32, 2])],
            "input `n`: expected the same number for all prompts",
        ),
        (
            vec![prompt(&[2], &["a", "b"]), Tensor::from_values("top_k", vec![3], [1i32, 2, 3])],
            "input `top_k`: expected 1 element or one for each of the 2 prompts, got 3",
        ),
        (vec![prompt(&[1], &[&"a".repeat(9999)])], "the prompt has 9999 bytes"),
        (vec![prompt(&[200], &["a"; 200]), int("n", 2)], "expected at most 256"),
    ];
    for (inputs, fragment) in table {
        let error = run(inputs, &[]).expect_err(fragment).to_string();
        assert!(error.contains(fragment), "expected `{fragment}` in `{error}`");
    }
    let error = run(vec![one()], &[("top_k", Parameter::Bool(true))]).unwrap_err();
    assert!(error.to_string().contains("parameter `top_k`: expected"), "{error}");
    let data = bytes::Bytes::from_static(b"\x01\0\0\0\xFF");
    let binary = Tensor::new("text_input", Datatype::Bytes, vec![1], data);
    let error = run(vec![binary], &[]).unwrap_err();
    assert!(error.to_string().contains("input `text_input`: element 0 is not UTF-8"), "{error}");
}
