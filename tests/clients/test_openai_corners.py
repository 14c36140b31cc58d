"""Corners of the API that clients do reach: nulls, encodings, odd echoes, ids out of range."""

import gzip
import json

import httpx
import openai
import pytest

QUESTION = [{"role": "user", "content": "Hello"}]
OPTIONS = """audio frequency_penalty function_call functions logit_bias logprobs
    max_completion_tokens max_tokens metadata modalities n parallel_tool_calls prediction
    presence_penalty reasoning_effort response_format seed service_tier stop store stream
    stream_options tool_choice tools top_logprobs top_p user web_search_options priority top_k min_p
    chat_template_kwargs""".split()


def post(server, path, body, **headers):
    content = body if isinstance(body, bytes) else json.dumps(body)
    return httpx.post(f"http://{server.http}{path}", content=content,
                      headers={"content-type": "application/json", **headers})


def test_null_is_as_good_as_nothing(scripted):
    body = {"model": "hello", "messages": QUESTION, "temperature": 0, **dict.fromkeys(OPTIONS)}
    answer = post(scripted, "/v1/chat/completions", body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"] == "Hello, world."


def test_a_body_may_be_compressed(scripted):
    body = json.dumps({"model": "hello", "prompt": "x", "temperature": 0}).encode()
    answer = post(scripted, "/v1/completions", gzip.compress(body), **{"content-encoding": "gzip"})
    assert answer.json()["choices"][0]["text"] == "Hello, world."


def test_an_encoding_that_is_not_known_is_the_clients_fault(scripted):
    """A status of 500 and more would be tried again."""
    answer = post(scripted, "/v1/completions", b"x", **{"content-encoding": "br"})
    assert answer.status_code == 415 and "br" in answer.json()["error"]["message"]


@pytest.mark.parametrize("content", [b"NaN", b"1e999", b"-Infinity"])
def test_a_number_that_json_does_not_have_is_refused(scripted, content):
    body = b'{"model": "hello", "prompt": "x", "temperature": ' + content + b"}"
    assert post(scripted, "/v1/completions", body).status_code == 400


@pytest.mark.parametrize("method, path, status", [
    ("GET", "/v1/nothing", 404),
    ("POST", "/v1/chat/completions/", 404),
    ("GET", "/v1/chat/completions", 405),
    ("DELETE", "/v1/models/hello", 405),
])
def test_an_unknown_route_is_told_in_the_apis_form(scripted, method, path, status):
    answer = httpx.request(method, f"http://{scripted.http}{path}")
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_every_choice_of_an_echo_has_the_prompts_scores(actor):
    for count in (0, 2):
        answer = actor.completions.create(model="hello", prompt="ab", echo=True, logprobs=1, n=2,
                                          max_tokens=count, temperature=0)
        for choice in answer.choices:
            assert choice.text == "abHe"[:2 + count]
            assert choice.logprobs is not None, choice
            assert "".join(choice.logprobs.tokens) == choice.text
            assert choice.logprobs.text_offset == list(range(2 + count))
            assert choice.logprobs.token_logprobs[0] is None


def test_offsets_point_into_the_text(actor):
    answer = actor.completions.create(model="party", prompt="x", logprobs=1, temperature=0)
    [choice] = answer.choices
    assert choice.text == "Grüße 🎉!"
    lists = choice.logprobs
    told = [(token, offset) for token, offset in zip(lists.tokens, lists.text_offset)
            if not token.startswith("bytes:")]
    assert [token for token, _ in told] == list("Gre !")
    assert all(choice.text[offset:].startswith(token) for token, offset in told), told


def test_an_id_that_the_vocabulary_lacks_is_refused(actor):
    calls = [("/completions", {"prompt": [99999]}), ("/embeddings", {"input": [99999]}),
             ("/detokenize", {"tokens": [99999]}),
             ("/completions", {"prompt": "x", "logit_bias": {"99999": 1}})]
    for path, body in calls:
        with pytest.raises(openai.BadRequestError) as caught:
            actor.post(path, body={"model": "hello", **body}, cast_to=object)
        assert "99999" in caught.value.message, path


@pytest.mark.parametrize("path, body, field", [
    ("/completions", {"prompt": ""}, "prompt"),
    ("/completions", {"prompt": [99999]}, "prompt"),
    ("/embeddings", {"input": ""}, "input"),
    ("/embeddings", {"input": ["x", ""]}, "input"),
    ("/rerank", {"query": "x", "documents": [""]}, "documents"),
])
def test_a_text_that_cannot_be_used_is_named(actor, path, body, field):
    with pytest.raises(openai.BadRequestError) as caught:
        actor.post(path, body={"model": "hello", **body}, cast_to=object)
    assert (caught.value.param or "").startswith(field), caught.value


def test_choices_and_prompts_together_are_bounded(actor):
    answer = actor.completions.create(model="hello", prompt=["a", "b"], n=128, max_tokens=1)
    assert [choice.index for choice in answer.choices] == list(range(256))
    with pytest.raises(openai.BadRequestError) as caught:
        actor.completions.create(model="hello", prompt=["a", "b", "c"], n=128, max_tokens=1)
    assert caught.value.param == "n"


def test_a_stop_counts_in_the_answer_and_not_in_the_thoughts(actor):
    answer = actor.chat.completions.create(model="thinker", messages=QUESTION, temperature=0,
                                           stop=["answer"])
    message = answer.choices[0].message
    assert message.content == "The " and message.model_extra["reasoning_content"] == "Let me see."


def test_each_choice_has_its_own_seed_and_greedy_ones_agree(sdk):
    def told(**options):
        answer = sdk.chat.completions.create(model="smollm", messages=QUESTION, n=2,
                                             max_completion_tokens=16, **options)
        return {choice.message.content for choice in answer.choices}

    assert len(told(temperature=0)) == 1
    assert len(told(temperature=1.5, seed=1)) == 2


def test_scores_of_calls_come_in_a_stream_too(actor):
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": {}}}
    options = {"model": "caller", "messages": QUESTION, "tools": [tool], "temperature": 0,
               "logprobs": True, "max_completion_tokens": 300}
    whole = actor.chat.completions.create(**options).choices[0].logprobs.content
    told = [score for chunk in actor.chat.completions.create(stream=True, **options)
            for choice in chunk.choices if choice.logprobs for score in choice.logprobs.content]
    assert [score.token for score in told] == [score.token for score in whole]
