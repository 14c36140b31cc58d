"""Starts real servers on free ports and gives the tests real clients."""

import contextlib
import fcntl
import inspect
import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import tempfile
import threading

import grpc
import httpx
import openai
import pytest
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2_grpc

from patience import PATIENCE_SECONDS, eventually
from real_models import real_model

ROOT = pathlib.Path(__file__).parents[2]
BINARY = pathlib.Path(os.environ.get("STATOR_BINARY", ROOT / "target/debug/stator"))
# Of its own accord httpx gives up after five seconds, which a busy machine may take for anything.
for call in (httpx.get, httpx.post, httpx.options, httpx.request, httpx.stream, httpx.Client.__init__):
    inspect.unwrap(call).__kwdefaults__["timeout"] = PATIENCE_SECONDS
UNLIMITED = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]

NUMERIC = ["BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64",
           "FP16", "BF16", "FP32", "FP64"]
DATATYPES = NUMERIC + ["BYTES"]
BUILTINS = [
    "identity",
    *(f"identity_{name.lower()}=identity,datatype={name}" for name in DATATYPES),
    "one_text=identity,datatype=BYTES,dims=1",
    "texts=identity,datatype=BYTES,dims=2",
    "batched=identity,dims=16,max_batch_size=8",
    "slow=identity,delay_ms=700",
    "simple=add_sub",
    "repeat_int32",
    "mock=mock,pace_ms=10",
    "mock_fast=mock",
]

CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "%s"}}\n</tool_call>'
# Models that say one text, byte by byte.
SCRIPTS = [
    "hello=mock,reply=Hello, world.",
    "org/name=mock,reply=Hi.",
    "party=mock,reply=Grüße 🎉!",
    "thinker=mock,reply=<think>\nLet me see.\n</think>\n\nThe answer.",
    "caller=mock,reply=" + CALL % "Paris",
    "callers=mock,reply=I will look.\n" + CALL % "Paris" + "\n" + CALL % "Rome",
    'json=mock,reply={"city": "Paris", "is_capital": true}',
    'listed=mock,reply=[{"name": "get_weather", "parameters": {"city": "Oslo"}}]',
    "many=mock,reply=[" + ", ".join(['{"name": "get_weather", "parameters": {"city": "Oslo"}}'] * 20) + "]",
    'named=mock,reply={"city": "Bern"}',
    "words=mock",
    "slow=mock,pace_ms=20",
    "short=mock,context_length=64",
]


# Ports that Linux by default gives nobody by itself, neither to who listens nor to who connects.
PORTS = range(20_000, 32_000)
# A port belongs to the process that has locked its file; the tests in Rust use the same files.
PORT_LOCKS = pathlib.Path(tempfile.gettempdir(), "stator-test-ports")
GIVEN_PORTS = {}


def free_port():
    """Returns a port of this machine that nobody uses, another one each time."""
    PORT_LOCKS.mkdir(exist_ok=True)
    while True:
        port = random.choice(PORTS)
        if port in GIVEN_PORTS:
            continue
        with contextlib.suppress(OSError), socket.socket() as probe:
            lock = open(PORT_LOCKS / str(port), "w")
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            probe.bind(("127.0.0.1", port))
            GIVEN_PORTS[port] = lock
            return port


LOCAL = ["--log-format", "json", "--metrics-host", "127.0.0.1", "--metrics-port", "0"]


def doors_at(grpc_port):
    """Returns the arguments of doors on this machine alone, of which gRPC's has a port; 0 is a free one."""
    return ["--grpc-host", "127.0.0.1", "--grpc-port", str(grpc_port), "--http-host", "127.0.0.1", "--http-port", "0"]


DOORS = doors_at(0)


class Server:
    """A running `stator serve`, `stator frontend` or `stator worker`."""

    def __init__(self, *arguments, role="serve", environment=None, prefix=(), doors=DOORS):
        doors = [] if role == "worker" else doors
        command = [*prefix, str(BINARY), role, *LOCAL, *doors, *arguments]
        self.log = []
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                        text=True, env={**os.environ, **(environment or {})})
        self.ready = threading.Event()
        self.address = self.http = self.metrics = None
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        self.ready.wait(PATIENCE_SECONDS)
        if not self.address:
            self.process.kill()
            raise RuntimeError("the server did not start:\n" + "".join(self.log))

    def _read(self):
        for line in self.process.stderr:
            self.log.append(line)
            with contextlib.suppress(json.JSONDecodeError):
                event = json.loads(line)
                if event.get("message") == "ready":
                    self.address = event.get("grpc") or event["worker"]
                    self.http, self.metrics = event.get("http"), event.get("metrics")
                    self.ready.set()
        self.ready.set()

    @property
    def pid(self):
        return self.process.pid

    def is_running(self):
        return self.process.poll() is None

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)

    def wait(self):
        """Waits until the process has ended and all that it said is in the log; returns its status."""
        status = self.process.wait(PATIENCE_SECONDS)
        self.reader.join(PATIENCE_SECONDS)
        return status

    def stop(self):
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def running(*arguments, **options):
    """Runs a server for the length of a block."""
    server = Server(*arguments, **options)
    try:
        yield server
    finally:
        server.stop()


def halt(process):
    """Stops a process, and waits until none of its threads runs any more."""
    process.send_signal(signal.SIGSTOP)
    tasks = pathlib.Path(f"/proc/{process.pid}/task")

    def runs(task):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            return "State:\tT" not in (task / "status").read_text()
        return False

    eventually("it stops", lambda: not any(map(runs, tasks.iterdir())))


def sdk_of(server, **options):
    """Makes OpenAI's own client of a server; what fails is not tried again."""
    options = {"api_key": "none", "max_retries": 0, "timeout": PATIENCE_SECONDS, **options}
    return openai.OpenAI(base_url=f"http://{server.http}/v1", **options)


@pytest.fixture(scope="session")
def server():
    """The server that most tests share: every built-in and the real text model `smollm`."""
    arguments = [f"smollm={real_model()}"]
    for spec in BUILTINS:
        arguments += ["--builtin", spec]
    with running(*arguments) as server:
        yield server
        assert server.is_running(), "the server died under the tests:\n" + "".join(server.log[-50:])


@pytest.fixture(scope="session")
def sdk(server):
    """OpenAI's own client of the server that most tests share."""
    with sdk_of(server) as client:
        yield client


@pytest.fixture(scope="session")
def scripted():
    """A server whose models say what SCRIPTS has, read by the parsers of common formats."""
    arguments = ["--no-default-model", "--tool-call-parser", "hermes", "--reasoning-parser", "qwen3"]
    for spec in SCRIPTS:
        arguments += ["--builtin", spec]
    with running(*arguments) as server:
        yield server
        assert server.is_running(), "the server died under the tests:\n" + "".join(server.log[-50:])


@pytest.fixture(scope="session")
def actor(scripted):
    """OpenAI's own client of the scripted models."""
    with sdk_of(scripted) as client:
        yield client


@pytest.fixture(scope="session")
def channel(server):
    """A plain gRPC channel."""
    with grpc.insecure_channel(server.address, options=UNLIMITED) as channel:
        yield channel


@pytest.fixture(scope="session")
def stub(channel):
    """The generated stub of Triton's own proto, for what tritonclient cannot send."""
    return service_pb2_grpc.GRPCInferenceServiceStub(channel)


@pytest.fixture
def client(server):
    """An unmodified Triton client."""
    with triton.InferenceServerClient(server.address) as client:
        yield client
