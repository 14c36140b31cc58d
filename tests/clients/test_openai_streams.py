"""Streams of events down to their bytes, and what happens when one ends early."""

import asyncio
import contextlib
import json
import signal
import time

import httpx
import openai
import pytest

from conftest import running, sdk_of
from patience import eventually
from wire import scrape

QUESTION = [{"role": "user", "content": "Hello"}]


def lines_of(server, path, **body):
    """Returns the head of a streamed answer and its whole text."""
    body = {"stream": True, "temperature": 0, **body}
    with httpx.stream("POST", f"http://{server.http}{path}", json=body) as answer:
        return answer, answer.read().decode()


def chunks_of(text):
    """Splits a stream into its frames, each of which is one JSON value on one line."""
    assert text.endswith("\n\n")
    frames = text[:-2].split("\n\n")
    assert frames.pop() == "data: [DONE]"
    assert all(frame.startswith("data: ") and "\n" not in frame for frame in frames), frames
    return [json.loads(frame.removeprefix("data: ")) for frame in frames]


def running_sequences(server, model="slow"):
    return scrape(server, f'stator_running_sequences{{model="{model}"}}')


def await_rest(server, model="slow"):
    eventually("nothing runs", lambda: running_sequences(server, model) == 0)


def test_the_head_of_a_stream(scripted):
    answer, _ = lines_of(scripted, "/v1/chat/completions", model="hello", messages=QUESTION)
    assert answer.status_code == 200
    assert answer.headers["content-type"].split(";")[0] == "text/event-stream"
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-accel-buffering"] == "no"
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize("usage", [False, True])
def test_the_frames_of_a_chat(scripted, usage):
    options = {"stream_options": {"include_usage": True}} if usage else {}
    _, text = lines_of(scripted, "/v1/chat/completions", model="hello", messages=QUESTION, **options)
    chunks = chunks_of(text)
    for key in ("id", "created", "model", "system_fingerprint", "object"):
        assert len({chunk[key] for chunk in chunks}) == 1, key
    assert chunks[0]["object"] == "chat.completion.chunk" and chunks[0]["model"] == "hello"
    if usage:
        last = chunks.pop()
        assert last["choices"] == [] and last["usage"]["completion_tokens"] > 0
        assert all("usage" in chunk and chunk["usage"] is None for chunk in chunks)
    else:
        assert all("usage" not in chunk for chunk in chunks)
    choices = [chunk["choices"] for chunk in chunks]
    assert all(len(all_of_it) == 1 and all_of_it[0]["index"] == 0 for all_of_it in choices)
    deltas = [one["delta"] for [one] in choices]
    assert deltas[0]["role"] == "assistant" and deltas[0]["content"] == ""
    assert all("role" not in delta for delta in deltas[1:])
    assert deltas[-1] == {}, "the chunk that finishes has no content"
    assert [one["finish_reason"] for [one] in choices] == [None] * (len(choices) - 1) + ["stop"]
    assert "".join(delta.get("content", "") for delta in deltas) == "Hello, world."


def test_the_frames_of_a_completion(scripted):
    _, text = lines_of(scripted, "/v1/completions", model="hello", prompt="x",
                       stream_options={"include_usage": True})
    *chunks, last = chunks_of(text)
    assert last["choices"] == [] and last["usage"]["prompt_tokens"] == 1
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    assert len({(chunk["id"], chunk["created"]) for chunk in chunks}) == 1
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "Hello, world."


def test_every_choice_of_a_stream_begins_and_ends(scripted):
    _, text = lines_of(scripted, "/v1/chat/completions", model="hello", messages=QUESTION, n=3)
    seen = {0: [], 1: [], 2: []}
    for chunk in chunks_of(text):
        for choice in chunk["choices"]:
            seen[choice["index"]].append(choice)
    for choices in seen.values():
        assert choices[0]["delta"]["role"] == "assistant"
        assert choices[-1]["delta"] == {} and choices[-1]["finish_reason"] == "stop"
        assert "".join(one["delta"].get("content", "") for one in choices) == "Hello, world."


def test_usage_can_come_with_every_chunk(scripted):
    options = {"include_usage": True, "continuous_usage_stats": True}
    _, text = lines_of(scripted, "/v1/chat/completions", model="hello", messages=QUESTION,
                       stream_options=options)
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks_of(text)]
    assert counts == sorted(counts) and counts[-1] > counts[0]


def test_a_character_is_never_cut(scripted):
    _, text = lines_of(scripted, "/v1/chat/completions", model="party", messages=QUESTION)
    assert "\ufffd" not in text
    deltas = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks_of(text)]
    assert "".join(deltas) == "Grüße 🎉!" and "🎉" in deltas


def test_a_stream_comes_token_by_token(scripted):
    """The first token is read long before the last one is made."""
    with sdk_of(scripted) as client:
        began, times = time.monotonic(), []
        for _ in client.chat.completions.create(model="slow", messages=QUESTION, stream=True,
                                                max_tokens=250):
            times.append(time.monotonic() - began)
    # Other work on the machine makes this time longer, not shorter.
    assert len(times) > 40 and times[-1] - times[1] > 0.9


def test_a_client_that_leaves_a_stream_stops_the_work(scripted):
    with sdk_of(scripted) as client:
        for path in ("chat", "completion"):
            create = client.chat.completions.create if path == "chat" else client.completions.create
            asked = {"messages": QUESTION} if path == "chat" else {"prompt": "x"}
            stream = create(model="slow", stream=True, max_tokens=5000, **asked)
            next(iter(stream))
            eventually("it runs", lambda: running_sequences(scripted) >= 1)
            stream.close()
            await_rest(scripted)


