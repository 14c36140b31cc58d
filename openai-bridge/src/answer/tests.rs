//! What a client gets for given tokens.

use engine::{InferRequest, ModelCard, RequestedOutput, TokenKind, Vocabulary};
use proptest::prelude::*;
use tensor::Parameter;

use super::*;
use crate::{Continuations, Now, TensorRequest, TextBridge, TextRules};
use engine::{FinishReason, GenerateOutput, TokenLogprobs, Usage};

/// A bridge whose token ids are bytes; 256 ends a text.
fn bridge() -> TextBridge {
    let printable = |b: &u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let spelling = |byte: u8| match printable(&byte) {
        true => char::from(byte),
        false => {
            let rank = (0..byte).filter(|b| !printable(b)).count() as u32;
            char::from_u32(0x100 + rank).unwrap()
        }
    };
    let mut tokens: Vec<String> = (0..=255).map(|byte| spelling(byte).to_string()).collect();
    tokens.push("<|end|>".into());
    let mut kinds = vec![TokenKind::Normal; 256];
    kinds.push(TokenKind::Control);
    let vocabulary = Vocabulary { model: "gpt2".into(), tokens, kinds, ..Vocabulary::default() };
    let card = ModelCard {
        name: "m".into(),
        architecture: "mock".into(),
        context_length: 100,
        block_size: 16,
        eos_tokens: vec![256],
    };
    TextBridge::new(&card, &vocabulary).unwrap()
}

/// An answer over the continuations that feed it.
struct Running(Continuations, Answer);

impl Running {
    fn push(&mut self, row: usize, output: GenerateOutput) {
        self.0.push(row, output);
    }

    fn next(&mut self) -> Option<InferOutput> {
        loop {
            let output = self.0.next()?;
            if let Some(response) = self.1.take(output) {
                return Some(response);
            }
        }
    }

    fn stopped(&mut self) -> impl Iterator<Item = usize> + use<> {
        self.0.stopped()
    }

    fn is_done(&self) -> bool {
        self.0.is_done()
    }
}

fn answer(prompts: &[&str], parameters: &[(&str, Parameter)], outputs: &[&str]) -> Running {
    answer_by(bridge(), prompts, parameters, outputs)
}

fn answer_by(
    bridge: TextBridge,
    prompts: &[&str],
    parameters: &[(&str, Parameter)],
    outputs: &[&str],
) -> Running {
    let request = InferRequest {
        inputs: vec![Tensor::from_elements("text_input", vec![prompts.len() as i64], prompts)],
        parameters: parameters.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect(),
        outputs: outputs
            .iter()
            .map(|name| RequestedOutput { name: (*name).into(), ..Default::default() })
            .collect(),
        ..InferRequest::default()
    };
    let TensorRequest::Generate(completion, answer) = bridge.parse(&request).unwrap() else {
        panic!("not a request for text");
    };
    let (_, continuations) = bridge.encode(&completion, Now::default()).unwrap();
    Running(continuations, *answer)
}

fn tokens(index: u32, text: &[u8]) -> GenerateOutput {
    let tokens = text.iter().map(|&byte| byte.into()).collect();
    GenerateOutput { index, tokens, ..GenerateOutput::default() }
}

fn end(index: u32, text: &[u8], reason: FinishReason, completion_tokens: u32) -> GenerateOutput {
    let usage = Usage { completion_tokens, ..Usage::default() };
    GenerateOutput { finish: Some(reason), usage: Some(usage), ..tokens(index, text) }
}

fn elements(output: &InferOutput, name: &str) -> Vec<String> {
    let tensor = output.tensors.iter().find(|tensor| tensor.name == name).expect(name);
    let elements = tensor.elements().unwrap();
    elements.map(|element| String::from_utf8(element.unwrap().into()).unwrap()).collect()
}

const STREAM: (&str, Parameter) = ("stream", Parameter::Bool(true));
const REASON: (&str, Parameter) = ("return_finish_reason", Parameter::Bool(true));

#[test]
fn a_stream_has_one_response_a_token_and_the_last_one_says_why() {
    let mut answer = answer(&["q"], &[STREAM, REASON], &[]);
    assert!(answer.next().is_none());
    answer.push(0, tokens(0, b"ab"));
    let first = answer.next().unwrap();
    assert_eq!(elements(&first, "text_output"), ["a"]);
    assert_eq!((elements(&first, "finish_reason"), first.is_last), (vec!["None".into()], false));
    assert_eq!(elements(&answer.next().unwrap(), "text_output"), ["b"]);
    assert!(answer.next().is_none());
    answer.push(0, end(0, b"c", FinishReason::Length, 3));
    let last = answer.next().unwrap();
    assert_eq!((elements(&last, "text_output"), last.is_last), (vec!["c".to_owned()], true));
    assert_eq!(elements(&last, "finish_reason"), ["length"]);
    assert!(answer.next().is_none() && answer.is_done());
}

