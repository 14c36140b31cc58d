"""Text over tensors: prompts, batches, every setting by tensor, JSON and parameter, every output."""

import json

import grpc
import numpy as np
import pytest

from conftest import running
from wire import (Client, Stream, is_final, outputs_of, refused, request, strings, tensor, text_request,
                  write_model)

PROMPT = "The capital of France is"
GREEDY = {"temperature": 0.0, "max_tokens": 8}
QUIET = {"exclude_input_in_output": True}
REASON = {"return_finish_reason": True}


def ask(stub, *prompts, model="smollm", **settings):
    """Returns the outputs of a unary text request."""
    extra, raw = settings.pop("extra", ()), settings.pop("raw", ())
    outputs = settings.pop("outputs", ())
    made = text_request(model, *prompts, extra=extra, raw=raw, outputs=outputs, **settings)
    return outputs_of(stub.ModelInfer(made))


def texts(stub, *prompts, **settings):
    return [text.decode() for text in ask(stub, *prompts, **settings)["text_output"]]


def stream(stub, *prompts, model="smollm", **settings):
    """Returns the messages of a streamed text request."""
    streaming = tensor("streaming", "BOOL", [1])
    channel = Stream(stub)
    channel.send(text_request(model, *prompts, extra=[streaming], raw=[b"\x01"], **settings))
    channel.close()
    messages = list(channel)
    assert not any(message.error_message for message in messages), messages
    return messages


def test_a_real_model_knows_the_capital_of_france(stub):
    assert "Paris" in texts(stub, PROMPT, **GREEDY)[0]


def test_the_prompt_is_in_front_if_vllms_client_asks(stub):
    text = texts(stub, PROMPT, **GREEDY)[0]
    assert not text.startswith(PROMPT)
    for said in ({"exclude_input_in_output": False}, {"stream": False}, {"echo": True}):
        assert texts(stub, PROMPT, **GREEDY, **said) == [PROMPT + text], said
    for said in (QUIET, {**QUIET, "stream": False}):
        assert texts(stub, PROMPT, **GREEDY, **said) == [text], said


def test_the_operator_may_put_prompts_in_front(tmp_path):
    told = 'backend: "mock"\nparameters { key: "text_output" value { string_value: "text" } }\n'
    write_model(tmp_path, "quiet", told)
    with running("--text-output", "echo", "--builtin", "words=mock", "--model-repository", str(tmp_path)) as server:
        with Client(server) as client:
            asked = {"max_tokens": 2, "seed": 1}
            (echoed,) = texts(client.stub, "hello", model="words", **asked)
            (without,) = texts(client.stub, "hello", model="words", **asked, **QUIET)
            assert echoed == "hello" + without
            assert texts(client.stub, "hello", model="quiet", **asked) == [without]
    with running("--builtin", "echoes=mock,text_output=echo") as server, Client(server) as client:
        assert texts(client.stub, "hello", model="echoes", **asked) == [echoed]


def test_a_stream_gives_the_text_of_the_unary_call_in_pieces(stub):
    messages = stream(stub, PROMPT, **GREEDY, **REASON)
    pieces = [outputs_of(m.infer_response)["text_output"][0].decode() for m in messages]
    assert len(pieces) > 1 and "".join(pieces) == texts(stub, PROMPT, **GREEDY)[0]
    assert [is_final(m) for m in messages] == [False] * (len(messages) - 1) + [True]
    reasons = [outputs_of(m.infer_response)["finish_reason"][0] for m in messages]
    assert set(reasons[:-1]) == {b"None"} and reasons[-1] in (b"length", b"stop")


@pytest.mark.parametrize("shape", [[3], [3, 1]])
def test_a_batch_of_prompts_gives_what_each_gives_alone(stub, shape):
    prompts = [PROMPT, "1, 2, 3, 4,", "Roses are red,"]
    made = text_request("smollm", *prompts, **GREEDY, **QUIET)
    made.inputs[0].shape[:] = shape
    batch = [text.decode() for text in outputs_of(stub.ModelInfer(made))["text_output"]]
    assert batch == [texts(stub, prompt, **GREEDY)[0] for prompt in prompts]


def test_a_streamed_batch_has_one_element_a_prompt(stub):
    prompts = [PROMPT, "1, 2, 3, 4,"]
    together = ["", ""]
    for message in stream(stub, *prompts, **GREEDY):
        for row, piece in enumerate(outputs_of(message.infer_response)["text_output"]):
            together[row] += piece.decode()
    assert together == [texts(stub, prompt, **GREEDY)[0] for prompt in prompts]


