"""Large bodies and hard grammars are prepared beside other requests, a few at once, and not for clients that left."""

import concurrent.futures
import contextlib
import gzip
import json
import os
import socket
import string
import time

import httpx
import pytest

from conftest import running
from late_wakeups import late_wakeups
from paced import longest_stall, paced
from patience import PATIENCE_SECONDS, eventually
from test_hostile_all import post
from wire import scrape

# What a client beside them may wait for the server.
STALL_SECONDS = 0.5
MANY = [{"role": "user", "content": "hi"}] * 200_000
# The statuses are those of a single request: prompts are too long for the model's context, and nobody makes images.
BODIES = {
    "/v1/chat/completions": (400, {"messages": MANY[:20_000], "max_tokens": 1}),
    "/v1/messages": (400, {"messages": MANY, "max_tokens": 1}),
    "/v1/messages/count_tokens": (400, {"messages": MANY}),
    "/v1/tokenize": (400, {"messages": MANY}),
    "/v1/detokenize": (200, {"tokens": [1] * 1_000_000}),
    "/v1/embeddings": (400, {"input": ["hi"] * 500_000}),
    "/v1/images/generations": (400, {"messages": MANY}),
    "/v2/models/mock/generate": (400, {"text_input": "x", "messages": MANY}),
    "/v2/trace/setting": (400, {"x": MANY}),
}


@pytest.fixture(scope="module")
def server():
    with running("--builtin", "mock=mock", "--builtin", "identity,datatype=UINT8", "--max-preparing-requests", "2",
                 "--max-buffered-mib", "4096") as server:
        yield server


@pytest.mark.parametrize("path", BODIES)
def test_large_bodies_stall_nobody(server, path):
    expected, body = BODIES[path]
    packed = gzip.compress(json.dumps({"model": "mock"} | body).encode(), 1)
    with late_wakeups() as late, paced(server) as waits, concurrent.futures.ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(post, server, path, packed, content_encoding="gzip") for _ in range(6)]
        for answer in asked:
            status, text = answer.result()
            assert status == expected, text
    stall = longest_stall(waits, late)
    print(path, f"longest stall {stall:.3f} s")
    assert stall < STALL_SECONDS


def processor_seconds(pid):
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_what_a_client_that_left_asked_for_is_given_up(server):
    body = json.dumps({"model": "mock", "messages": MANY, "max_tokens": 1}).encode()
    begun = processor_seconds(server.pid)
    status, text = post(server, "/v1/chat/completions", body)
    assert status == 400, text
    whole = processor_seconds(server.pid) - begun
    host, port = server.http.rsplit(":", 1)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    begun = processor_seconds(server.pid)
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            connection = stack.enter_context(socket.create_connection((host, int(port)), timeout=PATIENCE_SECONDS))
            connection.sendall(head + body)
        # Each has a place, and memory for its values: some 960 bytes for a message.
        eventually("both are begun", lambda: scrape(server, "stator_buffered_bytes") > 1500 * len(MANY))
    eventually("all is given up", lambda: scrape(server, "stator_buffered_bytes") == 0)
    # Their JSON is read to its end, which is an eighth of the work.
    assert processor_seconds(server.pid) - begun < whole


def test_binary_tensors_wait_for_no_large_bodies(server):
    size = 1 << 20
    data = {"name": "INPUT0", "datatype": "UINT8", "shape": [size], "parameters": {"binary_data_size": size}}
    head = json.dumps({"inputs": [data], "outputs": [{"name": "OUTPUT0", "parameters": {"binary_data": True}}]}).encode()
    large = json.dumps({"model": "mock", "messages": MANY}).encode()
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        held = lambda: scrape(server, "stator_buffered_bytes")
        asked = [pool.submit(post, server, "/v1/messages/count_tokens", large) for _ in range(2)]
        eventually("they have both places", lambda: held() > 1500 * len(MANY))
        begun = held()
        asked += [pool.submit(post, server, "/v1/messages/count_tokens", large) for _ in range(4)]
        # A body that came in pieces counts twice.
        eventually("the others wait in line", lambda: held() > begun + 7 * len(large))
        answer = httpx.post(f"http://{server.http}/v2/models/identity/infer", content=head + bytes(size), timeout=PATIENCE_SECONDS,
                            headers={"inference-header-content-length": str(len(head))})
        assert answer.status_code == 200 and answer.content.endswith(bytes(size)), answer.text[:1000]
        # In line it would have waited for four of them at least.
        assert sum(one.done() for one in asked) < 3
        assert {one.result()[0] for one in asked} == {400}


# So ambiguous that its first step takes half a minute.
WIDE = "start: s\ns: " + " | ".join(f's s "{letter}"' for letter in string.ascii_lowercase * 60) + " | /./\n"


def grammar(server, text, **options):
    body = {"model": "mock", "prompt": "x", "max_tokens": 2, "guided_grammar": text}
    return httpx.post(f"http://{server.http}/v1/completions", json=body, **options)


def assert_is_idle(server):
    before = processor_seconds(server.pid)
    time.sleep(2)
    assert processor_seconds(server.pid) - before < 1


def test_a_grammar_that_takes_long_is_refused_and_given_up(server):
    with late_wakeups() as late, paced(server) as waits, concurrent.futures.ThreadPoolExecutor(2) as pool:
        for answer in [pool.submit(grammar, server, WIDE) for _ in range(2)]:
            refused = answer.result()
            assert refused.status_code == 400 and refused.json()["error"]["code"] == "invalid_constraint"
            assert "longer than 3 seconds" in refused.json()["error"]["message"]
    assert longest_stall(waits, late) < STALL_SECONDS
    assert_is_idle(server)
    assert grammar(server, 'start: "a"\n').status_code == 200


def test_a_grammar_is_given_up_when_its_client_leaves(server):
    with pytest.raises(httpx.ReadTimeout):
        grammar(server, WIDE, timeout=0.5)
    assert_is_idle(server)
