"""Fleets over every discovery, request plane and event plane, and without NATS for a while."""

import concurrent.futures
import contextlib
import itertools
import threading
import time

import numpy as np
import pytest
import tritonclient.grpc as triton

from chaos import total
from conftest import free_port, running, sdk_of
from kubernetes_api import api_server
from patience import PATIENCE_SECONDS, eventually
from programs import Etcd, Nats, planes, program
from test_cluster import add, client_of, computing, is_ready, joined, streamed
from ways import DIRECT, NOWHERE, TELLING, came, ways
from wire import scrape

MODELS = ["--no-default-model", "--builtin", "simple=add_sub",
          "--builtin", "identity=identity,echo_parameters=false", "--builtin", "words=mock",
          "--builtin", "slow=mock,pace_ms=10,context_length=4000,reply=" + "so " * 300]

STORES = ("file", "static", "etcd", "kubernetes")
PLANES = ("grpc", "nats")
# Elements of a tensor of 4 MiB, which is far more than all else that a test has carried.
LARGE = 1 << 20


@pytest.fixture(scope="module")
def nats(tmp_path_factory):
    with program(Nats, tmp_path_factory.mktemp("nats")) as started:
        yield started


@pytest.fixture(scope="module")
def etcd(tmp_path_factory):
    with program(Etcd, tmp_path_factory.mktemp("etcd")) as started:
        yield started


@pytest.fixture(scope="module")
def kubernetes():
    with api_server() as (_, url):
        yield url


@contextlib.contextmanager
def fleet(discovery, *arguments, second=(), is_static=False):
    """A frontend and two workers, which it finds in the store, or knows the addresses of; the second
    one has arguments of its own."""
    arguments = (*arguments, *TELLING)
    with contextlib.ExitStack() as stack:
        there = [stack.enter_context(running("--discovery", discovery, *MODELS, *arguments, *own,
                                             role="worker")) for own in ((), second)]
        if is_static:
            discovery = "static://" + ",".join(worker.address for worker in there)
        front = stack.enter_context(running("--discovery", discovery, *arguments, role="frontend"))
        eventually("all workers joined", lambda: joined(front) >= 2)
        has_all(front)
        yield front, there


def has_all(server):
    """Waits until a server has every model."""
    with client_of(server) as client:
        for model in ("simple", "identity", "words", "slow"):
            eventually(model, lambda: is_ready(client, model))


def counter(server, name, model):
    """Returns a metric of a model; none is 0."""
    return scrape(server, f'stator_{name}_total{{model="{model}"}}')


def identity(client, size):
    data = np.arange(size, dtype=np.float32)
    tensor = triton.InferInput("INPUT0", [size], "FP32")
    tensor.set_data_from_numpy(data)
    assert (client.infer("identity", [tensor]).as_numpy("OUTPUT0") == data).all()


def chat(server, number):
    """Asks for a text behind a prompt of several KV blocks."""
    with sdk_of(server) as sdk:
        prompt = f"Number {number}: " + "a long story about many things " * 10
        answer = sdk.chat.completions.create(
            model="words", messages=[{"role": "user", "content": prompt}], max_tokens=12,
            temperature=0)
    return answer.choices[0].message.content


def said(server, prompt):
    """Returns a text by the OpenAI SDK and by tritonclient, which is the same."""
    with sdk_of(server) as sdk, client_of(server) as client:
        text = sdk.completions.create(model="words", prompt=prompt, max_tokens=12, temperature=0)
        tensor = triton.InferInput("text_input", [1], "BYTES")
        tensor.set_data_from_numpy(np.array([prompt], dtype=object))
        settings = {"max_tokens": 12, "temperature": 0.0, "exclude_input_in_output": True}
        answer = client.infer("words", [tensor], parameters=settings)
    found = answer.as_numpy("text_output")[0].decode()
    assert found == text.choices[0].text
    return found


