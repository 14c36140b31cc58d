"""What is wrong with a call reaches OpenAI's own client as the right error."""

import asyncio
import contextlib
import http.client
import json

import httpx
import openai
import pytest

from conftest import running, sdk_of
from patience import eventually
from wire import scrape

QUESTION = [{"role": "user", "content": "Hello"}]


def refused(client, path, body, error=openai.BadRequestError):
    """Posts a body that the client would not let through, and returns its error."""
    with pytest.raises(error) as caught:
        client.post(path, body=body, cast_to=object)
    return caught.value


def raw(server, content, path="/v1/chat/completions", **headers):
    return httpx.post(f"http://{server.http}{path}", content=content,
                      headers={"content-type": "application/json", **headers})


@pytest.mark.parametrize("field, value", [
    ("messages", None),
    ("messages", "hello"),
    ("messages", {}),
    ("messages", []),
    ("messages", [7]),
    ("messages", [{"content": "x"}]),
    ("messages", [{"role": 7, "content": "x"}]),
    ("messages", [{"role": "user"}]),
    ("messages", [{"role": "user", "content": 7}]),
    ("messages", [{"role": "user", "content": [{"type": "text"}]}]),
    ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
    ("messages", [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]),
    ("messages", [{"role": "assistant", "tool_calls": 7}]),
    ("temperature", "hot"),
    ("temperature", 2.5),
    ("temperature", -0.1),
    ("temperature", []),
    ("top_p", 0),
    ("top_p", 1.1),
    ("n", 0),
    ("n", 129),
    ("n", 1.5),
    ("n", "2"),
    ("max_tokens", 0),
    ("max_tokens", -1),
    ("max_tokens", "many"),
    ("max_completion_tokens", 0),
    ("max_completion_tokens", 2.5),
    ("stop", 7),
    ("stop", [7]),
    ("stop", {"a": 1}),
    ("stream", "yes"),
    ("stream", 1),
    ("seed", "x"),
    ("seed", 1.5),
    ("logprobs", 2),
    ("top_logprobs", 3),
    ("top_logprobs", -1),
    ("logit_bias", [1]),
    ("logit_bias", {"a": 1}),
    ("logit_bias", {"1": 101}),
    ("logit_bias", {"1": "x"}),
    ("presence_penalty", 2.1),
    ("frequency_penalty", "x"),
    ("reasoning_effort", "enormous"),
    ("reasoning_effort", 7),
    ("priority", -1),
    ("priority", "x"),
    ("chat_template_kwargs", 7),
    ("chat_template_kwargs", {"messages": []}),
    ("stream_options", {"include_usage": True}),
])
def test_a_field_that_is_wrong_is_named(actor, field, value):
    body = {"model": "hello", "messages": QUESTION, field: value}
    error = refused(actor, "/chat/completions", body)
    assert error.param and error.param.split(".")[0].split("[")[0] == field, error
    assert error.type == "invalid_request_error" and field in error.message


@pytest.mark.parametrize("options", [
    {"audio": {"voice": "alloy", "format": "wav"}},
    {"functions": [{"name": "f", "parameters": {}}]},
    {"function_call": "auto"},
    {"web_search_options": {}},
    {"modalities": ["text", "audio"]},
])
def test_what_cannot_be_honoured_is_refused_not_ignored(actor, options):
    with pytest.raises(openai.BadRequestError) as caught:
        actor.chat.completions.create(model="hello", messages=QUESTION, **options)
    [field] = options
    assert caught.value.param == field and "not supported" in caught.value.message


def test_the_place_of_a_wrong_part_is_told(actor):
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    messages = [*QUESTION, {"role": "user", "content": [{"type": "text", "text": "x"}, image]}]
    error = refused(actor, "/chat/completions", {"model": "hello", "messages": messages})
    assert error.param == "messages[1].content[1]" and "image_url" in error.message