def test_a_client_that_stops_waiting_stops_the_work(scripted):
    """The same for an answer that comes whole, of which nothing has been sent yet."""
    with sdk_of(scripted, timeout=0.5) as client, pytest.raises(openai.APITimeoutError):
        client.chat.completions.create(model="slow", messages=QUESTION, max_tokens=5000)
    await_rest(scripted)

    async def cancel():
        options = {"base_url": f"http://{scripted.http}/v1", "api_key": "none", "max_retries": 0}
        async with openai.AsyncOpenAI(**options) as client:
            call = asyncio.create_task(client.completions.create(
                model="slow", prompt="x", max_tokens=5000, n=4))
            await asyncio.to_thread(
                eventually, "all run", lambda: running_sequences(scripted) == 4)
            call.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await call

    asyncio.run(cancel())
    await_rest(scripted)


def test_a_stop_ends_the_work_too(scripted):
    with sdk_of(scripted) as client:
        client.completions.create(model="slow", prompt="x", max_tokens=5000, stop=["the", "of", "and"])
    await_rest(scripted)


def test_comments_keep_a_slow_stream_alive():
    with running("--no-default-model", "--builtin", "crawl=mock,pace_ms=400",
                 "--openai-keep-alive-ms", "50") as server:
        for path, asked in (("/v1/chat/completions", {"messages": QUESTION}),
                            ("/v1/completions", {"prompt": "x"})):
            answer, text = lines_of(server, path, model="crawl", max_tokens=3, **asked)
            frames = text[:-2].split("\n\n")
            comments = [frame for frame in frames if frame.startswith(":")]
            assert len(comments) >= 4, text
            rest = "".join(frame + "\n\n" for frame in frames if not frame.startswith(":"))
            assert chunks_of(rest)
            assert answer.status_code == 200
        with sdk_of(server) as client:
            chunks = list(client.chat.completions.create(model="crawl", messages=QUESTION,
                                                         stream=True, max_tokens=3))
        assert chunks[-1].choices[0].finish_reason == "length", "clients do not see the comments"


def test_a_stream_that_is_cut_off_by_the_servers_end_says_so():
    """Either a frame with an error or a broken connection: never a text that looks whole."""
    with running("--no-default-model", "--builtin", "slow=mock,pace_ms=20",
                 "--shutdown-grace-ms", "0") as server:
        with sdk_of(server) as client:
            stream = client.chat.completions.create(model="slow", messages=QUESTION, stream=True,
                                                    max_tokens=4000)
            iterator = iter(stream)
            next(iterator)
            server.terminate()
            with pytest.raises((openai.APIError, httpx.TransportError)) as caught:
                for _ in iterator:
                    pass
        assert not isinstance(caught.value, httpx.TimeoutException)
        assert server.wait() == 0


def test_a_stream_finishes_while_the_server_drains():
    with running("--no-default-model", "--builtin", "slow=mock,pace_ms=20") as server:
        with sdk_of(server) as client:
            stream = client.chat.completions.create(model="slow", messages=QUESTION, stream=True,
                                                    max_tokens=50)
            iterator = iter(stream)
            next(iterator)
            server.process.send_signal(signal.SIGTERM)
            *_, last = iterator
        assert last.choices[0].finish_reason == "length"
        assert server.wait() == 0


def test_what_was_cut_off_does_not_look_whole():
    """The same down to the bytes: no finish, and no `[DONE]` but behind an error."""
    with running("--no-default-model", "--builtin", "slow=mock,pace_ms=20",
                 "--shutdown-grace-ms", "0") as server:
        body = {"model": "slow", "messages": QUESTION, "stream": True, "max_tokens": 4000}
        text, is_broken = "", False
        try:
            with httpx.stream("POST", f"http://{server.http}/v1/chat/completions", json=body) as answer:
                for piece in answer.iter_text():
                    if not text:
                        server.terminate()
                    text += piece
        except httpx.TransportError:
            is_broken = True
    frames = [json.loads(frame[6:]) for frame in text.split("\n\n") if frame.startswith("data: {")]
    errors = [frame["error"] for frame in frames if "error" in frame]
    assert is_broken or errors
    assert errors or "[DONE]" not in text
    assert all(set(error) == {"message", "type", "param", "code"} for error in errors)
    assert all(choice["finish_reason"] is None for frame in frames
               for choice in frame.get("choices", []))


# So ambiguous that keeping it becomes too much work after some words.
AMBIGUOUS = """start: s
s: s s | "a" | "b" | " " | s "t" s | s "h" | /[a-z ]/
"""


def test_an_error_on_the_way_is_a_frame_that_clients_raise(scripted):
    body = {"model": "words", "max_tokens": 3000, "guided_grammar": AMBIGUOUS}
    for path, asked in (("/v1/chat/completions", {"messages": QUESTION}),
                        ("/v1/completions", {"prompt": "x"})):
        answer, text = lines_of(scripted, path, **body, **asked)
        assert answer.status_code == 200
        *chunks, last = chunks_of(text)
        assert len(chunks) > 2 and "error" not in chunks[-1]
        assert set(last) == {"error"}
        assert last["error"]["type"] == "invalid_request_error"
        assert last["error"]["code"] == "invalid_constraint" and last["error"]["message"]
        whole = httpx.post(f"http://{scripted.http}{path}",
                           json={**body, **asked, "temperature": 0})
        assert whole.status_code == 400 and whole.json()["error"]["code"] == "invalid_constraint"
    with sdk_of(scripted) as client:
        told = []
        with pytest.raises(openai.APIError) as caught:
            for chunk in client.chat.completions.create(
                    model="words", messages=QUESTION, stream=True, max_tokens=3000, temperature=0,
                    extra_body={"guided_grammar": AMBIGUOUS}):
                told.append(chunk)
        assert caught.value.code == "invalid_constraint" and len(told) > 2
    await_rest(scripted, "words")
