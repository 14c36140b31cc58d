"""Logs: no client fills them, and nobody has to read them for the server to go on."""

import os
import resource
import signal
import socket
import subprocess
import time

import grpc
import httpx
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from conftest import BINARY, free_port, running
from patience import PATIENCE_SECONDS, eventually

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
PING_ACK = bytes((0, 0, 8, 6, 1, 0, 0, 0, 0)) + b"12345678"


def test_odd_frames_are_no_lines_of_the_log():
    with running("--builtin", "identity") as server:
        host, port = server.address.rsplit(":", 1)
        with socket.create_connection((host, int(port)), timeout=PATIENCE_SECONDS) as connection:
            connection.sendall(PREFACE + PING_ACK * 10_000)
            # It is answered after all that came before it.
            connection.sendall(bytes((0, 0, 8, 6, 0, 0, 0, 0, 0)) + b"the last")
            came = b""
            while b"the last" not in came:
                came += connection.recv(1 << 16)
        assert not [line for line in server.log if '"WARN"' in line]


def test_descriptors_that_ran_out_are_told_of_now_and_then():
    with running("--builtin", "identity") as server:
        host, port = server.address.rsplit(":", 1)
        held = len(os.listdir(f"/proc/{server.pid}/fd"))
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (held + 5, held + 5))
        connections = [socket.create_connection((host, int(port))) for _ in range(20)]
        told = lambda: [line for line in server.log if "cannot accept a connection" in line]
        eventually("it is told", told)
        # It is told again after 5 s.
        time.sleep(1)
        assert len(told()) == 1
        for connection in connections:
            connection.close()
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (held + 5, held + 5))
        with grpc.insecure_channel(server.address) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            assert stub.ServerLive(pb.ServerLiveRequest(), wait_for_ready=True, timeout=PATIENCE_SECONDS).live


def test_a_log_that_nobody_reads_stops_nothing():
    http, metrics = free_port(), free_port()
    arguments = ["--log-level", "debug", "--log-buffered-lines", "100", "--builtin", "identity"]
    doors = ["--grpc-host", "127.0.0.1", "--grpc-port", "0", "--http-host", "127.0.0.1", "--http-port", str(http)]
    places = ["--metrics-host", "127.0.0.1", "--metrics-port", str(metrics)]
    server = subprocess.Popen([str(BINARY), "serve", *places, *doors, *arguments], stderr=subprocess.PIPE)
    try:
        with httpx.Client(timeout=PATIENCE_SECONDS) as client:

            def is_live():
                try:
                    return client.get(f"http://127.0.0.1:{http}/v2/health/live").status_code == 200
                except httpx.ConnectError:
                    return False

            eventually("it serves", is_live)

            def dropped():
                # A connection is a line when it opens and one when it closes.
                for _ in range(50):
                    httpx.get(f"http://127.0.0.1:{http}/v2/health/live", timeout=PATIENCE_SECONDS)
                text = client.get(f"http://127.0.0.1:{metrics}/metrics").text
                return any(line.startswith("stator_dropped_log_lines_total ") and float(line.split()[1]) > 0
                           for line in text.splitlines())

            eventually("the queue is full", dropped)
            assert is_live()
        server.send_signal(signal.SIGTERM)
        assert server.wait(PATIENCE_SECONDS) == 0
    finally:
        server.kill()
        server.stderr.close()