def serves(server):
    """Checks that texts and tensors come through both doors."""
    with client_of(server) as client:
        for value in range(10):
            add(client, value)
        identity(client, LARGE)
    text, usage = streamed(server)
    assert text and usage.completion_tokens == 12
    assert said(server, "Tell me")
    assert all(chat(server, number) for number in range(8))


class Cell:
    """A cell of the matrix: what its fleet is told, and what has to be seen of that at NATS."""

    def __init__(self, nats, store, requests, events):
        self.nats, self.store = nats, store
        self.arguments = planes(nats, requests, events)
        # Workers whose addresses are known tell neither subjects nor their namespace.
        self.is_static = store == "static"
        self.requests, self.events = ("grpc", "grpc") if self.is_static else (requests, events)
        self.namespace = f"m.{store}-{requests}_{events}"
        if not self.is_static:
            self.arguments += ["--namespace", self.namespace]
        if store == "etcd":
            # As on several machines.
            self.arguments += DIRECT["tcp"]
        self.is_by_nats, self.before = self.requests == "nats", nats.carried()

    @contextlib.contextmanager
    def fleet(self, discovery):
        second = NOWHERE if self.is_by_nats else ()
        with fleet(discovery, *self.arguments, second=second, is_static=self.is_static) as roles:
            yield roles

    def check_requests(self, front, there):
        """Checks what carried calls: connections tell, and a large tensor's way there and back."""
        direct = {"etcd": "tcp", "static": "tcp"}.get(self.store, "socket")
        way = "nats" if self.is_by_nats else direct
        for worker in there:
            came(worker, way, front)
        if self.is_by_nats:
            assert set(ways(there[1])) == {"nats"}

            def has_carried():
                before = self.nats.carried()
                with client_of(front) as client:
                    identity(client, LARGE)
                return self.nats.carried() - before >= 2 * 4 * LARGE

            eventually("NATS carried a tensor", has_carried)
        else:
            assert self.nats.carried() - self.before < 4 * LARGE, "NATS carried it"

    def check_events(self, front):
        """Checks what carried events: what both workers published came to the frontend, or it
        listens to nothing at NATS."""
        eventually("events are heard", lambda: counter(front, "kv_events", "words") > 0)
        token = self.namespace.replace("_", "__").replace(".", "_d")
        stream, prefix = f"stator-{token}-events", f"stator.{token}.events"
        heard = lambda: {subject for subject in self.nats.subjects() if ".events." in subject}
        if self.events == "grpc":
            assert not heard() and not self.nats.stream(stream)
            return
        # A frontend that is connected later than it finds workers hears them over gRPC until then.
        eventually("events are listened to at NATS", lambda: f"{prefix}.load.*" in heard())

        def has_come():
            chat(front, time.monotonic())
            state, consumers = self.nats.stream(stream) or ({}, [])
            # One that the frontend took too long to make is left behind for half a minute.
            delivered = [consumer["delivered"]["stream_seq"] for consumer in consumers]
            # Where the server takes seconds to answer, all is heard without its stream.
            is_late = lines(front, "no stream of events at nats", "elapsed")
            is_heard = state.get("last_seq") in delivered or is_late and f"{prefix}.kv.*" in heard()
            return state.get("num_subjects") == 2 and is_heard

        eventually("events of both workers came over NATS", has_come)


@pytest.mark.parametrize(("store", "requests", "events"),
                         list(itertools.product(STORES, PLANES, PLANES)))
def test_every_way_serves_texts_and_tensors(request, tmp_path, nats, store, requests, events):
    cell, discovery = Cell(nats, store, requests, events), f"file://{tmp_path}"
    if store == "etcd":
        discovery = f"etcd://127.0.0.1:{request.getfixturevalue('etcd').port}"
    if store == "kubernetes":
        discovery = request.getfixturevalue("kubernetes")
    with cell.fleet(discovery) as (front, there):
        serves(front)
        cell.check_requests(front, there)
        cell.check_events(front)
        # One that is killed takes nobody along.
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            streams = [pool.submit(streamed, front, "slow", 200) for _ in range(8)]
            victim, *_ = eventually("they are computed", lambda: computing(there))
            victim.stop()
            texts = [stream.result(PATIENCE_SECONDS) for stream in streams]
        assert {usage.completion_tokens for _, usage in texts} == {200}
        assert len({text for text, _ in texts}) == 1
        with client_of(front) as client:
            for value in range(10):
                add(client, value)