def test_options_of_a_stream_need_one_and_have_types(actor):
    body = {"model": "hello", "messages": QUESTION, "stream": True}
    for options in (7, {"include_usage": "yes"}):
        error = refused(actor, "/chat/completions", {**body, "stream_options": options})
        assert error.param.startswith("stream_options")
    error = refused(actor, "/completions", {"model": "hello", "prompt": "x",
                                            "stream_options": {"include_usage": True}})
    assert error.param == "stream_options"


@pytest.mark.parametrize("path, body", [
    ("/chat/completions", {"messages": QUESTION}),
    ("/completions", {"prompt": "x"}),
    ("/embeddings", {"input": "x"}),
    ("/responses", {"input": "x"}),
    ("/rerank", {"query": "x", "documents": ["y"]}),
    ("/tokenize", {"prompt": "x"}),
    ("/detokenize", {"tokens": [1]}),
])
def test_a_model_that_is_not_there_is_not_found(actor, path, body):
    error = refused(actor, path, {**body, "model": "absent/model"}, openai.NotFoundError)
    assert error.code == "model_not_found" and error.param == "model"
    assert "absent/model" in error.message and error.type == "invalid_request_error"
    assert refused(actor, path, body).param == "model"
    assert refused(actor, path, {**body, "model": 7}).param == "model"


def test_an_error_before_a_stream_has_a_status(actor):
    with pytest.raises(openai.NotFoundError):
        actor.chat.completions.create(model="absent", messages=QUESTION, stream=True)
    with pytest.raises(openai.BadRequestError):
        actor.chat.completions.create(model="hello", messages=QUESTION, stream=True, temperature=9)


def test_the_async_client_raises_the_same(scripted):
    async def run():
        options = {"base_url": f"http://{scripted.http}/v1", "api_key": "none", "max_retries": 0}
        async with openai.AsyncOpenAI(**options) as client:
            with pytest.raises(openai.NotFoundError) as caught:
                await client.chat.completions.create(model="absent", messages=QUESTION)
            return caught.value.code

    assert asyncio.run(run()) == "model_not_found"


def test_a_model_of_tensors_takes_no_chat(sdk):
    error = refused(sdk, "/chat/completions", {"model": "identity", "messages": QUESTION})
    assert error.param == "model" and "identity" in error.message


@pytest.mark.parametrize("length", [80, 5000])
def test_a_prompt_over_the_context_tells_both_numbers(actor, length):
    messages = [{"role": "user", "content": "x" * length}]
    calls = [lambda: actor.chat.completions.create(model="short", messages=messages),
             lambda: actor.chat.completions.create(model="short", messages=messages, stream=True),
             lambda: actor.completions.create(model="short", prompt="x" * length),
             lambda: actor.completions.create(model="short", prompt=list(b"x" * length)),
             lambda: actor.embeddings.create(model="short", input="x" * length)]
    for number, call in enumerate(calls):
        with pytest.raises(openai.BadRequestError) as caught:
            call()
        error = caught.value
        assert error.code == "context_length_exceeded", (number, error)
        assert error.type == "invalid_request_error" and "64" in error.message
        told = [int(word) for word in error.message.replace(",", " ").split() if word.isdigit()]
        assert any(told_one >= length / 6 and told_one != 64 for told_one in told), error


def test_a_prompt_over_the_context_names_its_field(actor):
    messages = [{"role": "user", "content": "x" * 80}]
    with pytest.raises(openai.BadRequestError) as caught:
        actor.chat.completions.create(model="short", messages=messages)
    assert caught.value.param == "messages"


def test_a_context_with_no_room_for_the_answer_is_refused_or_cut(actor):
    """The prompt fits, prompt and `max_tokens` do not."""
    try:
        answer = actor.completions.create(model="short", prompt="x" * 40, max_tokens=1000)
    except openai.BadRequestError as error:
        assert error.code == "context_length_exceeded"
    else:
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage.total_tokens <= 65


