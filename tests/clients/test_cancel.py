"""How long a cancel takes from the client to the worker, in every phase of a request.

No duration is the test's own wait: a client says when it left, and the processes say in their logs when they heard of it and when the
work had ended. All of them read the clock of one machine. The table that is printed has both, of all tries of a phase.
"""

import contextlib
import datetime
import json
import random
import re
import signal
import socket
import statistics
import time

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2_grpc

from chaos import completion, total
from conftest import ROOT, Server, halt, running
from late_wakeups import late_wakeups
from patience import NEVER_MS, PATIENCE_SECONDS, eventually
from programs import Nats, planes, program
from python_workers import python_worker, write_tokenizer
from test_cluster import client_of, frontend, is_ready
from ways import DIRECT, came
from wire import page, request, tensor

TRIES = 20
# What a cancel may take. Half of the tries of each phase have to be that fast as they are, and nine of ten without the time in which
# the machine let processes wait that wanted to run: it may be busy with other things.
BOUND_SECONDS = 0.010
# Where the machine is slow, as many times what the frontend takes to answer what it knows.
ANSWERS = 3
KINDS = ((True, "a stream"), (False, "one answer"))
WORKER_LOG = ["--log-level", "info,cluster::request=debug,cluster::nats=debug,worker::generate=debug"]
FRONTEND_LOG = ["--log-level", "info,cluster::nats=debug,server::serving::inference=debug"]
SCRIPT = ROOT / "tests" / "clients" / "cancelled_worker.py"

TOLD = "a call was cancelled"
LEFT_QUEUE = "a request left the queue"
LEFT_BATCH = "a sequence left the batch"
OVER = '"code":"CANCELLED"'


def builtins(*specs):
    return ["--no-default-model", *(part for spec in specs for part in ("--builtin", spec))]


def moments(process, message):
    """Returns when a process said something."""
    lines = [line for line in list(process.log) if message in line]
    if isinstance(process, Server):
        return [datetime.datetime.fromisoformat(json.loads(line)["timestamp"]).timestamp() for line in lines]
    return [float(re.search(r" at ([\d.]+)", line)[1]) for line in lines]


def since(process, message, moment):
    """Waits until a process has said something behind a moment; returns the time in between."""
    found = []

    def is_said():
        found[:] = [said for said in moments(process, message) if said >= moment]
        return found

    eventually(f"`{message}`", is_said)
    return found[0] - moment


class Http:
    """A text that is asked for over HTTP; leaving it closes the connection."""

    def __init__(self, front, model, prompt="x", tokens=1000, stream=True):
        body = json.dumps({"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0,
                           "stream": stream}).encode()
        self.connection = socket.create_connection(front.http.rsplit(":", 1), PATIENCE_SECONDS)
        self.connection.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
                                b"content-length: %d\r\n\r\n" % len(body) + body)

    def read(self):
        """Waits for the first part of the text."""
        data = b""
        while b"data: " not in data:
            part = self.connection.recv(4096)
            assert part and (data + part).startswith(b"HTTP/1.1 200"), data + part
            data += part
        return self

    def leave(self):
        moment = time.time()
        self.connection.close()
        return moment


class Tensor:
    """A tensor request over gRPC; leaving it resets its stream."""

    def __init__(self, front, model, name, datatype):
        data = np.ones(1, np.int32 if datatype == "INT32" else np.float32).tobytes()
        self.channel = grpc.insecure_channel(front.address)
        stub = service_pb2_grpc.GRPCInferenceServiceStub(self.channel)
        self.call = stub.ModelInfer.future(request(model, [tensor(name, datatype, [1])], [data]))

    def leave(self):
        moment = time.time()
        self.call.cancel()
        return moment


