"""What clients promise, compress and pile up takes no more memory than the server has for it.

The server's address space is limited, so that a reservation without memory behind it ends it as well.
"""

import concurrent.futures
import contextlib
import gzip
import http.client
import json
import socket
import struct
import time
import urllib.error
import urllib.request
import zlib

import grpc
import h2.config
import h2.connection
import h2.events
import httpx
from tritonclient.grpc import service_pb2_grpc

from conftest import running
from paced import paced
from patience import PATIENCE_SECONDS, eventually
from test_hostile import rss_mib
from wire import request, scrape, tensor

SERVICE = "/inference.GRPCInferenceService/"
GIB = 2**30
# What a message prefix declares at most.
LONGEST = 2**31 - 1


def limited(address_space, *arguments):
    """Runs a server whose address space has a limit."""
    return running(*arguments, "--builtin", "identity,datatype=UINT8", prefix=("prlimit", f"--as={address_space}"))


class Connection:
    """An HTTP/2 client that sends what it is told."""

    service = SERVICE

    def __init__(self, address):
        host, port = address.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)), timeout=PATIENCE_SECONDS)
        settings = h2.config.H2Configuration(header_encoding="utf-8")
        self.http2 = h2.connection.H2Connection(settings)
        self.http2.initiate_connection()
        self.authority = address
        self.statuses, self.ended = {}, set()

    def __enter__(self):
        self.flush()
        return self

    def __exit__(self, *_):
        self.socket.close()

    def flush(self):
        self.socket.sendall(self.http2.data_to_send())

    def call(self, method, data, is_whole=False, **headers):
        """Begins a call with the first bytes of its body; returns its stream."""
        stream = self.http2.get_next_available_stream_id()
        fields = [(":method", "POST"), (":scheme", "http"), (":path", self.service + method), (":authority", self.authority),
                  ("content-type", "application/grpc"), ("te", "trailers")]
        fields += [(name.replace("_", "-"), value) for name, value in headers.items()]
        self.http2.send_headers(stream, fields)
        # What is refused before it is whole is reset, and nobody reads the rest.
        while data and stream not in self.statuses:
            room = min(self.http2.local_flow_control_window(stream), self.http2.max_outbound_frame_size)
            if room == 0:
                self.flush()
                self.hear()
                continue
            self.http2.send_data(stream, data[:room])
            data = data[room:]
        if is_whole and stream not in self.statuses:
            self.http2.end_stream(stream)
        return stream

    def hear(self):
        """Takes in what the server sends next."""
        data = self.socket.recv(1 << 20)
        assert data, "the connection ended"
        for event in self.http2.receive_data(data):
            if isinstance(event, (h2.events.ResponseReceived, h2.events.TrailersReceived)):
                fields = dict(event.headers)
                if "grpc-status" in fields:
                    self.statuses[event.stream_id] = int(fields["grpc-status"])
        self.flush()

    def status(self, stream):
        """Waits for the gRPC status of a call."""
        while stream not in self.statuses:
            self.hear()
        return self.statuses[stream]


def prefix(length, flag=0):
    return struct.pack(">BI", flag, length)


def bomb(mib):
    """Some MiB of zeros, by gzip."""
    packer = zlib.compressobj(9, wbits=31)
    piece = bytes(1 << 20)
    return b"".join(packer.compress(piece) for _ in range(mib)) + packer.flush()


def test_promised_lengths_take_no_memory():
    with limited(8 * GIB) as server, paced(server), contextlib.ExitStack() as stack:
        before = rss_mib(server.pid)
        connections = [stack.enter_context(Connection(server.address)) for _ in range(4)]
        for connection in connections:
            for index in range(250):
                connection.call("ServerLive", prefix(LONGEST))
                connection.call("ModelInfer", prefix(LONGEST))
                connection.call("ModelStreamInfer", prefix(LONGEST, flag=1), grpc_encoding="gzip")
                connection.call("RepositoryModelLoad", prefix(LONGEST))
            connection.flush()
        # A call whose messages are small is refused at once; streams are served in order.
        last = [connection.call("ServerMetadata", prefix(LONGEST)) for connection in connections]
        for connection, stream in zip(connections, last):
            connection.flush()
            assert connection.status(stream) == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
        assert server.is_running()
        assert rss_mib(server.pid) < before + 200


