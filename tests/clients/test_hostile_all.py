"""All that clients have against the server's memory, one after the other and then at once.

`./test` does it for some seconds; with `STATOR_HOSTILE_SECONDS=120` for two minutes.
"""

import concurrent.futures
import contextlib
import functools
import gzip
import http.client
import json
import os
import re
import socket
import time

import grpc

from late_wakeups import late_wakeups
from paced import longest_stall, paced
from patience import PATIENCE_SECONDS, eventually
from test_hostile_memory import GIB, LONGEST, Connection, bomb, limited, prefix
from wire import scrape

SECONDS = float(os.environ.get("STATOR_HOSTILE_SECONDS", 1))
IS_LONG = SECONDS > 60
PEAK_MIB = 1536
# Of the server alone, on a machine of two cores on which the clients and their bombs take time as well; at full size
# nothing else may run, and beside other tests it holds on a machine ten times slower.
STALL_SECONDS = 0.25 if IS_LONG else 2.5
REFUSED = {grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]}
# Several members make a bomb of any length out of one that is packed once.
BOMB = bomb(64) * (160 if IS_LONG else 10)


def peak_mib(pid):
    with open(f"/proc/{pid}/status") as status:
        return int(re.search(r"VmHWM:\s+(\d+)", status.read())[1]) / 1024


def promises(server):
    """Declares messages of 2 GiB on many streams and sends none of them."""
    with contextlib.ExitStack() as stack:
        for _ in range(70 if IS_LONG else 8):
            connection = stack.enter_context(Connection(server.address))
            for index in range(250):
                for method in ("ServerLive", "ModelInfer", "ModelStreamInfer", "RepositoryModelLoad"):
                    connection.call(method, prefix(LONGEST))
            connection.flush()


def prefaces(server):
    """Opens connections that send one byte."""
    host, port = server.address.rsplit(":", 1)
    with contextlib.ExitStack() as stack:
        for _ in range(4096 if IS_LONG else 500):
            stack.enter_context(socket.create_connection((host, int(port)), PATIENCE_SECONDS)).sendall(b"P")


def call(server, method, message, **headers):
    with Connection(server.address) as connection:
        stream = connection.call(method, message, is_whole=True, **headers)
        connection.flush()
        return connection.status(stream)


def grpc_bombs(server):
    message = prefix(len(BOMB), flag=1) + BOMB
    for method in ("ServerLive", "ModelInfer", "ModelStreamInfer", "RepositoryModelLoad"):
        assert call(server, method, message, grpc_encoding="gzip") in REFUSED, method


def post(server, path, body, **headers):
    client = http.client.HTTPConnection(server.http, timeout=PATIENCE_SECONDS)
    with contextlib.closing(client):
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        with contextlib.suppress(ConnectionError):
            client.request("POST", path, body, headers)
        answer = client.getresponse()
        return answer.status, answer.read().decode()


DOORS = ["/v2/models/identity/infer", "/v2/models/mock/generate", "/v1/chat/completions", "/v1/messages",
         "/v1/messages/count_tokens", "/v1/responses"]


def http_bombs(server):
    for path in DOORS:
        status, text = post(server, path, BOMB, content_encoding="gzip")
        assert status in (400, 413, 503, 529), (path, status, text)


def json_trees(server):
    """Packs JSON of few compressed bytes and very many values."""
    lists = b'{"model":"mock","messages":[' + b"0," * (10 << 20) + b"0]}"
    objects = b'{"model":"mock","messages":[' + b'{"":0},' * (3 << 19) + b'{"":0}]}'
    parameters = b'{"inputs":[],"parameters":{"a":[' + b"0," * (10 << 20) + b"0]}}"
    for body in lists, objects, parameters:
        packed = gzip.compress(body, 1)
        for path in DOORS:
            status, text = post(server, path, packed, content_encoding="gzip")
            assert status in (400, 503, 529), (path, status, text)


@functools.cache
def packed_messages():
    body = {"model": "mock", "max_tokens": 1, "messages": [{"role": "user", "content": "hi"}] * 1_000_000}
    return gzip.compress(json.dumps(body).encode(), 1)


def million_messages(server):
    for path in "/v1/chat/completions", "/v1/messages/count_tokens":
        status, text = post(server, path, packed_messages(), content_encoding="gzip")
        assert status in (200, 400, 503, 529), (path, status, text)


def field(number, data):
    """Encodes a field that has a length."""
    length, varint = len(data), b""
    while length > 127:
        varint, length = varint + bytes([length & 127 | 128]), length >> 7
    return bytes([number << 3 | 2]) + varint + bytes([length]) + data


def wire_trees(server):
    """Packs messages of few compressed bytes and very many fields."""
    many = 4 << 20
    contents = {
        "bytes_contents": field(5, field(5, b"\x42\x00" * many)),
        "int64_contents": field(5, field(5, field(3, bytes(2 * many)))),
        "parameters": b"\x22\x00" * many,
        "parameters of an input": field(5, b"\x22\x00" * many),
    }
    for name, fields in contents.items():
        packed = gzip.compress(field(1, b"identity") + fields, 1)
        message = prefix(len(packed), flag=1) + packed
        for method in ("ModelInfer", "RepositoryModelLoad"):
            status = call(server, method, message, grpc_encoding="gzip")
            # An entry of a map is empty again and again, and is one entry then.
            assert status != 0, (name, method)
        assert call(server, "ModelInfer", message, grpc_encoding="gzip", grpc_accept_encoding="gzip") != 0


def chunks(server):
    """Sends a body in chunks of one byte."""
    host, port = server.http.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=PATIENCE_SECONDS) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n")
            for _ in range(30):
                connection.sendall(b"1\r\n[\r\n" * 10_000)
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert answer.status == 400 and "65536 chunks" in answer.read().decode()


ATTACKS = [promises, prefaces, grpc_bombs, http_bombs, json_trees, million_messages, wire_trees, chunks]


def repeat(attack, server, end):
    while True:
        attack(server)
        if time.monotonic() >= end:
            return


def test_no_client_takes_the_memory_or_the_time_of_others():
    arguments = ("--max-buffered-mib", "512", "--builtin", "mock=mock")
    # Nothing else runs in this process while that is made, the paced client neither.
    packed_messages()
    figures = {}
    with limited(8 * GIB, *arguments) as server, late_wakeups() as late:

        def measured(name, work):
            with paced(server) as waits:
                work()
            assert server.is_running(), name
            figures[name] = round(peak_mib(server.pid)), round(longest_stall(waits, late), 3)
            print(name, "peak MiB %d, longest stall %.3f s" % figures[name])
            assert figures[name][0] < PEAK_MIB and figures[name][1] < STALL_SECONDS, figures

        for attack in ATTACKS:
            measured(attack.__name__, lambda attack=attack: attack(server))

        def together():
            # One of them opens as many files as a process may have at all.
            attacks = ATTACKS + 4 * [attack for attack in ATTACKS if IS_LONG and attack != prefaces]
            with concurrent.futures.ThreadPoolExecutor(len(attacks)) as pool:
                end = time.monotonic() + SECONDS
                for attack in [pool.submit(repeat, attack, server, end) for attack in attacks]:
                    attack.result()

        measured("together", together)
        eventually("all is given back", lambda: scrape(server, "stator_buffered_bytes") == 0)
