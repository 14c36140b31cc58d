"""Whoever reaches a worker's port, or its subject at NATS, neither ends it nor fills its memory.

The worker's address space is limited, and a client asks it through a frontend meanwhile.
"""

import contextlib
import json
import os
import random
import socket
import struct

import grpc

from chaos import Sums, total
from conftest import running
from patience import PATIENCE_SECONDS, eventually
from programs import Nats, planes, program
from test_cluster import client_of, frontend, is_ready
from test_hostile import rss_mib
from test_hostile_logs import PING_ACK, PREFACE
from test_hostile_memory import GIB, LONGEST, Connection, prefix
from wire import scrape

METHODS = ["Generate", "Infer", "Embed", "Describe", "FetchArtifact", "PullBlocks"]
REFUSED = {grpc.StatusCode.INVALID_ARGUMENT.value[0], grpc.StatusCode.UNIMPLEMENTED.value[0]}
MODELS = ["--no-default-model", "--builtin", "simple=add_sub", "--builtin", "words=mock"]
# Of this the worker takes a part for its own threads.
SPACE = 4 * GIB


@contextlib.contextmanager
def attacked(folder, *arguments, both=()):
    """Runs a worker in a limited address space, and asks it through a frontend meanwhile."""
    discovery = f"file://{folder}/fleet"
    with frontend(discovery, *both) as front, \
            running("--discovery", discovery, *MODELS, *both, *arguments, role="worker",
                    prefix=("prlimit", f"--as={SPACE}")) as worker, client_of(front) as client:
        eventually("the model is ready", lambda: is_ready(client, "simple"))
        with Sums(front, threads=1) as sums:
            sums.goes_on()
            before = rss_mib(worker.pid)
            yield worker, lambda: rss_mib(worker.pid) - before
            sums.goes_on()
        sums.check()
        assert worker.is_running()


class Stranger(Connection):
    """Calls a worker without being a frontend."""

    service = "/stator.worker.v1.Worker/"

    def pour(self, method, data):
        """Begins a call and sends its body until that is over or the call is."""
        stream = self.call(method, data[:1])
        data = data[1:]
        while data and stream not in self.statuses:
            room = min(self.http2.local_flow_control_window(stream), self.http2.max_outbound_frame_size)
            if room == 0:
                self.flush()
                self.hear()
                continue
            self.http2.send_data(stream, data[:room])
            data = data[room:]
        self.flush()


def test_promised_lengths_and_wrong_flags_take_no_memory(tmp_path):
    with attacked(tmp_path) as (worker, grown), contextlib.ExitStack() as stack:
        strangers = [stack.enter_context(Stranger(worker.address)) for _ in range(4)]
        refused = []
        for stranger in strangers:
            for method in METHODS:
                refused += [(stranger, stranger.call(method, prefix(LONGEST))) for _ in range(50)]
                refused.append((stranger, stranger.call(method, prefix(10, flag=1) + bytes(10))))
                # What may be so long is waited for.
                for _ in range(100):
                    stranger.call("Infer", prefix(GIB - 1) + bytes(100))
            stranger.flush()
        assert {stranger.status(stream) for stranger, stream in refused} <= REFUSED
        assert grown() < 200


def test_connections_that_say_nothing_give_their_places(tmp_path):
    count = 100
    with attacked(tmp_path, "--worker-max-connections", str(count)) as (worker, grown), \
            contextlib.ExitStack() as stack:
        host, port = worker.address.rsplit(":", 1)

        def connect(data):
            opened = stack.enter_context(socket.create_connection((host, int(port)), PATIENCE_SECONDS))
            opened.sendall(data)
            return opened

        # The beginning of headers that never end.
        half = PREFACE + struct.pack(">I", 1000)[1:] + bytes((1, 0, 0, 0, 0, 1)) + bytes(100)
        for _ in range(20):
            connect(half)
        for _ in range(3 * count):
            connect(b"P")
        eventually("all places are taken",
                   lambda: scrape(worker, 'stator_connections_waited_total{listener="worker"}') > 0)
        told = sum("all connections are taken" in line for line in worker.log)
        assert 1 <= told <= 20, f"{told} lines of the log for {3 * count} connections"
        with Stranger(worker.address) as stranger:
            stream = stranger.call("Describe", prefix(0), is_whole=True)
            stranger.flush()
            assert stranger.status(stream) == 0, "somebody who speaks comes in at last"
        assert grown() < 200