def test_compressed_bombs_stop_at_the_limit_of_their_call_and_of_the_memory():
    packed = bomb(512)
    message = prefix(len(packed), flag=1) + packed
    refused = grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]

    def over_grpc(server, method):
        with Connection(server.address) as connection:
            stream = connection.call(method, message, is_whole=True, grpc_encoding="gzip")
            connection.flush()
            return connection.status(stream)

    def over_http(server):
        client = http.client.HTTPConnection(server.http, timeout=PATIENCE_SECONDS)
        client.request("POST", "/v2/models/identity/infer", packed, {"content-encoding": "gzip"})
        answer = client.getresponse()
        text = answer.read().decode()
        if answer.status == 503:
            return "--max-buffered-mib" in text and int(answer.headers["retry-after"]) > 0
        return answer.status == 400 and "--http-max-input-bytes" in text

    with limited(4 * GIB, "--max-buffered-mib", "96") as server, paced(server), \
            concurrent.futures.ThreadPoolExecutor(18) as pool:
        before = rss_mib(server.pid)
        calls = [pool.submit(over_grpc, server, method)
                 for method in ("ServerLive", "ModelInfer", "ModelStreamInfer") for _ in range(4)]
        bodies = [pool.submit(over_http, server) for _ in range(6)]
        assert {call.result() for call in calls} == {refused}
        assert all(body.result() for body in bodies)
        assert rss_mib(server.pid) < before + 96 + 200
        assert server.is_running()