def test_messages_go_through_the_models_chat_template(stub):
    conversation = [{"role": "user", "content": "What is the capital of France?"}]
    made = request("smollm", [tensor("messages", "BYTES", [1])],
                   [strings(json.dumps(conversation))], parameters={**GREEDY, "max_tokens": 24})
    answer = outputs_of(stub.ModelInfer(made))
    assert "Paris" in answer["text_output"][0].decode()
    assert not answer["text_output"][0].startswith(b"What")


def test_n_gives_n_elements_a_prompt_and_a_seed_repeats_them(stub):
    settings = {"n": 3, "seed": 7, "temperature": 1.0, "max_tokens": 6}
    first = texts(stub, PROMPT, "One, two,", **settings)
    assert len(first) == 6 and len(set(first)) > 2
    assert texts(stub, PROMPT, "One, two,", **settings) == first
    assert texts(stub, PROMPT, "One, two,", **{**settings, "seed": 8}) != first


def test_a_setting_means_the_same_as_tensor_json_and_parameter(stub):
    by_parameter = texts(stub, PROMPT, temperature=0.0, max_tokens=3)
    sampling = tensor("sampling_parameters", "BYTES", [1])
    by_json = texts(stub, PROMPT, extra=[sampling],
                    raw=[strings(json.dumps({"temperature": "0.0", "max_tokens": 3}))])
    by_tensor = texts(stub, PROMPT,
                      extra=[tensor("temperature", "FP32", [1, 1]),
                             tensor("max_tokens", "INT32", [1, 1])],
                      raw=[np.float32([0]).tobytes(), np.int32([3]).tobytes()])
    assert by_parameter == by_json == by_tensor


def test_each_row_may_have_its_own_settings(stub):
    counts = ask(stub, PROMPT, PROMPT, temperature=0.0, ignore_eos=True,
                 extra=[tensor("max_tokens", "INT32", [2])], raw=[np.int32([2, 5]).tobytes()],
                 return_num_output_tokens=True)["num_output_tokens"]
    assert counts.tolist() == [2, 5]