@pytest.mark.parametrize("content, fragment", [
    (b"", "JSON"),
    (b"{", "JSON"),
    (b"nonsense", "JSON"),
    (b"[]", "object"),
    (b'"text"', "object"),
    (b"null", "object"),
    (b'{"model": "hello", "messages": [{"role": "user", "content": "\xff\xfe"}]}', "UTF-8"),
    (b'{"model": "hello", "messages": [], "messages": 7}', "messages"),
    (b'{"model": "hello", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "depth"),
    (b'{"model": "hello", "x": ' + b"[" * 100 + b"]" * 100 + b"}", "limit (100)"),
])
def test_what_is_no_body_is_refused(scripted, content, fragment):
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/tokenize"):
        if fragment == "messages" and path != "/v1/chat/completions":
            continue
        answer = raw(scripted, content, path)
        assert answer.status_code == 400, answer.text
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["type"] == "invalid_request_error" and fragment in error["message"], error
        assert answer.headers["content-type"].startswith("application/json")
        assert answer.headers["x-request-id"]


def test_a_text_may_hold_any_character(actor):
    strange = "\0\t\x7f\u2028 \U0001F600 <|im_end|> \\ \" '"
    answer = actor.chat.completions.create(model="hello", temperature=0,
                                           messages=[{"role": "user", "content": strange}])
    assert answer.choices[0].message.content == "Hello, world."


def test_half_of_a_surrogate_is_refused(scripted):
    body = b'{"model": "hello", "messages": [{"role": "user", "content": "\\ud83d"}]}'
    assert raw(scripted, body).status_code == 400


def test_a_large_body_is_too_large():
    with running("--no-default-model", "--builtin", "mock", "--http-max-input-bytes", "2000") as server:
        with sdk_of(server) as client:
            messages = [{"role": "user", "content": "x" * 4000}]
            with pytest.raises(openai.APIStatusError) as caught:
                client.chat.completions.create(model="mock", messages=messages)
            assert caught.value.status_code == 413 and "2000" in caught.value.message
            with pytest.raises(openai.APIStatusError) as caught:
                client.embeddings.create(model="mock", input="x" * 4000)
            assert caught.value.status_code == 413
            client.chat.completions.create(model="mock", messages=QUESTION, max_tokens=1)


def test_a_path_or_a_method_that_is_not_there(scripted):
    base = f"http://{scripted.http}"
    assert httpx.get(f"{base}/v1/nothing").status_code == 404
    assert httpx.get(f"{base}/v1/chat/completions").status_code == 405
    assert httpx.post(f"{base}/v1/models", json={}).status_code == 405
    with sdk_of(scripted) as client:
        with pytest.raises(openai.NotFoundError):
            client.moderations.create(input="x", model="hello")
        with pytest.raises(openai.NotFoundError):
            client.files.list()


def test_a_content_type_is_not_needed(scripted):
    body = b'{"model": "hello", "messages": [{"role": "user", "content": "x"}], "temperature": 0}'
    answer = httpx.post(f"http://{scripted.http}/v1/chat/completions", content=body)
    assert answer.status_code == 200, answer.text


def test_a_full_queue_is_told_so_that_clients_come_back():
    with running("--no-default-model", "--builtin", "slow=mock,pace_ms=20",
                 "--max-running-sequences", "1", "--max-waiting-requests", "1") as server:
        errors, ask = [], {"model": "slow", "prompt": "x", "max_tokens": 5000}
        with contextlib.ExitStack() as stack, sdk_of(server) as client:
            # One is computed and one waits.
            for gauge in ("stator_running_sequences", "stator_queue_depth_requests"):
                connection = stack.enter_context(
                    contextlib.closing(http.client.HTTPConnection(server.http)))
                connection.request("POST", "/v1/completions", json.dumps(ask))
                eventually(gauge, lambda: scrape(server, f'{gauge}{{model="slow"}}') == 1)
            for _ in range(4):
                with pytest.raises(openai.InternalServerError) as refused:
                    client.completions.create(**ask)
                errors.append(refused.value)
        for error in errors:
            assert error.status_code == 503
            assert error.type == "service_unavailable"
            assert error.response.headers["retry-after"] == "1"
            assert int(error.response.headers["retry-after-ms"]) <= 1000
        with sdk_of(server, max_retries=8) as client:
            assert client.completions.create(model="slow", prompt="x", max_tokens=1).choices
