"""The twin: what the OpenAI API answers, the tensors of KServe's doors answer too."""

import concurrent.futures
import json
import random

import grpc
import numpy as np
import pytest

from real_models import real_model
import twin
from conftest import running
from wire import call, outputs_of, refused, request, strings, tensor

REQUESTS = 100


@pytest.mark.parametrize("seed", range(REQUESTS))
def test_every_door_gives_the_same_answer(server, stub, seed):
    prompt, settings = twin.generated(seed)
    same = twin.as_tensors(prompt, settings)
    expected = twin.by_openai(server, prompt, settings)
    with concurrent.futures.ThreadPoolExecutor() as doors:
        # At once: whatever is in the batch, the answer depends on the request alone.
        answers = [doors.submit(twin.by_unary, stub, random.Random(seed), prompt, same),
                   doors.submit(twin.by_stream, stub, random.Random(-seed), prompt, same),
                   doors.submit(twin.by_generate, server, prompt, same)]
    for answer in answers:
        twin.same(expected, answer.result())


def test_the_generated_requests_are_of_every_kind():
    kinds = {kind for seed in range(REQUESTS) for part in twin.generated(seed) for kind in part}
    assert {"messages", "text_input", "input_ids", "tools", "tool_choice", "response_format",
            "guided_json", "guided_regex", "guided_grammar", "guided_choice", "logit_bias", "n",
            "echo", "stop", "logprobs", "parallel_tool_calls", "repetition_penalty"} <= kinds


def test_some_generated_requests_are_answered_by_calls_of_the_models_own_will(server):
    """Else calls in the model's own format would not be compared."""
    requests = map(twin.generated, range(REQUESTS))
    with_calls = [made for made in requests if "tool_calls" in json.dumps(made[0])]
    answers = (twin.by_openai(server, *made) for made in with_calls)
    called = (any(choice.calls and choice.finish == "tool_calls" for choice in answer.choices)
              for answer in answers)
    assert any(called)


def text_inputs(**texts):
    """Makes BYTES inputs and their contents; a list is a tensor of so many texts."""
    lists = {name: text if isinstance(text, list) else [text] for name, text in texts.items()}
    inputs = [tensor(name, "BYTES", [len(values)]) for name, values in lists.items()]
    return inputs, [strings(*values) for values in lists.values()]


def infer(stub, inputs, raw, outputs=(), **parameters):
    return outputs_of(stub.ModelInfer(request(twin.MODEL, inputs, raw, outputs, parameters)))


def openai(server, path, **body):
    reply = call(server, path, {"model": twin.MODEL, **body})
    assert reply.status == 200, reply.body
    return reply.json()


TEXTS = ["A cat sat on the mat.", "Żółw \U0001f422", "Rust is a programming language."]


@pytest.mark.parametrize("dimensions", [None, 16])
def test_embeddings_are_an_output(server, stub, dimensions):
    told = openai(server, "/v1/embeddings", input=TEXTS, dimensions=dimensions)
    expected = np.float32([one["embedding"] for one in told["data"]])
    parameters = {"dimensions": dimensions} if dimensions else {}
    answer = stub.ModelInfer(request(twin.MODEL, *text_inputs(text_input=TEXTS), ["embedding"],
                                     parameters))
    assert [output.name for output in answer.outputs] == ["embedding"]
    assert list(answer.outputs[0].shape) == list(expected.shape)
    assert expected.shape[0] == 3 and expected.shape[1] == (dimensions or expected.shape[1])
    assert np.array_equal(outputs_of(answer)["embedding"].reshape(expected.shape), expected)
    assert np.allclose(np.linalg.norm(expected, axis=1), 1, atol=1e-5)


def test_tokens_have_the_vector_of_their_text(server, stub):
    tokens = openai(server, "/v1/tokenize", prompt=TEXTS[0])["tokens"]
    ids = tensor("input_ids", "INT32", [len(tokens)])
    by_tokens = infer(stub, [ids], [np.int32(tokens).tobytes()], ["embedding"])["embedding"]
    by_text = infer(stub, *text_inputs(text_input=TEXTS[0]), ["embedding"])["embedding"]
    assert np.array_equal(by_tokens, by_text)
    twin_of_it = openai(server, "/v1/embeddings", input=tokens)["data"][0]["embedding"]
    assert np.array_equal(by_tokens, np.float32(twin_of_it))


@pytest.mark.parametrize("outputs", [[], ["relevance_score"]])
def test_rerank_is_a_query_and_documents(server, stub, outputs):
    told = openai(server, "/v1/rerank", query="Where did the cat sit?", documents=TEXTS)
    expected = {one["index"]: one["relevance_score"] for one in told["results"]}
    inputs = text_inputs(query="Where did the cat sit?", documents=TEXTS)
    found = infer(stub, *inputs, outputs)
    assert list(found) == ["relevance_score"]
    assert found["relevance_score"].tolist() == [np.float32(expected[index]) for index in range(3)]
    assert all(0 <= score <= 1 for score in found["relevance_score"])
    assert [one["index"] for one in told["results"]] == sorted(
        range(3), key=lambda index: -found["relevance_score"][index])


