"""Embeddings, models and the rest beside chats, by OpenAI's own client and plain HTTP."""

import asyncio
import base64
import math
import struct

import httpx
import openai
import pytest

from conftest import running, sdk_of
from patience import PATIENCE_SECONDS

TEXT = "The sea is deep."


def vectors(answer):
    return [item.embedding for item in answer.data]


def tokens_of(client, model, **body):
    return client.post("/tokenize", body={"model": model, **body}, cast_to=object)


def test_an_embedding_comes_by_the_clients_own_default(sdk):
    """The client asks for base64 and decodes it, so it has to equal the numbers."""
    default = sdk.embeddings.create(model="smollm", input=TEXT)
    assert default.object == "list" and default.model == "smollm"
    [item] = default.data
    assert item.object == "embedding" and item.index == 0 and len(item.embedding) == 576
    assert math.hypot(*item.embedding) == pytest.approx(1, abs=1e-4)
    assert default.usage.prompt_tokens == default.usage.total_tokens > 0
    numbers = sdk.embeddings.create(model="smollm", input=TEXT, encoding_format="float")
    assert vectors(numbers)[0] == pytest.approx(item.embedding, abs=1e-6)
    coded = sdk.post("/embeddings", cast_to=object,
                     body={"model": "smollm", "input": TEXT, "encoding_format": "base64"})
    raw = base64.b64decode(coded["data"][0]["embedding"], validate=True)
    assert list(struct.unpack("<576f", raw)) == pytest.approx(item.embedding, abs=1e-6)
    bare = sdk.post("/embeddings", cast_to=object, body={"model": "smollm", "input": TEXT})
    assert isinstance(bare["data"][0]["embedding"], list), "numbers where nothing is said"


def test_every_form_of_an_input_gives_the_same_vector(sdk):
    tokens = tokens_of(sdk, "smollm", prompt=TEXT)["tokens"]
    one = vectors(sdk.embeddings.create(model="smollm", input=TEXT))[0]
    for given in ([TEXT], tokens, [tokens], [TEXT, "else"], [tokens, [1, 2]]):
        told = sdk.embeddings.create(model="smollm", input=given)
        assert vectors(told)[0] == pytest.approx(one, abs=1e-4)
        assert [item.index for item in told.data] == list(range(len(told.data)))
    two = sdk.embeddings.create(model="smollm", input=[TEXT, TEXT])
    assert two.usage.prompt_tokens == 2 * len(tokens)


def test_dimensions_cut_a_vector_and_keep_its_length(sdk):
    whole = vectors(sdk.embeddings.create(model="smollm", input=TEXT))[0]
    cut = vectors(sdk.embeddings.create(model="smollm", input=TEXT, dimensions=8, user="me"))[0]
    assert len(cut) == 8 and math.hypot(*cut) == pytest.approx(1, abs=1e-4)
    length = math.hypot(*whole[:8])
    assert cut == pytest.approx([value / length for value in whole[:8]], abs=1e-4)
    for dimensions in (577, 0, -1):
        with pytest.raises(openai.BadRequestError) as caught:
            sdk.embeddings.create(model="smollm", input=TEXT, dimensions=dimensions)
        assert caught.value.param == "dimensions"


@pytest.mark.parametrize("field, value", [
    ("input", None), ("input", 7), ("input", []), ("input", [[]]), ("input", [None]),
    ("input", {}), ("input", [1.5]), ("input", [-1]), ("input", ["x"] * 2049), ("input", ""),
    ("encoding_format", "hex"), ("encoding_format", 7), ("dimensions", "8"),
])
def test_what_cannot_be_embedded_is_refused(actor, field, value):
    body = {"model": "hello", "input": TEXT, field: value}
    with pytest.raises(openai.BadRequestError) as caught:
        actor.post("/embeddings", body=body, cast_to=object)
    assert caught.value.param.startswith(field), caught.value
    assert caught.value.type == "invalid_request_error"