#[test]
fn a_folded_answer_has_the_prompt_in_front_if_vllms_client_or_the_operator_wants_it() {
    let (excluded, stream) = ("exclude_input_in_output", "stream");
    type Case<'a> = (&'a [(&'a str, bool)], bool, bool);
    let table: [Case<'_>; 9] = [
        (&[], false, false),
        (&[], true, true),
        (&[(excluded, false)], false, true),
        (&[(excluded, true)], true, false),
        (&[(stream, false)], false, true),
        (&[(stream, false)], true, true),
        (&[(stream, false), (excluded, true)], true, false),
        (&[("echo", true)], false, true),
        (&[("echo", true), (excluded, true)], false, true),
    ];
    for (said, has_echo, is_in_front) in table {
        let mut parameters = vec![REASON];
        parameters.extend(said.iter().map(|(name, value)| (*name, Parameter::Bool(*value))));
        let rules = TextRules { has_echo, ..TextRules::default() };
        let mut answer = answer_by(bridge().with_rules(rules), &["q: "], &parameters, &[]);
        answer.push(0, tokens(0, b"a"));
        assert!(answer.next().is_none());
        answer.push(0, end(0, b"b", FinishReason::Stop, 3));
        let only = answer.next().unwrap();
        let text = if is_in_front { "q: ab" } else { "ab" };
        assert_eq!((elements(&only, "text_output"), only.is_last), (vec![text.to_owned()], true));
        assert_eq!(elements(&only, "finish_reason"), ["stop"]);
    }
}

#[test]
fn a_stop_text_ends_the_answer_and_frees_its_prompt() {
    let stop = ("stop", Parameter::String("END".into()));
    let mut answer = answer(&["q"], &[STREAM, REASON, stop], &[]);
    answer.push(0, tokens(0, b"aEN"));
    assert_eq!(elements(&answer.next().unwrap(), "text_output"), ["a"]);
    assert!(answer.next().is_none());
    answer.push(0, tokens(0, b"Dzzz"));
    let last = answer.next().unwrap();
    assert_eq!((elements(&last, "text_output"), last.is_last), (vec![String::new()], true));
    assert_eq!(elements(&last, "finish_reason"), ["stop"]);
    assert_eq!(answer.stopped().collect::<Vec<_>>(), [0]);
}

#[test]
fn text_that_only_began_a_stop_is_given_at_the_end() {
    let stop = ("stop", Parameter::String("END".into()));
    let mut answer = answer(&["q"], &[STREAM, stop], &[]);
    answer.push(0, end(0, b"aEN", FinishReason::Length, 3));
    let texts: Vec<String> =
        std::iter::from_fn(|| answer.next()).flat_map(|o| elements(&o, "text_output")).collect();
    assert_eq!(texts.concat(), "aEN");
}

#[test]
fn minimum_tokens_come_before_stop_texts() {
    let parameters = [("stop", Parameter::String("b".into())), ("min_tokens", Parameter::Int64(2))];
    let mut answer = answer(&["q"], &parameters, &["text_output"]);
    answer.push(0, tokens(0, b"abab"));
    assert_eq!(elements(&answer.next().unwrap(), "text_output"), ["aba"]);
}

#[test]
fn rows_and_choices_are_elements_in_order() {
    let mut answer = answer(&["x", "y"], &[("n", Parameter::Int64(2)), STREAM, REASON], &[]);
    answer.push(1, tokens(1, b"d"));
    answer.push(0, tokens(0, b"a"));
    assert_eq!(elements(&answer.next().unwrap(), "text_output"), ["a", "", "", "d"]);
    for (row, index) in [(0, 0), (0, 1), (1, 0)] {
        answer.push(row, end(index, b"", FinishReason::Length, 1));
    }
    let reasons = elements(&answer.next().unwrap(), "finish_reason");
    assert_eq!(reasons, ["length", "length", "length", "None"]);
    assert_eq!(answer.stopped().collect::<Vec<_>>(), [0]);
    answer.push(1, end(1, b"", FinishReason::Stop, 1));
    let last = answer.next().unwrap();
    assert_eq!(elements(&last, "finish_reason"), ["length", "length", "length", "stop"]);
    assert!(last.is_last);
}

#[test]
fn counts_and_logprobs_come_when_asked_for() {
    let flags = ["num_input_tokens", "num_output_tokens", "logprobs", "cumulative_logprob"];
    let flags: Vec<String> = flags.iter().map(|name| format!("return_{name}")).collect();
    let mut parameters: Vec<_> =
        flags.iter().map(|name| (name.as_str(), Parameter::Bool(true))).collect();
    parameters.push(("logprobs", Parameter::Int64(1)));
    let mut answer = answer(&["four"], &parameters, &[]);
    let mut output = end(0, b"ab", FinishReason::Stop, 3);
    output.logprobs = vec![
        TokenLogprobs { logprob: -0.5, rank: 1, top: vec![(97, -0.5)] },
        TokenLogprobs { logprob: -1.5, rank: 2, top: vec![(120, -0.25)] },
    ];
    answer.push(0, output);
    let only = answer.next().unwrap();
    let find = |name: &str| only.tensors.iter().find(|tensor| tensor.name == name).unwrap();
    let count = |name: &str| find(name).values::<u32>().unwrap().collect::<Vec<_>>();
    assert_eq!((count("num_input_tokens"), count("num_output_tokens")), (vec![4], vec![3]));
    let sum: Vec<f32> = find("cumulative_logprob").values().unwrap().collect();
    assert_eq!(sum, [-2.0]);
    let list: Json = serde_json::from_str(&elements(&only, "logprobs")[0]).unwrap();
    assert_eq!(list[0], json!({"97": {"logprob": -0.5, "rank": 1, "decoded_token": "a"}}));
    assert_eq!(list[1]["98"]["rank"], 2);
    assert_eq!(list[1]["120"]["decoded_token"], "x");
}

#[test]
fn the_token_that_ends_a_text_is_scored_as_it_is_counted() {
    let names = ["logprobs", "num_output_tokens", "cumulative_logprob"];
    for is_streaming in [true, false] {
        let parameters =
            [("stream", Parameter::Bool(is_streaming)), ("logprobs", Parameter::Int64(0))];
        let mut answer = answer(&["q"], &parameters, &names);
        let scored = |logprob| TokenLogprobs { logprob, rank: 1, top: Vec::new() };
        let mut first = tokens(0, b"a");
        first.logprobs = vec![scored(-0.5)];
        let mut last = end(0, b"", FinishReason::Stop, 2);
        last.end_logprobs = Some((256, scored(-0.25)));
        let mut told = Vec::new();
        for output in [first, last] {
            answer.push(0, output);
            while let Some(output) = answer.next() {
                let list: Json = serde_json::from_str(&elements(&output, "logprobs")[0]).unwrap();
                let find = |name| output.tensors.iter().find(|one| one.name == name).unwrap();
                let count: Vec<u32> = find("num_output_tokens").values().unwrap().collect();
                let sum: Vec<f32> = find("cumulative_logprob").values().unwrap().collect();
                assert_eq!(list.as_array().unwrap().len(), count[0] as usize);
                told.push((count[0], sum[0], list[count[0] as usize - 1].get("256").is_some()));
            }
        }
        let streamed = vec![(1, -0.5, false), (1, -0.75, true)];
        assert_eq!(told, if is_streaming { streamed } else { vec![(2, -0.75, true)] });
    }
}

#[test]
fn names_of_outputs_choose_them_and_none_is_vllms_word() {
    let mut with_word = answer(&["q"], &[STREAM, REASON], &[]);
    with_word.push(0, tokens(0, b"a"));
    assert_eq!(elements(&with_word.next().unwrap(), "finish_reason"), ["None"]);
    let without = ("return_finish_reason", Parameter::Bool(false));
    for parameters in [&[STREAM, without][..], &[STREAM]] {
        let mut quiet = answer(&["q"], parameters, &[]);
        quiet.push(0, tokens(0, b"a"));
        assert_eq!(quiet.next().unwrap().tensors.len(), 1);
    }
    let mut named = answer(&["q"], &[STREAM], &["num_output_tokens"]);
    named.push(0, tokens(0, b"a"));
    assert_eq!(named.next().unwrap().tensors[0].name, "num_output_tokens");
}

#[test]
fn no_logprobs_are_listed_if_none_were_asked_for() {
    let flag = |name| (name, Parameter::Bool(true));
    let parameters = [flag("return_logprobs"), flag("return_cumulative_logprob")];
    let mut answer = answer(&["q"], &parameters, &[]);
    let mut output = end(0, b"a", FinishReason::Stop, 2);
    output.logprobs = vec![TokenLogprobs { logprob: -0.5, rank: 1, top: Vec::new() }];
    answer.push(0, output);
    let only = answer.next().unwrap();
    assert_eq!(elements(&only, "logprobs"), ["null"]);
    let sum = only.tensors.iter().find(|tensor| tensor.name == "cumulative_logprob").unwrap();
    assert_eq!(sum.values::<f32>().unwrap().collect::<Vec<_>>(), [-0.5]);
}

proptest! {
    #[test]
    fn the_text_does_not_depend_on_how_tokens_arrive(
        text in "[aé€]{0,12}", cut in 0usize..30, stream: bool,
    ) {
        let parameters = [
            ("stream", Parameter::Bool(stream)),
            ("exclude_input_in_output", Parameter::Bool(true)),
        ];
        let mut answer = answer(&["q"], &parameters, &[]);
        let bytes = text.as_bytes();
        let (left, right) = bytes.split_at(cut.min(bytes.len()));
        let mut got = String::new();
        for output in [tokens(0, left), end(0, right, FinishReason::Length, 1)] {
            answer.push(0, output);
            while let Some(output) = answer.next() {
                got += &elements(&output, "text_output")[0];
            }
        }
        prop_assert_eq!(got, text);
        prop_assert!(answer.is_done());
    }
}