def test_a_flood_of_answers_to_pings_is_no_line_of_the_log(tmp_path):
    with attacked(tmp_path) as (worker, grown):
        host, port = worker.address.rsplit(":", 1)
        with socket.create_connection((host, int(port)), PATIENCE_SECONDS) as connection:
            connection.sendall(PREFACE + PING_ACK * 10_000)
            connection.sendall(bytes((0, 0, 8, 6, 0, 0, 0, 0, 0)) + b"the last")
            came = b""
            while b"the last" not in came:
                came += connection.recv(1 << 16)
        assert not [line for line in worker.log if '"WARN"' in line]
        assert grown() < 100


def test_half_sent_requests_stay_within_the_memory_for_them(tmp_path):
    mib = 64
    with attacked(tmp_path, "--max-buffered-mib", str(mib)) as (worker, grown), \
            contextlib.ExitStack() as stack:
        half = prefix(GIB - 1) + bytes(12 << 20)
        strangers = [stack.enter_context(Stranger(worker.address)) for _ in range(8)]
        for stranger in strangers:
            stranger.pour("Infer", half)
        eventually("some are refused", lambda: total(worker, "stator_buffer_refusals_total") > 0)
        assert total(worker, "stator_buffered_bytes") <= mib << 20
        # Each connection has a window beside that.
        assert grown() < mib + 8 * 16 + 100
        stack.close()
        eventually("all is given back", lambda: total(worker, "stator_buffered_bytes") < 1 << 20)


class Publisher:
    """A client of NATS that publishes what it likes."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), PATIENCE_SECONDS)
        self.file = self.socket.makefile("rb")
        self.file.readline()
        self.socket.sendall(b'CONNECT {"verbose":false,"headers":true,"no_responders":true}\r\n')

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def subscribe(self, subject):
        self.socket.sendall(f"SUB {subject} 1\r\n".encode())

    def publish(self, subject, data, reply=""):
        self.socket.sendall(f"PUB {subject} {reply} {len(data)}\r\n".encode() + data + b"\r\n")

    def settle(self):
        """Waits until the server has taken all; returns what came."""
        self.socket.sendall(b"PING\r\n")
        came = []
        while (line := self.file.readline()) != b"PONG\r\n":
            assert line, "the server closed the connection"
            if line.startswith(b"MSG "):
                came.append(self.file.read(int(line.split()[-1]) + 2)[:-2])
            elif line == b"PING\r\n":
                self.socket.sendall(b"PONG\r\n")
        return came


def test_anything_may_come_over_nats(tmp_path):
    chance = random.Random(1)
    os.mkdir(tmp_path / "nats")
    with program(Nats, tmp_path / "nats") as nats, \
            attacked(tmp_path, both=planes(nats, "nats", "nats")) as (worker, grown), \
            Publisher(nats.port) as hostile:
        ready = next(json.loads(line) for line in worker.log if '"ready"' in line)
        subject = f"stator.default.worker.{ready['instance']}"
        for _ in range(2000):
            hostile.publish(subject, chance.randbytes(chance.randrange(200)), "_INBOX.nobody")
        for _ in range(200):
            hostile.publish(subject, bytes(900_000), "_INBOX.nobody")
        # Streams that are begun and never used, more than there may be.
        hostile.subscribe("_INBOX.hostile.>")
        greeting = b"stator-stream/1 _INBOX.hostile.%d 18446744073709551615"
        inboxes = []
        for number in range(5000):
            hostile.publish(subject, greeting % number, f"_INBOX.hostile.answer.{number}")
            if number % 500 == 0:
                inboxes += hostile.settle()
        eventually("those that are too many are refused", lambda: any(
            inbox.startswith(b"refused") for inbox in inboxes) or inboxes.extend(hostile.settle()))
        # What comes on a stream that the worker has taken is as odd.
        taken = [inbox.split()[1].decode() for inbox in inboxes if inbox.startswith(b"stator-stream/1 ")]
        assert taken
        for number, inbox in enumerate(taken[:300]):
            data = [chance.randbytes(100), struct.pack(">BQ", 0, 1) + bytes(500_000),
                    struct.pack(">BQ", 0, 1) + PREFACE + b"\xff\xff\xff" + bytes(1000)][number % 3]
            hostile.publish(inbox, data)
        hostile.settle()
        assert worker.is_running() and grown() < 500
        told = sum("is no greeting" in line for line in worker.log)
        assert 1 <= told <= 20, f"{told} lines of the log"