def test_the_async_client_embeds(scripted):
    async def run():
        options = {"base_url": f"http://{scripted.http}/v1", "api_key": "none", "max_retries": 0}
        async with openai.AsyncOpenAI(**options) as client:
            calls = [client.embeddings.create(model="hello", input=[str(number)] * 3)
                     for number in range(8)]
            return await asyncio.gather(*calls)

    for answer in asyncio.run(run()):
        assert len(answer.data) == 3 and answer.data[0].embedding == answer.data[2].embedding


def test_models_are_listed_and_found(actor, sdk):
    listed = {model.id: model for model in actor.models.list()}
    assert {"hello", "org/name", "slow"} <= set(listed)
    for model in listed.values():
        assert model.object == "model" and model.created > 1_700_000_000 and model.owned_by
    assert listed["short"].model_extra["max_model_len"] == 64
    assert actor.models.retrieve("hello").id == "hello"
    assert "smollm" in [model.id for model in sdk.models.list()]
    assert "identity" not in [model.id for model in sdk.models.list()], "it takes no texts"


def test_a_models_name_may_have_a_slash(actor, scripted):
    assert actor.models.retrieve("org/name").id == "org/name"
    plain = httpx.get(f"http://{scripted.http}/v1/models/org/name")
    assert plain.status_code == 200 and plain.json()["id"] == "org/name"
    answer = actor.chat.completions.create(model="org/name", temperature=0,
                                           messages=[{"role": "user", "content": "x"}])
    assert answer.choices[0].message.content == "Hi." and answer.model == "org/name"


@pytest.mark.parametrize("name", ["absent", "org/absent", "org", "%00", "a" * 300])
def test_a_model_that_is_not_there(actor, name):
    with pytest.raises(openai.NotFoundError) as caught:
        actor.models.retrieve(name)
    assert caught.value.code == "model_not_found" and caught.value.param == "model"


def test_rerank_puts_the_nearest_first(sdk):
    documents = ["Bread is baked in an oven.", "The sea is very deep.", {"text": "Ships sail."}]
    body = {"model": "smollm", "query": "The sea is deep.", "documents": documents}
    answer = sdk.post("/rerank", body=body, cast_to=object)
    results = answer["results"]
    assert [one["index"] for one in results][0] == 1 and len(results) == 3
    scores = [one["relevance_score"] for one in results]
    assert scores == sorted(scores, reverse=True) and all(0 <= score <= 1 for score in scores)
    assert results[0]["document"] == {"text": "The sea is very deep."}
    assert answer["model"] == "smollm" and answer["usage"]["total_tokens"] > 0
    short = sdk.post("/rerank", body={**body, "top_n": 1, "return_documents": False}, cast_to=object)
    assert len(short["results"]) == 1 and "document" not in short["results"][0]


@pytest.mark.parametrize("field, value", [
    ("query", None), ("query", 7), ("documents", None), ("documents", []), ("documents", "x"),
    ("documents", [7]), ("documents", ["x"] * 1001), ("top_n", 0), ("top_n", "1"),
    ("return_documents", "no"),
])
def test_what_cannot_be_ranked_is_refused(actor, field, value):
    body = {"model": "hello", "query": "x", "documents": ["y"], field: value}
    with pytest.raises(openai.BadRequestError) as caught:
        actor.post("/rerank", body=body, cast_to=object)
    assert caught.value.param.startswith(field)


def test_tokens_there_and_back(sdk):
    told = tokens_of(sdk, "smollm", prompt="Grüße 🎉 from the sea", return_token_strs=True)
    assert told["count"] == len(told["tokens"]) == len(told["token_strs"])
    assert told["max_model_len"] > told["count"]
    back = sdk.post("/detokenize", body={"model": "smollm", "tokens": told["tokens"]}, cast_to=object)
    assert back["prompt"] == "Grüße 🎉 from the sea"
    messages = [{"role": "user", "content": "Hello"}]
    chat = tokens_of(sdk, "smollm", messages=messages)
    answer = sdk.chat.completions.create(model="smollm", messages=messages, max_tokens=1)
    assert chat["count"] == answer.usage.prompt_tokens
    rendered = sdk.post("/detokenize", body={"model": "smollm", "tokens": chat["tokens"]}, cast_to=object)
    assert "<|im_start|>user\nHello<|im_end|>" in rendered["prompt"]
    bare = tokens_of(sdk, "smollm", messages=messages, add_generation_prompt=False)
    assert bare["count"] < chat["count"]