@pytest.mark.parametrize("settings", [
    {"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}, {"temperature": 0.0}], ids=str)
def test_settings_that_leave_one_token_are_greedy(stub, settings):
    greedy = texts(stub, PROMPT, **GREEDY)
    assert texts(stub, PROMPT, **{"temperature": 1.5, "max_tokens": 8, **settings}) == greedy


@pytest.mark.parametrize("penalty", [
    {"repetition_penalty": 5.0}, {"frequency_penalty": 2.0}, {"presence_penalty": 2.0}], ids=str)
def test_penalties_change_a_repetitive_text(stub, penalty):
    prompt, settings = "la la la la la la", {"temperature": 0.0, "max_tokens": 24}
    assert texts(stub, prompt, **settings) != texts(stub, prompt, **settings, **penalty)


def test_max_and_min_tokens_bound_the_answer(stub):
    wants = {"return_num_output_tokens": True, "temperature": 0.0}
    assert ask(stub, PROMPT, max_tokens=5, **wants)["num_output_tokens"].tolist() == [5]
    question = "<|im_start|>user\nSay yes.<|im_end|>\n<|im_start|>assistant\n"
    short = ask(stub, question, max_tokens=60, **wants, **REASON)
    assert short["finish_reason"] == [b"stop"]
    long = ask(stub, question, max_tokens=60, min_tokens=60, **wants)
    assert long["num_output_tokens"].tolist() == [60] > short["num_output_tokens"].tolist()


def test_ignore_eos_goes_on_to_the_limit(stub):
    question = "<|im_start|>user\nSay yes.<|im_end|>\n<|im_start|>assistant\n"
    answer = ask(stub, question, max_tokens=60, ignore_eos=True, temperature=0.0, **REASON)
    assert answer["finish_reason"] == [b"length"]


def test_a_stop_text_is_cut_off_or_kept(stub):
    whole = texts(stub, "1, 2, 3, 4, 5,", temperature=0.0, max_tokens=24)[0]
    assert " 8" in whole
    cut = ask(stub, "1, 2, 3, 4, 5,", temperature=0.0, max_tokens=24, stop=" 8", **REASON)
    assert cut["text_output"][0].decode() == whole[:whole.index(" 8")]
    assert cut["finish_reason"] == [b"stop"]
    kept = texts(stub, "1, 2, 3, 4, 5,", temperature=0.0, max_tokens=24, stop=" 8",
                 include_stop_str_in_output=True)[0]
    assert kept == whole[:whole.index(" 8") + 2]
    words = texts(stub, "1, 2, 3, 4, 5,", temperature=0.0, max_tokens=24,
                  extra=[tensor("stop_words", "BYTES", [1, 2])], raw=[strings(" 8", "zzz")])[0]
    assert words == whole[:whole.index(" 8")]


def test_a_stop_text_frees_the_engine_and_streams_nothing_of_it(stub):
    messages = stream(stub, "1, 2, 3, 4, 5,", temperature=0.0, max_tokens=4000, stop="10",
                      ignore_eos=True)
    text = b"".join(outputs_of(m.infer_response)["text_output"][0] for m in messages)
    assert b"9" in text and b"10" not in text


def test_a_stop_token_ends_the_answer(stub):
    greedy = ask(stub, PROMPT, **GREEDY, return_logprobs=True, logprobs=0)
    second = int(next(iter(json.loads(greedy["logprobs"][0])[1])))
    stopped = ask(stub, PROMPT, **GREEDY, **REASON, return_num_output_tokens=True,
                  extra=[tensor("end_id", "INT32", [1])], raw=[np.int32([second]).tobytes()])
    assert stopped["finish_reason"] == [b"stop"]
    assert stopped["num_output_tokens"].tolist() == [2]


def test_special_tokens_are_hidden_unless_asked_for(stub):
    question = "<|im_start|>user\nSay yes.<|im_end|>\n<|im_start|>assistant\n"
    settings = {"temperature": 0.0, "max_tokens": 60, "ignore_eos": True}
    assert "<|im_end|>" not in texts(stub, question, **settings)[0]
    assert "<|im_end|>" in texts(stub, question, skip_special_tokens=False, **settings)[0]


def test_a_text_is_never_cut_inside_a_character(stub):
    prompt = "Translate to emoji: happy, sad, love. 😀 😢 ❤️ and more: 🎉 🚀"
    messages = stream(stub, prompt, temperature=0.0, max_tokens=40, ignore_eos=True)
    for message in messages:
        outputs_of(message.infer_response)["text_output"][0].decode("utf-8")


def test_outputs_come_when_they_are_asked_for(stub):
    assert set(ask(stub, PROMPT, **GREEDY)) == {"text_output"}
    assert all(set(outputs_of(m.infer_response)) == {"text_output"} for m in stream(stub, PROMPT, **GREEDY))
    assert set(ask(stub, PROMPT, **GREEDY, **REASON)) == {"text_output", "finish_reason"}
    flags = ["num_input_tokens", "num_output_tokens", "logprobs", "cumulative_logprob"]
    everything = ask(stub, PROMPT, **GREEDY, **{f"return_{flag}": True for flag in flags})
    assert set(everything) == {"text_output", *flags}
    assert everything["logprobs"] == [b"null"] and everything["cumulative_logprob"][0] < 0
    assert everything["num_input_tokens"].tolist() == [5]
    assert set(ask(stub, PROMPT, **GREEDY, outputs=["num_input_tokens"])) == {"num_input_tokens"}
    assert set(ask(stub, PROMPT, **GREEDY, return_finish_reason=False)) == {"text_output"}


def test_the_token_that_ends_a_text_is_scored_as_it_is_counted(stub):
    question = "<|im_start|>user\nSay yes.<|im_end|>\n<|im_start|>assistant\n"
    flags = ("return_logprobs", "return_num_output_tokens", "return_cumulative_logprob", *REASON)
    settings = {"temperature": 0.0, "max_tokens": 60, "logprobs": 1, **dict.fromkeys(flags, True)}
    whole = ask(stub, question, **settings)
    steps = json.loads(whole["logprobs"][0])
    assert whole["finish_reason"] == [b"stop"] and len(steps) == whole["num_output_tokens"][0] > 2
    assert "<|im_end|>" in [entry["decoded_token"] for entry in steps[-1].values()]
    sums = [0.0]
    for message in stream(stub, question, **settings):
        told = outputs_of(message.infer_response)
        assert len(json.loads(told["logprobs"][0])) == told["num_output_tokens"][0] > 0
        assert told["cumulative_logprob"][0] < sums[-1], "it changes with each message"
        sums.append(told["cumulative_logprob"][0])
    assert sums[-1] == pytest.approx(whole["cumulative_logprob"][0], rel=1e-4)


def test_logprobs_are_those_of_the_tokens_drawn(stub):
    answer = ask(stub, PROMPT, **GREEDY, return_logprobs=True, logprobs=3,
                 return_cumulative_logprob=True)
    steps = json.loads(answer["logprobs"][0])
    assert len(steps) == 8
    for step in steps:
        best = min(step.values(), key=lambda entry: entry["rank"])
        assert len(step) == 3 and best["rank"] == 1
        assert sum(np.exp(entry["logprob"]) for entry in step.values()) <= 1.0001
    greedy = [max(step.values(), key=lambda entry: entry["logprob"]) for step in steps]
    assert answer["cumulative_logprob"][0] == pytest.approx(
        sum(entry["logprob"] for entry in greedy), rel=1e-4)
    assert steps[0][next(iter(steps[0]))]["decoded_token"].startswith(" ")


def test_streamed_counts_add_up(stub):
    messages = stream(stub, PROMPT, **GREEDY, return_num_output_tokens=True,
                      return_finish_reason=True)
    found = [outputs_of(message.infer_response) for message in messages]
    assert sum(f["num_output_tokens"][0] for f in found) == 8
    assert [f["finish_reason"][0] for f in found[:-1]] == [b"None"] * (len(found) - 1)


def test_the_default_limit_is_finite(stub):
    counts = ask(stub, PROMPT, model="mock_fast", return_num_output_tokens=True)
    assert counts["num_output_tokens"].tolist() == [256]


@pytest.mark.parametrize("settings, fragment", [
    ({"temperature": 3.0}, "parameter `temperature`: expected a number from 0 to 2, got 3"),
    ({"temperature": "warm"}, "parameter `temperature`: expected a number"),
    ({"top_p": 0.0}, "parameter `top_p`"), ({"top_k": -2}, "parameter `top_k`"),
    ({"min_p": 1.5}, "parameter `min_p`"), ({"max_tokens": 0}, "parameter `max_tokens`"),
    ({"max_tokens": True}, "parameter `max_tokens`"), ({"min_tokens": 300}, "`min_tokens`"),
    ({"repetition_penalty": 0.0}, "parameter `repetition_penalty`"),
    ({"presence_penalty": 2.5}, "parameter `presence_penalty`"),
    ({"frequency_penalty": -2.5}, "parameter `frequency_penalty`"),
    ({"seed": -1}, "parameter `seed`"), ({"n": 0}, "parameter `n`"), ({"n": 129}, "parameter `n`"),
    ({"logprobs": 21}, "parameter `logprobs`"), ({"beam_width": 4}, "parameter `beam_width`"),
    ({"stream": True}, "ModelInfer gives one response"),
    ({"stream": 1}, "parameter `stream`: expected a bool"),
    ({"stop": "x" * 2000}, "parameter `stop`"),
    ({"sampling_parameters": "{"}, "`sampling_parameters`"),
    ({"sampling_parameters": '{"topp": 1}'}, "key `topp` is not known"),
], ids=str)
def test_a_wrong_setting_is_named(stub, settings, fragment):
    made = text_request("smollm", PROMPT, **settings)
    refused(lambda: stub.ModelInfer(made), grpc.StatusCode.INVALID_ARGUMENT, fragment)


def test_prompts_that_cannot_be_are_refused(stub):
    invalid = grpc.StatusCode.INVALID_ARGUMENT
    made = text_request("smollm", "word " * 9000)
    refused(lambda: stub.ModelInfer(made), invalid, "the prompt has", "context of 8192")
    made = request("smollm", [tensor("text_input", "BYTES", [1])], [strings(b"\xff\xfe")])
    refused(lambda: stub.ModelInfer(made), invalid, "`text_input`: element 0 is not UTF-8")
    made = request("smollm", [tensor("messages", "BYTES", [1])], [strings('{"role": "user"}')])
    refused(lambda: stub.ModelInfer(made), invalid, "`messages`: expected a JSON array")
    made = request("smollm", [], [])
    refused(lambda: stub.ModelInfer(made), invalid, "`text_input` or input `messages`, got neither")
    made = text_request("smollm", "")
    refused(lambda: stub.ModelInfer(made), invalid, "the prompt has no tokens")
    made = text_request("smollm", PROMPT, extra=[tensor("streaming", "BOOL", [1]),
                        tensor("exclude_input_in_output", "BOOL", [1])], raw=[b"\x01", b"\x00"])
    refused(lambda: stub.ModelInfer(made), invalid, "Error generating stream:")