def test_embeddings_and_rerank_come_over_rest_too(server, stub):
    inputs = [{"name": "text_input", "datatype": "BYTES", "shape": [3], "data": TEXTS}]
    reply = call(server, f"/v2/models/{twin.MODEL}/infer",
                 {"inputs": inputs, "outputs": [{"name": "embedding"}]})
    assert reply.status == 200, reply.body
    by_rest = np.float32(reply.json()["outputs"][0]["data"])
    by_grpc = infer(stub, *text_inputs(text_input=TEXTS), ["embedding"])["embedding"]
    assert np.array_equal(by_rest, by_grpc)
    reply = call(server, f"/v2/models/{twin.MODEL}/generate",
                 {"query": "cat", "documents": TEXTS})
    assert reply.status == 200, reply.body
    scores = infer(stub, *text_inputs(query="cat", documents=TEXTS))["relevance_score"]
    assert np.array_equal(np.float32(reply.json()["relevance_score"]), scores)


def test_the_prompts_own_probabilities_are_an_output(server, stub):
    settings = {"max_tokens": 1, "temperature": 0, "prompt_logprobs": 2}
    messages = [{"role": "user", "content": "Say yes."}]
    told = openai(server, "/v1/chat/completions", messages=messages, **settings)["choices"][0]
    made = text_inputs(messages=json.dumps(messages))
    found = infer(stub, *made, **settings)
    steps = json.loads(found["prompt_logprobs"][0])
    assert len(steps) == len(told["prompt_logprobs"]) and steps[0] is told["prompt_logprobs"][0] is None
    for step, one in zip(steps[1:], told["prompt_logprobs"][1:]):
        best = {top["decoded_token"]: top["logprob"] for top in step.values() if top["rank"] <= 2}
        assert best == {top["token"]: top["logprob"] for top in one["top_logprobs"]}
        assert one["logprob"] in [entry["logprob"] for entry in step.values()]


def test_reasoning_is_an_output(stub):
    """The text is made to hold a thought, which a parser is told to look for."""
    arguments = [f"smollm={real_model()}", "--reasoning-parser", "think"]
    messages = [{"role": "user", "content": "Say yes."}]
    settings = {"guided_regex": "<think>(one|two) three</think>yes", "temperature": 0,
                "max_tokens": 40, "seed": 1, "return_token_ids": True}
    with running(*arguments) as server, grpc.insecure_channel(server.address) as channel:
        own = type(stub)(channel)
        prompt = {"messages": messages}
        expected = twin.by_openai(server, prompt, settings)
        assert expected.choices[0].reasoning in ("one three", "two three")
        assert expected.choices[0].text == "yes"
        same, rng = twin.as_tensors(prompt, settings), random.Random(1)
        twin.same(expected, twin.by_unary(own, rng, prompt, same))
        twin.same(expected, twin.by_stream(own, rng, prompt, same))
        body = {"model": twin.MODEL, "messages": messages, **settings}
        usage = call(server, "/v1/chat/completions", body).json()["usage"]
        thought = infer(own, *text_inputs(messages=json.dumps(messages)), ["num_reasoning_tokens"],
                        **settings)["num_reasoning_tokens"].tolist()
        assert thought == [usage["completion_tokens_details"]["reasoning_tokens"]] and thought[0] > 2


def test_cached_tokens_are_an_output(server, stub):
    question = "Tell me of the tides, of the moon, and of the sea. " * 12
    usage = [openai(server, "/v1/completions", prompt=question, max_tokens=1)["usage"]
             for _ in range(2)][1]
    told = infer(stub, *text_inputs(text_input=question), ["num_cached_tokens", "num_input_tokens"],
                 max_tokens=1)
    assert told["num_input_tokens"] == [usage["prompt_tokens"]]
    assert told["num_cached_tokens"] == [usage["prompt_tokens_details"]["cached_tokens"]]


