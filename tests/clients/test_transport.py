"""HTTP/2 settings, message limits, compression, keepalive: each flag as a client sees it."""

import contextlib
import socket
import struct
import threading
import time

import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from conftest import UNLIMITED, running
from patience import PATIENCE_SECONDS
from wire import Stream, floats, refused, request, tensor

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE = 3, 4, 5


def settings(address):
    """Returns a server's HTTP/2 settings and the size of its connection window."""
    host, port = address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=PATIENCE_SECONDS) as connection:
        connection.sendall(PREFACE)
        found, window = {}, 65_535
        while not (found and window != 65_535):
            head = read(connection, 9)
            size, kind, flags = int.from_bytes(head[:3], "big"), head[3], head[4]
            body = read(connection, size)
            if kind == 4 and not flags & 1:
                found = dict(struct.iter_unpack(">HI", body))
            if kind == 8 and head[5:] == b"\0\0\0\0":
                window += int.from_bytes(body, "big")
        return found, window


def read(connection, count):
    data = b""
    while len(data) < count:
        piece = connection.recv(count - len(data))
        assert piece, "the server closed the connection"
        data += piece
    return data


@contextlib.contextmanager
def stub_of(server, options=UNLIMITED, address=None):
    with grpc.insecure_channel(address or server.address, options=options) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def echo(count):
    return request("identity", [tensor("INPUT0", "FP32", [count])], [bytes(4 * count)])


def test_flags_set_the_http2_settings():
    flags = ["--grpc-stream-window-bytes", "2097152", "--grpc-connection-window-bytes", "4194304",
             "--grpc-max-concurrent-streams", "77", "--grpc-max-frame-bytes", "65536",
             "--no-default-model"]
    with running(*flags) as server:
        found, window = settings(server.address)
    assert found[INITIAL_WINDOW_SIZE] == 2_097_152 and window == 4_194_304
    assert found[MAX_CONCURRENT_STREAMS] == 77 and found[MAX_FRAME_SIZE] == 65_536


def test_the_references_variables_set_the_windows():
    environment = {"DYN_GRPC_INITIAL_STREAM_WINDOW_SIZE": "300000",
                   "DYN_GRPC_INITIAL_CONNECTION_WINDOW_SIZE": "600000"}
    with running("--no-default-model", environment=environment) as server:
        found, window = settings(server.address)
    assert (found[INITIAL_WINDOW_SIZE], window) == (300_000, 600_000)


def test_adaptive_windows_still_pass_large_messages():
    with running("--no-default-model", "--builtin", "identity,datatype=FP32",
                 "--grpc-adaptive-window") as server, stub_of(server) as stub:
        answer = stub.ModelInfer(echo(1 << 20))
        assert len(answer.raw_output_contents[0]) == 4 << 20


def test_a_message_over_the_limit_is_resource_exhausted():
    with running("--no-default-model", "--builtin", "identity,datatype=FP32",
                 "--grpc-max-receive-message-bytes", "100000") as server:
        with stub_of(server) as stub:
            stub.ModelInfer(echo(20_000))
            exhausted = grpc.StatusCode.RESOURCE_EXHAUSTED
            refused(lambda: stub.ModelInfer(echo(30_000)), exhausted, "100000")
            stream = Stream(stub)
            stream.send(echo(30_000))
            refused(stream.next, exhausted, "100000")
            stream.close()
            compressed = {"compression": grpc.Compression.Gzip}
            refused(lambda: stub.ModelInfer(echo(30_000), **compressed), exhausted)
            stub.ModelInfer(echo(10))


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_responses_are_compressed_when_the_flag_says_so(encoding):
    with running("--no-default-model", "--builtin", "identity,datatype=FP32",
                 "--grpc-response-compression", encoding) as server:
        with counting_proxy(server.address) as (address, counter):
            with stub_of(server, address=address) as stub:
                answer = stub.ModelInfer(echo(1 << 18))
                assert len(answer.raw_output_contents[0]) == 1 << 20
        assert counter["received"] < 100_000, counter


@contextlib.contextmanager
def counting_proxy(address):
    """Passes bytes on and counts those that come from the server."""
    host, port = address.rsplit(":", 1)
    listener = socket.create_server(("127.0.0.1", 0))
    counter = {"received": 0}

    def pump(source, target, key):
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                if key:
                    counter[key] += len(data)
                target.sendall(data)

    def accept():
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = socket.create_connection((host, int(port)))
                for pair in [(client, server, None), (server, client, "received")]:
                    threading.Thread(target=pump, args=pair, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}", counter
    finally:
        listener.close()


def test_a_client_that_pings_each_second_is_not_cut_off(server):
    options = [("grpc.keepalive_time_ms", 1000), ("grpc.keepalive_permit_without_calls", 1),
               ("grpc.http2.max_pings_without_data", 0),
               ("grpc.http2.min_time_between_pings_ms", 1000)]
    with stub_of(server, options) as stub:
        stub.ServerLive(pb.ServerLiveRequest())
        time.sleep(5)
        assert stub.ServerLive(pb.ServerLiveRequest(), wait_for_ready=False).live


def test_many_connections_are_served_and_the_next_ones_wait():
    with running("--no-default-model", "--builtin", "identity,datatype=FP32",
                 "--grpc-max-connections", "4") as server:
        with contextlib.ExitStack() as stack:
            separate = [("grpc.use_local_subchannel_pool", 1)]
            stubs = [stack.enter_context(stub_of(server, separate)) for _ in range(4)]
            for stub in stubs:
                stub.ModelInfer(echo(1))
            waiting = stack.enter_context(stub_of(server, separate))
            refused(lambda: waiting.ModelInfer(echo(1), timeout=0.5),
                    grpc.StatusCode.DEADLINE_EXCEEDED)
        with stub_of(server) as stub:
            assert stub.ModelInfer(echo(1), timeout=PATIENCE_SECONDS).raw_output_contents[0] == floats(0)