def test_large_requests_at_once_are_served_or_refused():
    size = 40 << 20
    asked = request("identity", [tensor("INPUT0", "UINT8", [size])], [bytes(size)])
    with limited(2 * GIB, "--max-buffered-mib", "128") as server, \
            concurrent.futures.ThreadPoolExecutor(6) as pool:

        def ask(_):
            options = [("grpc.max_receive_message_length", -1)]
            with grpc.insecure_channel(server.address, options=options) as channel:
                stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
                try:
                    assert len(stub.ModelInfer(asked).raw_output_contents[0]) == size
                    return grpc.StatusCode.OK
                except grpc.RpcError as error:
                    assert "--max-buffered-mib" in error.details(), error
                    return error.code()

        codes = list(pool.map(ask, range(12)))
        assert set(codes) <= {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
        # One finds room once the others are gone, and nothing stays behind.
        assert ask(None) == grpc.StatusCode.OK
        refused = codes.count(grpc.StatusCode.RESOURCE_EXHAUSTED)
        assert scrape(server, "stator_buffer_refusals_total") == refused
        eventually("all is given back", lambda: scrape(server, "stator_buffered_bytes") == 0)


def test_answers_that_are_not_read_count():
    size, count = 4 << 20, 16
    header = json.dumps({"inputs": [{"name": "INPUT0", "datatype": "UINT8", "shape": [size], "parameters": {"binary_data_size": size}}]})
    # As JSON an answer is four times as long as its request.
    body = header.encode() + b"\xff" * size
    head = (f"POST /v2/models/identity/infer HTTP/1.1\r\nhost: a\r\ncontent-length: {len(body)}\r\n"
            f"inference-header-content-length: {len(header)}\r\n\r\n").encode()
    with limited(4 * GIB, "--max-buffered-mib", "128") as server, contextlib.ExitStack() as stack:
        host, port = server.http.rsplit(":", 1)
        statuses, refused = [], b""
        for _ in range(count):
            connection = stack.enter_context(socket.create_connection((host, int(port)), timeout=PATIENCE_SECONDS))
            connection.sendall(head + body)
            begun = connection.recv(12)
            statuses.append(int(begun[9:]))
            if statuses[-1] == 503:
                refused = connection.recv(1 << 16)
        # An eighth of the memory is not for large answers.
        assert 3 <= statuses.count(200) <= 7 and statuses.count(503) == count - statuses.count(200), statuses
        assert b"retry-after: " in refused and b"--max-buffered-mib" in refused
        assert 64 << 20 < scrape(server, "stator_buffered_bytes") < 128 << 20
        stack.close()
        eventually("all is given back", lambda: scrape(server, "stator_buffered_bytes") == 0)


def test_an_answer_that_is_collected_counts_as_it_grows():
    asked = {"model": "mock", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 200, "n": 64, "logprobs": True,
             "top_logprobs": 20, "ignore_eos": True}

    def ask(server, **more):
        return httpx.post(f"http://{server.http}/v1/chat/completions", json=asked | more, timeout=PATIENCE_SECONDS)

    with running("--builtin", "mock=mock", "--max-buffered-mib", "32") as server:
        answer = ask(server)
        assert answer.status_code == 503 and int(answer.headers["retry-after"]) > 0, answer.text[:1000]
        assert "--max-buffered-mib" in answer.json()["error"]["message"]
        # As events it is collected nowhere, and a smaller one finds room.
        assert "--max-buffered-mib" not in ask(server, stream=True).text
        assert ask(server, n=2).status_code == 200
        eventually("all is given back", lambda: scrape(server, "stator_buffered_bytes") == 0)


def test_json_answers_at_once_stay_within_the_memory():
    size, count, budget = 1 << 20, 24, 64
    header = json.dumps({"inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [size], "parameters": {"binary_data_size": 4 * size}}]})
    # Each number takes 10 to 20 bytes as text.
    body = header.encode() + struct.pack("<f", -0.123456789) * size

    def ask(server):
        client = http.client.HTTPConnection(server.http, timeout=PATIENCE_SECONDS)
        with contextlib.closing(client):
            try:
                client.request("POST", "/v2/models/identity/infer", body, {"inference-header-content-length": str(len(header))})
                answer = client.getresponse()
                return answer.status, answer.read()
            except ConnectionError:
                # The body is refused before it is whole, and the connection is closed.
                return 503, b""

    with running("--builtin", "identity,datatype=FP32", "--max-buffered-mib", str(budget)) as server, \
            concurrent.futures.ThreadPoolExecutor(count) as pool:
        before = rss_mib(server.pid)
        asked = [pool.submit(ask, server) for _ in range(count)]
        peak = before
        while not all(one.done() for one in asked):
            peak = max(peak, rss_mib(server.pid))
            time.sleep(0.005)
        answers = [one.result() for one in asked]
        assert {status for status, _ in answers} <= {200, 503} and any(status == 200 for status, _ in answers)
        assert peak < before + budget + 64
        # One alone finds room, and is as long as it has to be.
        eventually("all is given back", lambda: scrape(server, "stator_buffered_bytes") == 0)
        status, text = ask(server)
        assert status == 200 and json.loads(text)["outputs"][0]["data"] == [-0.12345679] * size
        eventually("all is given back", lambda: scrape(server, "stator_buffered_bytes") == 0)


def filled(server, stack):
    """Fills 15 MiB with bodies that do not end, each of which counts as a small request and none as a lone one."""
    host, port = server.http.rsplit(":", 1)
    head = b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\n"
    for _ in range(256):
        connection = stack.enter_context(socket.create_connection((host, int(port)), timeout=PATIENCE_SECONDS))
        connection.sendall(head + bytes(60 << 10))
    eventually("it is filled", lambda: scrape(server, "stator_buffered_bytes") == 15 << 20)


def test_calls_alone_on_their_connection_have_the_last_share():
    prompt = {"model": "mock", "prompt": "hi", "max_tokens": 2}
    asked = request("identity", [tensor("INPUT0", "UINT8", [100])], [bytes(100)])
    with limited(8 * GIB, "--builtin", "mock=mock", "--max-buffered-mib", "16") as server, contextlib.ExitStack() as stack:
        url = f"http://{server.http}"
        filled(server, stack)
        for version in ({}, {"http1": False, "http2": True}):
            with httpx.Client(timeout=PATIENCE_SECONDS, **version) as client:
                answer = client.post(f"{url}/v1/completions", json=prompt)
                assert answer.status_code == 200, answer.text
                packed = gzip.compress(json.dumps(prompt).encode())
                answer = client.post(f"{url}/v1/completions", content=packed, headers={"content-encoding": "gzip"})
                assert answer.status_code == 200, answer.text
                data = {"name": "INPUT0", "datatype": "UINT8", "shape": [3], "data": [1, 2, 3]}
                answer = client.post(f"{url}/v2/models/identity/infer", json={"inputs": [data]})
                assert answer.status_code == 200 and answer.json()["outputs"][0]["data"] == [1, 2, 3]
        with grpc.insecure_channel(server.address) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            assert stub.ModelInfer(asked, timeout=PATIENCE_SECONDS).raw_output_contents[0] == bytes(100)
        # A call beside another one is none of these.
        with Connection(server.address) as connection:
            connection.call("ServerLive", b"")
            second = connection.call("ServerLive", prefix(0), is_whole=True)
            connection.flush()
            assert connection.status(second) == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]


def test_a_client_that_reads_only_after_it_has_written_everything_finds_the_refusal():
    def post(server, path, mib):
        try:
            call = urllib.request.Request(f"http://{server.http}{path}", bytes(mib << 20))
            with urllib.request.urlopen(call, timeout=PATIENCE_SECONDS) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code

    identity = "/v2/models/identity/infer"
    with running("--builtin", "identity,datatype=UINT8", "--max-buffered-mib", "8") as server:
        assert [post(server, identity, 12) for _ in range(8)] == [503] * 8
        assert [post(server, identity, 70) for _ in range(8)] == [400] * 8
        assert [post(server, "/v1/chat/completions", 70) for _ in range(8)] == [413] * 8
        assert [post(server, "/v2/nowhere", 12) for _ in range(8)] == [404] * 8
        with httpx.Client(http1=False, http2=True, timeout=PATIENCE_SECONDS) as client:
            body = [bytes(1 << 16)] * (70 * 16)
            answers = [client.post(f"http://{server.http}{identity}", content=iter(body)) for _ in range(4)]
        assert [answer.status_code for answer in answers] == [503] * 4
