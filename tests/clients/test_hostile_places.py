"""Connections that keep all the places of a listener: who uses none gives way to who comes."""

import contextlib
import resource
import socket
import threading

import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from conftest import running
from patience import PATIENCE_SECONDS
from test_hostile_memory import Connection, prefix
from wire import page

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
PING = bytes((0, 0, 8, 6, 0, 0, 0, 0, 0)) + b"12345678"


def is_served(server):
    with grpc.insecure_channel(server.address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        return stub.ServerLive(pb.ServerLiveRequest(), wait_for_ready=True, timeout=PATIENCE_SECONDS).live


@contextlib.contextmanager
def repeating(sockets, data, seconds):
    """Sends some bytes on each connection again and again during a block."""
    is_over = threading.Event()

    def send():
        while not is_over.wait(seconds):
            for connection in sockets:
                with contextlib.suppress(OSError):
                    connection.sendall(data)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield
    finally:
        is_over.set()
        sender.join()


def test_pings_keep_no_place():
    with running("--builtin", "identity", "--grpc-max-connections", "2") as server, contextlib.ExitStack() as stack:
        connections = [stack.enter_context(Connection(server.address)) for _ in range(2)]
        for connection in connections:
            stream = connection.call("ServerLive", prefix(0), is_whole=True)
            connection.flush()
            assert connection.status(stream) == 0
        with repeating([connection.socket for connection in connections], PING, 1):
            assert is_served(server)


def test_dripping_clients_leave_the_metrics_port_open():
    with running("--builtin", "identity") as server, contextlib.ExitStack() as stack:
        host, port = server.metrics.rsplit(":", 1)
        sockets = [stack.enter_context(socket.create_connection((host, int(port)))) for _ in range(70)]
        for connection in sockets:
            connection.sendall(b"GET /metrics HTTP/1.1\r\nhost: ")
        with repeating(sockets, b"a", 1):
            assert "stator_uptime_seconds" in page(server)


@pytest.fixture
def many_files():
    """Room for as many connections as a server takes, here and in the server."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before[1] < 8192:
        pytest.skip(f"only {before[1]} files may be open")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before[0], 8192), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_thousands_of_half_prefaces_leave_the_port_open(many_files):
    with running("--builtin", "identity") as server, contextlib.ExitStack() as stack:
        host, port = server.address.rsplit(":", 1)
        for _ in range(4096):
            connection = stack.enter_context(socket.create_connection((host, int(port)), timeout=PATIENCE_SECONDS))
            connection.sendall(PREFACE[:1])
        assert is_served(server)
        assert [line for line in server.log if "all connections are taken" in line]
        assert not [line for line in server.log if "cannot accept" in line]