def test_a_remote_tokenizer_finds_what_it_needs(server, actor):
    """As lm-eval's, which knows only the paths without /v1 and names no model."""
    base = f"http://{server.http}"
    info = httpx.get(f"{base}/tokenizer_info", params={"model": "smollm"}, timeout=PATIENCE_SECONDS).json()
    assert info["eos_token"] == "<|im_end|>" and "<|im_start|>" in info["chat_template"]
    asked = {"model": "smollm", "prompt": info["eos_token"], "add_special_tokens": False}
    told = httpx.post(f"{base}/tokenize", json=asked, timeout=PATIENCE_SECONDS).json()
    assert told["tokens"] == [info["eos_token_id"]]
    with pytest.raises(openai.BadRequestError) as caught:
        actor.get("/tokenizer_info", cast_to=object)
    assert caught.value.param == "model"


@pytest.mark.parametrize("path, body, field", [
    ("/tokenize", {}, "prompt"),
    ("/tokenize", {"prompt": 7}, "prompt"),
    ("/tokenize", {"prompt": "x", "messages": []}, "prompt"),
    ("/tokenize", {"messages": "x"}, "messages"),
    ("/tokenize", {"messages": []}, "messages"),
    ("/tokenize", {"prompt": "x", "add_special_tokens": "no"}, "add_special_tokens"),
    ("/detokenize", {}, "tokens"),
    ("/detokenize", {"tokens": "x"}, "tokens"),
    ("/detokenize", {"tokens": [-1]}, "tokens"),
    ("/detokenize", {"tokens": ["x"]}, "tokens"),
])
def test_what_has_no_tokens_is_refused(actor, path, body, field):
    with pytest.raises(openai.BadRequestError) as caught:
        actor.post(path, body={"model": "hello", **body}, cast_to=object)
    assert caught.value.param.startswith(field)


def test_health_and_life(scripted):
    health = httpx.get(f"http://{scripted.http}/health")
    assert health.status_code == 200 and health.json()["status"] == "healthy"
    assert "hello" in health.json()["models"]
    live = httpx.get(f"http://{scripted.http}/live")
    assert live.status_code == 200 and live.json() == {"status": "live"}


def test_a_server_without_models_lives_and_is_not_healthy():
    with running("--no-default-model") as server:
        assert httpx.get(f"http://{server.http}/live").status_code == 200
        health = httpx.get(f"http://{server.http}/health")
        assert health.status_code == 503 and health.json()["models"] == []
        with sdk_of(server) as client:
            assert list(client.models.list()) == []


def test_routes_can_be_moved():
    moves = ["chat=/x", "models=/v9/models", "health=/healthz", "completions=/v1/chat/completions"]
    arguments = [word for move in moves for word in ("--openai-path", move)]
    body = {"model": "mock", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
    with running("--no-default-model", "--builtin", "mock", *arguments) as server:
        base = f"http://{server.http}"
        moved = httpx.post(f"{base}/x", json=body)
        assert moved.status_code == 200 and moved.json()["object"] == "chat.completion"
        other = httpx.post(f"{base}/v1/chat/completions", json={"model": "mock", "prompt": "x"})
        assert other.status_code == 200 and other.json()["object"] == "text_completion"
        assert httpx.get(f"{base}/v9/models/mock").json()["id"] == "mock"
        assert httpx.get(f"{base}/healthz").status_code == 200
        for gone in ("/v1/models", "/v1/models/mock", "/health"):
            assert httpx.get(base + gone).status_code == 404, gone
        assert httpx.get(f"{base}/v2/health/ready").status_code == 200
        with openai.OpenAI(base_url=f"{base}/v9", api_key="none", max_retries=0) as client:
            assert [model.id for model in client.models.list()] == ["mock"]
