"""What clients see of workers that are lost, by what the frontend is told to do about it."""

import concurrent.futures
import contextlib
import pathlib
import time

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2_grpc
from tritonclient.utils import InferenceServerException

from chaos import completion, frames, posted, total
from conftest import Server, running
from patience import PATIENCE_SECONDS, eventually
from python_workers import python_worker
from test_cluster import client_of, frontend, is_ready, joined, worker
from wire import Stream, array_input, outputs_of, tensor, text_request

TEXT, TOKENS = "tell me a long story", 8000
MOCK = ["--no-default-model", "--builtin"]
PACED = [*MOCK, "paced=mock,pace_ms=20"]
SLOW = pathlib.Path(__file__).with_name("slow_worker.py")
# Workers have the client's request and nothing of the frontend's own.
NO_CANARIES = ["--canary-interval-ms", "0"]


@contextlib.contextmanager
def several(discovery, count):
    """Runs workers in a list; whoever is in it at the end is stopped."""
    start = lambda _: Server("--discovery", discovery, *PACED, role="worker")
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        workers = list(pool.map(start, range(count)))
    try:
        yield workers
    finally:
        for one in workers:
            one.stop()


def stop_who_has_it(workers):
    """Kills the worker that has the only text, and takes it out of the list."""
    holders = []

    def is_found():
        holders[:] = [one for one in workers if total(one, "stator_running_sequences") > 0]
        return holders

    eventually("a worker has it", is_found)
    assert len(holders) == 1, "there is one text"
    holders[0].stop()
    workers.remove(holders[0])


def await_migration(front, count):
    """Waits until a text has gone on elsewhere so often, and has tokens of its new worker."""
    eventually("it goes on", lambda: total(front, "stator_migrations_total") == count)
    before = total(front, "stator_generated_tokens_total")
    eventually("there are tokens", lambda: total(front, "stator_generated_tokens_total") > before)


class OpenAiText:
    """A text over OpenAI's API, and how it ended."""

    def __init__(self, front):
        self.front, self.end = front, None

    def pieces(self):
        body = {"model": "paced", "prompt": TEXT, "max_tokens": TOKENS, "temperature": 0,
                "stream": True}
        with posted(self.front.http, body) as answer:
            try:
                for frame in frames(answer):
                    yield frame["choices"][0]["text"]
            except RuntimeError as error:
                self.end = str(error)

    def check(self):
        assert self.end, "it did not end by a failure"
        assert "'service_unavailable'" in self.end, self.end


class GrpcText:
    """The same over ModelStreamInfer."""

    def __init__(self, front):
        self.front, self.end = front, None

    def pieces(self):
        streaming = tensor("streaming", "BOOL", [1])
        asked = text_request("paced", TEXT, extra=[streaming], raw=[b"\x01"], max_tokens=TOKENS,
                             temperature=0.0)
        with grpc.insecure_channel(self.front.address) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            stream = Stream(stub, metadata=[("triton_grpc_error", "true")])
            stream.send(asked)
            try:
                for message in stream:
                    yield outputs_of(message.infer_response)["text_output"][0].decode()
            except grpc.RpcError as error:
                self.end = error
            stream.close()

    def check(self):
        assert self.end, "it did not end by a failure"
        assert self.end.code() == grpc.StatusCode.UNAVAILABLE, self.end


@pytest.fixture(scope="module")
def undisturbed():
    """The text that nobody disturbs, at once."""
    with running(*MOCK, "paced=mock") as alone:
        return completion(alone.http, TEXT, TOKENS)[0]


@pytest.mark.parametrize("flags, losses, door", [
    (["--migration-limit", "0"], 0, OpenAiText), (["--migration-limit", "0"], 0, GrpcText),
    (["--migration-limit", "1"], 1, OpenAiText), ([], 3, OpenAiText), ([], 3, GrpcText),
])
def test_a_text_survives_as_many_losses_as_it_may_and_then_ends(tmp_path, undisturbed, flags,
                                                                losses, door):
    discovery, so_far = f"file://{tmp_path}", ""
    # One more than can be lost: it is not for want of workers that the text ends.
    with frontend(discovery, *flags, *NO_CANARIES) as front, client_of(front) as client, \
            several(discovery, losses + 2) as workers:
        eventually("all are there", lambda: joined(front) == losses + 2)
        eventually("the model is ready", lambda: is_ready(client, "paced"))
        text, killed = door(front), 0
        for piece in text.pieces():
            so_far += piece
            if len(so_far.split()) >= 10 * (killed + 1) and len(workers) > 1:
                stop_who_has_it(workers)
                killed += 1
                if killed <= losses:
                    await_migration(front, killed)
        text.check()
        assert killed == losses + 1 and len(so_far.split()) < TOKENS
        assert undisturbed.startswith(so_far)
        assert total(front, "stator_migrations_total") == losses
        # The worker that is left takes what comes next.
        assert len(workers) == 1 and completion(front.http, "x", 2)[2] == 2