def test_one_process_serves_the_same():
    with running(*MODELS) as server:
        has_all(server)
        serves(server)


def test_without_nats_nothing_fails(tmp_path):
    folder = tmp_path / "nats"
    folder.mkdir()
    with program(Nats, folder) as nats:
        arguments = planes(nats, "nats", "nats")
        with fleet(f"file://{tmp_path}/fleet", *arguments) as (front, there):
            expected, _ = streamed(front, "slow", 250)
            for worker in there:
                came(worker, "nats", front)
            failures, done, is_over = [], [], threading.Event()

            def ask():
                with client_of(front) as client:
                    while not is_over.is_set():
                        try:
                            add(client)
                            text, usage = streamed(front, "slow", 250)
                            assert (text, usage.completion_tokens) == (expected, 250)
                            done.append(text)
                        except Exception as error:
                            failures.append(repr(error))

            def go_on():
                """Waits until more texts came to their end than were under way."""
                before = len(done) + len(failures)
                eventually("texts go on", lambda: len(done) + len(failures) > before + 6)

            with concurrent.futures.ThreadPoolExecutor(6) as pool:
                asking = [pool.submit(ask) for _ in range(6)]
                eventually("all ask", lambda: total(front, "stator_worker_calls") == 6)
                nats.stop()
                time.sleep(5)
                go_on()
                nats.start()
                go_on()
                is_over.set()
                for thread in asking:
                    thread.result(PATIENCE_SECONDS)
            print(f"{len(done)} texts while nats was away for 5 s, {len(failures)} failures")
            assert not failures and len(done) > 10
            before = counter(front, "kv_events", "words")

            def are_heard():
                chat(front, time.monotonic())
                return counter(front, "kv_events", "words") > before

            eventually("events are heard again", are_heard)


def lines(server, *parts):
    return [line for line in list(server.log) if all(part in line for part in parts)]


def test_an_outage_of_nats_is_told_once_with_its_address(tmp_path):
    with program(Nats, tmp_path) as nats, \
            running("--discovery", f"file://{tmp_path}/fleet", *MODELS, *planes(nats, "nats", "nats"),
                    role="worker") as worker:
        eventually("it is connected", lambda: lines(worker, "connected to nats"))
        nats.stop()
        eventually("it is lost", lambda: lines(worker, "lost the connection to nats"))
        # Long enough for some attempts.
        time.sleep(3)
        nats.start()
        eventually("it is back", lambda: len(lines(worker, '"message":"connected to nats"')) >= 2)
        warned = lines(worker, '"WARN"', "nats")
        assert len(warned) == 1 and f"127.0.0.1:{nats.port}" in warned[0], warned
        assert not lines(worker, "async_nats"), "the library names no server"


def test_a_server_that_is_not_there_or_not_used_is_told(tmp_path):
    where = ["--nats", f"nats://user:secret@127.0.0.1:{free_port()}"]
    started = running("--discovery", f"file://{tmp_path}/fleet", *MODELS, *where,
                      "--event-plane", "nats", role="worker")
    with started as worker:
        eventually("it is told", lambda: lines(worker, '"WARN"', "nats cannot be reached"))
        assert not lines(worker, "secret")
        time.sleep(1)
        assert len(lines(worker, '"WARN"')) == 1
    with running("--discovery", f"file://{tmp_path}/fleet", *MODELS, *where, role="worker") as worker:
        assert lines(worker, '"WARN"', "--nats is given and not used")