TOOL = json.dumps([twin.WEATHER])
CHAT = json.dumps([{"role": "user", "content": "Hi"}])
WRONG = [
    ({"tools": "{"}, "input `tools`"),
    ({"tools": '{"a": 1}'}, "input `tools`: expected a list of tools"),
    ({"tools": "[1]"}, "`tools[0]`: expected an object"),
    ({"tools": '[{"type": "web_search"}]'}, "`tools[0].type`: `web_search` tools are not served"),
    ({"tools": '[{"type": "function", "function": {"name": "a b"}}]'}, "`tools[0].function.name`"),
    ({"tools": '[{"type": "function", "function": {"name": "a", "parameters": 1}}]'},
     "`tools[0].function.parameters`"),
    ({"tool_choice": "auto"}, "input `tool_choice`: is only allowed when `tools` are specified"),
    ({"tools": TOOL, "tool_choice": "maybe"}, "input `tool_choice`: expected none, auto, required"),
    ({"tools": TOOL, "tool_choice": '{"type": "function", "function": {"name": "nope"}}'},
     "input `tool_choice`: `nope` is not one of the tools"),
    ({"response_format": '{"type": "xml"}'}, "input `response_format`: type `xml` is not known"),
    ({"response_format": '{"type": "json_schema"}'}, "input `response_format`"),
    ({"response_format": '{"type"'}, "input `response_format`"),
    ({"response_format": '{"type": "regex"}'}, "input `response_format`: type `regex` needs"),
    ({"response_format": "json_object", "guided_regex": "a"},
     "input `guided_regex`: expected it or `response_format`, got both"),
    ({"guided_json": '{"type": 5}'}, "`guided_json`"),
    ({"guided_regex": "(a"}, "`guided_regex`"),
    ({"guided_grammar": "start: ("}, "`guided_grammar`"),
    ({"logit_bias": "[1]"}, "input `logit_bias`: expected an object"),
    ({"logit_bias": '{"x": 1}'}, "input `logit_bias`: `x` is no token id"),
    ({"logit_bias": '{"5": 101}'}, "input `logit_bias`: token 5: expected a number from -100 to 100"),
    ({"chat_template_kwargs": "[1]"}, "input `chat_template_kwargs`: expected an object"),
    ({"chat_template_kwargs": '{"messages": 1}'}, "chat_template_kwargs.messages"),
    ({"reasoning_effort": "vast"}, "input `reasoning_effort`: expected one of none, minimal"),
    ({"messages": '[{"content": "a"}]'}, "input `messages`: `messages[0]`"),
    ({"messages": '[{"role": "user", "content": [{"type": "image_url"}]}]'}, "`image_url`"),
    ({"messages": "[]"}, "input `messages`"),
]


@pytest.mark.parametrize("texts, fragment", WRONG, ids=lambda value: str(value)[:60])
def test_a_wrong_input_is_named(stub, texts, fragment):
    inputs, raw = text_inputs(**{"messages": CHAT, **texts})
    made = request(twin.MODEL, inputs, raw, parameters={"max_tokens": 2})
    refused(lambda: stub.ModelInfer(made), grpc.StatusCode.INVALID_ARGUMENT, fragment)


WRONG_NUMBERS = [
    ({"prompt_logprobs": 21}, "parameter `prompt_logprobs`"),
    ({"max_completion_tokens": 0}, "parameter `max_completion_tokens`"),
    ({"parallel_tool_calls": 3}, "parameter `parallel_tool_calls`: expected a bool"),
    ({"continue_final_message": True, "add_generation_prompt": True}, "`continue_final_message`"),
    ({"echo": "perhaps"}, "parameter `echo`: expected a bool"),
]


@pytest.mark.parametrize("settings, fragment", WRONG_NUMBERS, ids=str)
def test_a_wrong_parameter_is_named(stub, settings, fragment):
    made = request(twin.MODEL, *text_inputs(messages=CHAT), parameters=settings)
    refused(lambda: stub.ModelInfer(made), grpc.StatusCode.INVALID_ARGUMENT, fragment)


def test_prompts_and_calls_that_cannot_be_are_refused(stub):
    ids, raw = tensor("input_ids", "INT32", [2]), np.int32([1, 2]).tobytes()
    texts, text_raw = text_inputs(text_input="a")
    invalid = grpc.StatusCode.INVALID_ARGUMENT
    ask = lambda inputs, raw, outputs=(), **parameters: lambda: infer(
        stub, inputs, raw, outputs, **parameters)
    refused(ask([ids, *texts], [raw, *text_raw]), invalid, "`input_ids`")
    refused(ask([tensor("input_ids", "INT32", [1])], [np.int32([-1]).tobytes()]), invalid,
            "input `input_ids`: expected a token id, got -1")
    refused(ask([tensor("input_ids", "INT32", [1])], [np.int32([2**30]).tobytes()]), invalid,
            "1073741824")
    refused(ask([], [], ["embedding"]), invalid, "`embedding`")
    refused(ask(texts, text_raw, ["embedding", "text_output"]), invalid, "`embedding`")
    refused(ask(texts, text_raw, ["embedding"], dimensions=100_000), invalid, "`dimensions`")
    refused(ask(*text_inputs(query="a")), invalid, "input `documents`")
    refused(ask(*text_inputs(documents=["a"]), ["relevance_score"]), invalid, "`query`")