def ask_slow(client):
    """Asks for a tensor, and returns it."""
    made = array_input("IN", np.array([4], np.int32))
    return client.infer("slow", [made], client_timeout=PATIENCE_SECONDS).as_numpy("OUT")[0]


def ask_sums(client):
    """Begins a sequence, and returns its first sum."""
    made = array_input("IN", np.array([5], np.int32))
    answer = client.infer("sums", [made], sequence_id=5, sequence_start=True, client_timeout=PATIENCE_SECONDS)
    return answer.as_numpy("OUT")[0]


@pytest.mark.parametrize("flags, ask, is_repeated", [
    ([], ask_slow, True), ([], ask_sums, False),
    (["--retry-accepted", "stateless"], ask_sums, False),
    (["--retry-accepted", "never"], ask_slow, False),
    (["--retry-accepted", "never"], ask_sums, False),
    (["--retry-accepted", "always"], ask_slow, True),
    (["--retry-accepted", "always"], ask_sums, True),
])
def test_a_tensor_request_whose_worker_is_lost_is_repeated_if_it_may_be(tmp_path, flags, ask,
                                                                        is_repeated):
    discovery, end = f"file://{tmp_path}/fleet", tmp_path / "end"
    with contextlib.ExitStack() as stack:
        front = stack.enter_context(frontend(discovery, *flags, *NO_CANARIES))
        client = stack.enter_context(client_of(front))
        workers = [stack.enter_context(python_worker(SLOW, discovery, end)) for _ in range(2)]
        pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor(1))
        eventually("both are there", lambda: joined(front) == 2)
        for model in ("slow", "sums"):
            eventually(model, lambda: is_ready(client, model))
        asked = pool.submit(ask, client)
        begun = lambda: [one for one in workers if one.says("begun")]
        eventually("one has begun it", begun)
        [first] = begun()
        # That it has accepted is on its way to the frontend, for a millisecond or two. A request
        # that is repeated in any case needs no margin.
        time.sleep(1 if is_repeated else 3)
        first.stop()
        end.touch()
        if is_repeated:
            assert asked.result(PATIENCE_SECONDS) == 5
            eventually("it was begun twice", lambda: len(begun()) == 2)
            return
        with pytest.raises(InferenceServerException) as failed:
            asked.result(PATIENCE_SECONDS)
        assert failed.value.status() == "StatusCode.UNAVAILABLE", failed.value
        assert begun() == [first], "it was begun once"


def built_in(name):
    """Returns what asks the built-in model of a name."""
    def ask(client):
        [given] = client.get_model_metadata(name).inputs
        [wanted] = client.get_model_metadata(name).outputs
        made = array_input(given.name, np.array([[4]], np.int32))
        options = {"sequence_id": 5, "sequence_start": True} if name == "sums" else {}
        return client.infer(name, [made], client_timeout=PATIENCE_SECONDS, **options).as_numpy(wanted.name)
    return ask


@pytest.mark.parametrize("flags, ask, is_repeated", [
    ([], built_in("slow"), True), ([], built_in("sums"), False),
    (["--retry-accepted", "never"], built_in("slow"), False),
], ids=["slow", "sums", "slow-never"])
def test_models_that_are_built_in_are_repeated_if_they_may_be_too(tmp_path, flags, ask, is_repeated):
    # Longer than it takes to kill a worker.
    discovery, delay = f"file://{tmp_path}", "delay_ms=8000"
    models = ["--no-default-model", "--builtin", f"sums=sequence,{delay}",
              "--builtin", f"slow=identity,datatype=INT32,dims=1,max_batch_size=1,{delay}"]
    with frontend(discovery, *flags, *NO_CANARIES) as front, client_of(front) as client, \
            worker(discovery, models=models) as one, worker(discovery, models=models) as other, \
            concurrent.futures.ThreadPoolExecutor(1) as pool:
        eventually("both are there", lambda: joined(front) == 2)
        for model in ("slow", "sums"):
            eventually(model, lambda: is_ready(client, model))
        asked = pool.submit(ask, client)
        has_it = lambda: [each for each in (one, other)
                          if total(each, "stator_open_calls") > 0]
        eventually("one has begun it", has_it)
        # That it has accepted is on its way to the frontend, for a millisecond or two. A request
        # that is repeated in any case needs no margin.
        time.sleep(1 if is_repeated else 3)
        [first] = has_it()
        first.stop()
        if is_repeated:
            assert asked.result(PATIENCE_SECONDS) is not None
            return
        with pytest.raises(InferenceServerException) as failed:
            asked.result(PATIENCE_SECONDS)
        assert failed.value.status() == "StatusCode.UNAVAILABLE", failed.value