class Table:
    """The times of all phases over one plane, and the workers that were called."""

    def __init__(self, plane, waits):
        self.plane, self.waits, self.phases, self.called = plane, waits, {}, []
        self.front, self.answers = None, {}

    def keep(self, worker):
        self.called.append(worker)
        return worker

    def note(self, phase, moment, told, ended=None):
        self.phases.setdefault(phase, []).append((moment, told, told if ended is None else ended))
        started = time.monotonic()
        page(self.front)
        self.answers.setdefault(phase, []).append(time.monotonic() - started)

    def bound(self, phase):
        """Returns what a cancel may take, by what else took its time in that phase."""
        return max(BOUND_SECONDS, ANSWERS * statistics.median(self.answers[phase]))

    def late(self, phase):
        """Counts the tries that took too long by themselves."""
        times, bound = self.phases[phase], self.bound(phase)
        own = (told - self.waits.within(moment, moment + told) for moment, told, _ in times)
        return sum(time >= bound for time in own)

    def __str__(self):
        lines = [f"cancelled over {self.plane}, ms from the client to"]
        for phase, times in self.phases.items():
            told, ended = ([time * 1e3 for time in of] for of in list(zip(*times))[1:])
            lines.append(f"      {phase:46} told: median {statistics.median(told):6.2f}, max {max(told):6.2f}"
                         f"   ended: median {statistics.median(ended):6.2f}, max {max(ended):6.2f}"
                         f"   of {len(times)}, {self.late(phase)} over {self.bound(phase) * 1e3:.0f}")
        return "\n".join(lines)

    def check(self, front):
        for phase, times in self.phases.items():
            assert statistics.median(told for _, told, _ in times) < self.bound(phase), (phase, times)
            assert self.late(phase) <= max(1, len(times) // 10), (phase, times, self.waits.waits)
        for worker in self.called:
            came(worker, self.plane, front, *self.called)


@pytest.fixture(params=[*DIRECT, "nats"])
def plane(request, tmp_path):
    """The arguments of a plane, and the way that calls take by them."""
    if request.param in DIRECT:
        yield DIRECT[request.param], request.param
        return
    folder = tmp_path / "nats"
    folder.mkdir()
    with program(Nats, folder) as nats:
        yield planes(nats, "nats", "nats"), "nats"


@pytest.fixture
def tell(capsys):
    def say(text):
        with capsys.disabled():
            print(f"\n    {text}")
    return say


def begun(worker, name, least=1):
    """Waits until a worker's own gauge says that work has begun."""
    eventually(name, lambda: total(worker, name) >= least)


def is_at_rest(worker):
    eventually("it is at rest", lambda: total(worker, "stator_open_calls") == 0)


def prompt(length):
    """Returns a prompt that no cache has."""
    return "".join(random.choices("abcdefghij ", k=length))


def in_a_worker(table, front, fleet, discovery, on):
    """Waiting, prefill, decode, tensors: at one worker."""
    models = builtins("heavy=mock,prefill_us=200", "paced=mock,pace_ms=5", f"slowly=identity,delay_ms={NEVER_MS}")
    narrow = builtins("narrow=mock,pace_ms=50")
    worker = lambda *arguments: table.keep(fleet.enter_context(
        running("--discovery", discovery, *on, *WORKER_LOG, *arguments, role="worker")))
    one, queue = worker(*models), worker("--max-running-sequences", "1", *narrow)
    with client_of(front) as client:
        for model in ("heavy", "paced", "slowly", "narrow"):
            eventually(model, lambda: is_ready(client, model))
    first = Http(front, "narrow", tokens=8000).read()
    for stream, kind in TRIES * KINDS:
        waiting = Http(front, "narrow", stream=stream)
        begun(queue, "stator_queue_depth_requests")
        moment = waiting.leave()
        table.note(f"a queue, {kind}", moment, since(queue, TOLD, moment), since(queue, LEFT_QUEUE, moment))
        eventually("it is empty", lambda: total(queue, "stator_queue_depth_requests") == 0)
    first.leave()
    for stream, kind in TRIES * KINDS:
        asked = Http(front, "heavy", prompt(4000), stream=stream)
        # Calls are counted before the engine has them.
        begun(one, "stator_running_sequences")
        moment = asked.leave()
        table.note(f"prefill of chunks of 100 ms, {kind}", moment, since(one, TOLD, moment),
                   since(one, LEFT_BATCH, moment))
        is_at_rest(one)
    for stream, kind in TRIES * KINDS:
        asked = Http(front, "paced", stream=stream)
        begun(one, "stator_running_sequences")
        if stream:
            asked.read()
        moment = asked.leave()
        table.note(f"decode of steps of 5 ms, {kind}", moment, since(one, TOLD, moment),
                   since(one, LEFT_BATCH, moment))
        is_at_rest(one)
    for _ in range(TRIES):
        asked = Tensor(front, "slowly", "INPUT0", "FP32")
        begun(one, "stator_open_calls")
        moment = asked.leave()
        table.note("a tensor execution", moment, since(one, TOLD, moment))
        is_at_rest(one)


def between_parts(table, front, fleet, discovery, on):
    """A decode worker waits for the KV blocks of a prompt, and the prefill worker does not answer."""
    prefill, decode = (table.keep(fleet.enter_context(running(
        "--discovery", discovery, *on, *WORKER_LOG, "--role", part, "--kv-transfer-timeout-ms", str(NEVER_MS),
        *builtins("handed=mock,pace_ms=5"), role="worker"))) for part in ("prefill", "decode"))

    def is_handed_over():
        before = total(decode, "stator_kv_transfer_blocks_total")
        completion(front.http, prompt(100), 2, "handed")
        return total(decode, "stator_kv_transfer_blocks_total") > before

    with client_of(front) as client:
        eventually("handed", lambda: is_ready(client, "handed"))
    for stream, kind in TRIES * KINDS:
        # One that was halted for long is called again only after a while.
        eventually("prompts are handed over", is_handed_over)
        is_at_rest(decode)
        # It takes the rest of the text when the prefill worker, which drew the first token, is halted.
        halt(decode.process)
        handed = total(front, "stator_disaggregated_requests_total")
        asked = Http(front, "handed", prompt(200), stream=stream)
        begun(front, "stator_disaggregated_requests_total", handed + 1)
        halt(prefill.process)
        decode.process.send_signal(signal.SIGCONT)
        begun(decode, "stator_open_calls")
        time.sleep(0.05)
        assert total(decode, "stator_kv_blocks_used") == 0, "it has begun without the blocks"
        moment = asked.leave()
        table.note(f"a decode worker's wait for blocks, {kind}", moment, since(decode, TOLD, moment))
        prefill.process.send_signal(signal.SIGCONT)
        is_at_rest(decode)


def in_python(table, front, fleet, discovery, folder):
    """Functions of another language: they are called over gRPC on either plane."""
    one = fleet.enter_context(python_worker(SCRIPT, discovery, write_tokenizer(folder / "tokenizer")))
    with client_of(front) as client:
        for model in ("generator", "function"):
            eventually(model, lambda: is_ready(client, model))
    for _ in range(TRIES):
        moment = Http(front, "generator", tokens=100).read().leave()
        table.note("a Python generator", moment, since(one, "ended", moment))
    for number in range(TRIES):
        before = one.says("begun")
        asked = Tensor(front, "function", "IN", "INT32")
        eventually("it has begun", lambda: one.says("begun") > before)
        moment = asked.leave()
        table.note("a Python function, that looks each ms", moment, since(one, "ended", moment))


def at_another_server(table, front, fleet, discovery, on):
    """A text of a server that a worker stands around."""
    engine = fleet.enter_context(running(*builtins("theirs=mock,pace_ms=5"), *WORKER_LOG))
    one = table.keep(fleet.enter_context(running(
        "--discovery", discovery, *on, *WORKER_LOG, "--upstream", f"http://{engine.http}/v1", role="worker")))
    with client_of(front) as client:
        eventually("theirs", lambda: is_ready(client, "theirs"))
    for _ in range(TRIES):
        moment = Http(front, "theirs").read().leave()
        table.note("another server's text, of steps of 5 ms", moment, since(one, TOLD, moment),
                   since(engine, LEFT_BATCH, moment))


def without_a_worker(table, front, discovery, on):
    """While the frontend waits for a worker, for a request or for what is left of a text."""
    start = lambda: table.keep(Server("--discovery", discovery, *on, *WORKER_LOG,
                                      *builtins("moving=mock,prefill_us=2000,decode_us=5000"), role="worker"))
    lost = lambda: sum(total(front, name) for name in ("stator_worker_waits",))
    workers = [start()]
    try:
        with client_of(front) as client:
            eventually("moving", lambda: is_ready(client, "moving"))
        for number in range(5):
            asked = Http(front, "moving", prompt(100)).read()
            workers.pop().stop()
            begun(front, "stator_worker_waits")
            moment = asked.leave()
            table.note("no worker, in the middle of a text", moment, since(front, OVER, moment))
            eventually("nobody waits", lambda: lost() == 0)
            for _ in range(4):
                asked = Http(front, "moving", prompt(100))
                begun(front, "stator_worker_waits")
                moment = asked.leave()
                table.note("no worker", moment, since(front, OVER, moment))
                eventually("nobody waits", lambda: lost() == 0)
            left = Http(front, "moving", prompt(200))
            begun(front, "stator_worker_waits")
            workers.append(start())
            begun(workers[0], "stator_running_sequences")
            moment = left.leave()
            table.note("prefill, having waited for the worker", moment, since(workers[0], TOLD, moment),
                       since(workers[0], LEFT_BATCH, moment))
            asked = Http(front, "moving", prompt(300)).read()
            workers[0].stop()
            begun(front, "stator_worker_waits")
            workers[0] = start()
            begun(workers[0], "stator_running_sequences")
            moment = asked.leave()
            table.note("prefill behind a migration", moment, since(workers[0], TOLD, moment),
                       since(workers[0], LEFT_BATCH, moment))
    finally:
        for one in workers:
            one.stop()


def test_a_cancel_reaches_the_worker_in_every_phase(tmp_path, plane, tell):
    on, name = plane
    discovery = f"file://{tmp_path}/fleet"
    with late_wakeups() as waits, contextlib.ExitStack() as fleet:
        table = Table(name, waits)
        front = fleet.enter_context(frontend(discovery, *on, *FRONTEND_LOG, "--prefill-min-tokens", "16"))
        table.front = front
        in_a_worker(table, front, fleet, discovery, on)
        between_parts(table, front, fleet, discovery, on)
        in_python(table, front, fleet, discovery, tmp_path)
        at_another_server(table, front, fleet, discovery, on)
        without_a_worker(table, front, discovery, on)
        eventually("nothing is left over", lambda: total(front, "stator_requests_in_flight") == 0)
    tell(table)
    table.check(front)
