"""Heads of requests and what comes behind them have bounds, over each version of HTTP."""

import contextlib
import http.client
import json
import socket
import time

import h2.config
import h2.connection
import h2.events
import pytest

from conftest import running
from patience import PATIENCE_SECONDS, eventually
from test_hostile import rss_mib
from test_hostile_memory import SERVICE, prefix
from wire import scrape

KIB = 1 << 10


@pytest.fixture(scope="module")
def server():
    with running("--builtin", "slow=identity,datatype=UINT8,delay_ms=3000") as server:
        yield server


def connected(address):
    host, port = address.rsplit(":", 1)
    return socket.create_connection((host, int(port)), timeout=PATIENCE_SECONDS)


def over_http1(address, size):
    """Returns the status of a request with so many bytes of headers."""
    with contextlib.closing(http.client.HTTPConnection(address, timeout=PATIENCE_SECONDS)) as client:
        client.putrequest("GET", "/v2/health/live")
        for index in range(16):
            client.putheader(f"x-{index}", "a" * (size // 16))
        with contextlib.suppress(ConnectionError):
            client.endheaders()
        return client.getresponse().status


def over_http2(address, size, path, method, body=b""):
    """Returns the status of a request with so many bytes of headers, or that its stream was reset."""
    config = h2.config.H2Configuration(header_encoding="utf-8")
    client = h2.connection.H2Connection(config)
    with connected(address) as connection:
        client.initiate_connection()
        fields = [(":method", method), (":scheme", "http"), (":path", path), (":authority", address)]
        fields += [("content-type", "application/grpc"), ("te", "trailers")] if body else []
        fields += [(f"x-{index}", chr(ord("a") + index) * (size // 16)) for index in range(16)]
        client.send_headers(1, fields, end_stream=not body)
        if body:
            client.send_data(1, body, end_stream=True)
        connection.sendall(client.data_to_send())
        while data := connection.recv(1 << 16):
            for event in client.receive_data(data):
                if isinstance(event, h2.events.ResponseReceived):
                    return dict(event.headers)[":status"]
                if isinstance(event, h2.events.StreamReset):
                    return "reset"
        return "closed"


def test_a_long_head_over_http1_is_refused(server):
    assert over_http1(server.http, 56 * KIB) == 200
    assert over_http1(server.http, 80 * KIB) == 431
    assert over_http1(server.http, 1024 * KIB) == 431


def test_a_long_head_over_http2_is_refused(server):
    assert over_http2(server.http, 56 * KIB, "/v2/health/live", "GET") == "200"
    assert over_http2(server.http, 80 * KIB, "/v2/health/live", "GET") == "431"
    live = SERVICE + "ServerLive"
    assert over_http2(server.address, 12 * KIB, live, "POST", prefix(0)) == "200"
    assert over_http2(server.address, 20 * KIB, live, "POST", prefix(0)) == "431"


def test_what_is_sent_behind_a_request_waits(server):
    body = json.dumps({"inputs": [{"name": "INPUT0", "datatype": "UINT8", "shape": [1], "data": [1]}]})
    asked = f"POST /v2/models/slow/infer HTTP/1.1\r\nhost: a\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode()
    with contextlib.ExitStack() as stack:
        before = rss_mib(server.pid)
        connections = [stack.enter_context(connected(server.http)) for _ in range(20)]
        for connection in connections:
            connection.sendall(asked)
            connection.setblocking(False)
        sent, end = 0, time.monotonic() + 1
        while time.monotonic() < end:
            for connection in connections:
                with contextlib.suppress(BlockingIOError):
                    sent += connection.send(bytes(1 << 20))
        # The system took it, and the server no more of it than its buffers hold.
        assert sent > 4 << 20
        assert rss_mib(server.pid) < before + 16
        for connection in connections:
            connection.settimeout(PATIENCE_SECONDS)
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
    eventually("all is given back", lambda: scrape(server, "stator_buffered_bytes") == 0)
