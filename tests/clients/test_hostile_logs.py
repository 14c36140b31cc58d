"""Logs: no client fills them, and nobody has to read them for the server to go on."""

import contextlib
import fcntl
import json
import os
import resource
import shutil
import signal
import socket
import string
import subprocess
import time

import grpc
import httpx
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from conftest import BINARY, ROOT, free_port, running
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


@contextlib.contextmanager
def unread(*arguments):
    """Runs a server whose log nobody reads, until its queue is full; yields it and the address of HTTP."""
    http, metrics = free_port(), free_port()
    doors = ["--grpc-host", "127.0.0.1", "--grpc-port", "0", "--http-host", "127.0.0.1", "--http-port", str(http)]
    places = ["--metrics-host", "127.0.0.1", "--metrics-port", str(metrics)]
    log = ["--log-level", "debug", "--log-buffered-lines", "100"]
    server = subprocess.Popen([str(BINARY), "serve", *places, *doors, *log, *arguments], stderr=subprocess.PIPE)
    try:

        def is_live():
            try:
                return httpx.get(f"http://127.0.0.1:{http}/v2/health/ready").status_code == 200
            except httpx.ConnectError:
                return False

        def dropped():
            # A connection is a line when it opens and one when it closes.
            for _ in range(50):
                httpx.get(f"http://127.0.0.1:{http}/v2/health/live")
            text = httpx.get(f"http://127.0.0.1:{metrics}/metrics").text
            return any(line.startswith("stator_dropped_log_lines_total ") and float(line.split()[1]) > 0
                       for line in text.splitlines())

        eventually("it serves", is_live)
        eventually("the queue is full", dropped)
        yield server, f"http://127.0.0.1:{http}"
    finally:
        server.kill()
        server.stderr.close()


def test_a_log_that_nobody_reads_stops_nothing():
    with unread("--builtin", "identity") as (server, address):
        assert httpx.get(f"{address}/v2/health/live").status_code == 200
        server.send_signal(signal.SIGTERM)
        assert server.wait(PATIENCE_SECONDS) == 0


def panicking(folder):
    """Makes a model with a template at which the library of templates panics."""
    shutil.copytree(ROOT / "worker/tests/golden/tiny/qwen3", folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["chat_template"] = "{{ messages[1:][::-1] }}"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return f"m={folder}"


ASKED = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}


def test_a_panic_is_a_line_of_the_log(tmp_path):
    with running(panicking(tmp_path / "model")) as server:
        answer = httpx.post(f"http://{server.http}/v1/chat/completions", json=ASKED)
        assert answer.status_code == 500, answer.text
        told = lambda: [line for line in server.log if "panicked" in line]
        eventually("it is told", told)
        assert {json.loads(line)["level"] for line in told()} == {"ERROR"}


def test_a_panic_that_nobody_reads_of_stops_nothing(tmp_path):
    with unread(panicking(tmp_path / "model")) as (server, address):
        for _ in range(10):
            assert httpx.post(f"{address}/v1/chat/completions", json=ASKED).status_code == 500
        server.send_signal(signal.SIGTERM)
        assert server.wait(PATIENCE_SECONDS) == 0


def test_last_words_that_nobody_reads_stop_nothing():
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETFL, os.O_NONBLOCK)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, bytes(1 << 12))
    fcntl.fcntl(writer, fcntl.F_SETFL, 0)
    try:
        ended = subprocess.run([str(BINARY), "serve", "no/such/model.gguf"], stderr=writer, timeout=PATIENCE_SECONDS)
        assert ended.returncode == 1
    finally:
        os.close(reader)
        os.close(writer)


# Files may not grow at all, which a process can be told of instead of being killed: a full disk.
FULL = ("sh", "-c", """trap '' XFSZ; exec prlimit --fsize=16 "$@" """, "sh")


def test_a_full_disk_is_told_of_now_and_then(tmp_path):
    begun = time.monotonic()
    with running("--builtin", "small=mock,blocks=8", "--kv-disk-dir", str(tmp_path), prefix=FULL) as server:
        # Each prompt has four blocks and pushes out others.
        for letter in string.ascii_lowercase:
            body = {"model": "small", "prompt": letter * 64, "max_tokens": 1}
            assert httpx.post(f"http://{server.http}/v1/completions", json=body).status_code == 200
        told = lambda: [line for line in server.log if "a KV block was not written" in line]
        eventually("it is told", told)
        time.sleep(1)
        assert len(told()) <= 1 + (time.monotonic() - begun) / 5
