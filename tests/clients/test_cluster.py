"""A fleet: frontends that serve the models of workers in other processes."""

import concurrent.futures
import contextlib
import json
import shutil
import subprocess
import time

import grpc
import numpy as np
import openai
import pytest
import tritonclient.grpc as triton
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc
from tritonclient.utils import InferenceServerException

from chaos import Streams, Sums, add, total
from conftest import free_port, running, sdk_of
from patience import NEVER_MS, PATIENCE_SECONDS, eventually
from real_models import real_encoder, real_model
from test_lora import write_adapter
from wire import Stream, request

BUILTINS = ["simple=add_sub", "identity=identity,delay_ms=1,echo_parameters=false", "repeat_int32", "sequence", "words=mock",
            "slow=mock,pace_ms=10,context_length=4000,reply=" + "so " * 500, "party=mock,reply=Grüße 🎉!"]
MODELS = ["--no-default-model", *(part for spec in BUILTINS for part in ("--builtin", spec))]
# Whoever ends lets everything come to its end.
UNHURRIED = ["--shutdown-grace-ms", str(NEVER_MS)]


def frontend(discovery, *arguments):
    return running("--discovery", discovery, *arguments, role="frontend")


def worker(discovery, *arguments, models=MODELS):
    return running("--discovery", discovery, *models, *arguments, role="worker")


def joined(server, message="worker joined"):
    return sum(message in line for line in server.log)


def is_ready(client, model):
    try:
        return client.is_server_ready() and client.is_model_ready(model)
    except InferenceServerException:
        return False


def told(front, worker, message):
    """Returns the lines in which a frontend tells something of a worker: by its address, or by the
    name that it joined with."""
    lines = list(front.log)
    names = [json.loads(line)["instance"] for line in lines
             if "worker joined" in line and f"{worker.address}\"" in line]
    return [line for line in lines if message in line
            and any(f'{name}"' in line for name in [worker.address, *names])]


def computing(workers):
    """Returns the workers that compute texts."""
    return [worker for worker in workers if total(worker, "stator_running_sequences") > 0]


@contextlib.contextmanager
def client_of(server):
    with triton.InferenceServerClient(server.address) as client:
        yield client


def streamed(server, model="words", tokens=12, **options):
    """Returns the text of a streamed chat."""
    with sdk_of(server) as sdk:
        chunks = sdk.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "Count"}], max_tokens=tokens,
            temperature=0, stream=True, stream_options={"include_usage": True}, **options)
        parts, usage = [], None
        for chunk in chunks:
            parts += [choice.delta.content or "" for choice in chunk.choices]
            usage = chunk.usage or usage
    return "".join(parts), usage


@pytest.fixture(scope="module")
def discovery(tmp_path_factory):
    return f"file://{tmp_path_factory.mktemp('fleet')}"


@pytest.fixture(scope="module")
def fleet(discovery):
    """A frontend, one worker that was there before it and one that came after."""
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(worker(discovery))
        front = stack.enter_context(frontend(discovery))
        second = stack.enter_context(worker(discovery))
        eventually("both workers joined", lambda: joined(front) == 2)
        with client_of(front) as client:
            for spec in BUILTINS:
                eventually(spec, lambda: is_ready(client, spec.partition("=")[0]))
        assert joined(front, "is not served") == 0, "equal workers have equal cards"
        yield front, first, second
        for process in (front, first, second):
            assert process.is_running(), "".join(process.log[-50:])


@pytest.fixture(scope="module")
def alone():
    """A `stator serve` with the same models."""
    with running(*MODELS) as server:
        yield server


def test_tensors_go_through_both_calls(fleet):
    with client_of(fleet[0]) as client:
        for value in range(20):
            add(client, value)
    with grpc.insecure_channel(fleet[0].address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        inputs = [pb.ModelInferRequest.InferInputTensor(name=name, datatype=kind, shape=[length])
                  for name, kind, length in (("IN", "INT32", 5), ("DELAY", "UINT32", 5),
                                             ("WAIT", "UINT32", 1))]
        raw = [np.arange(5, dtype=np.int32).tobytes(), bytes(20), bytes(4)]
        stream = Stream(stub)
        stream.send(request("repeat_int32", inputs, raw))
        stream.close()
        values = [np.frombuffer(message.infer_response.raw_output_contents[0], np.int32)[0]
                  for message in stream]
        assert values == [0, 1, 2, 3, 4]


def test_a_large_tensor_goes_through(fleet):
    with client_of(fleet[0]) as client:
        data = np.arange(1 << 20, dtype=np.float32)
        tensor = triton.InferInput("INPUT0", [data.size], "FP32")
        tensor.set_data_from_numpy(data)
        assert (client.infer("identity", [tensor]).as_numpy("OUTPUT0") == data).all()


def test_the_state_of_a_sequence_follows_it_from_worker_to_worker(fleet):
    with client_of(fleet[0]) as client:
        name = client.get_model_metadata("sequence").inputs[0].name
        totals = []
        for step in range(6):
            tensor = triton.InferInput(name, [1, 1], "INT32")
            tensor.set_data_from_numpy(np.array([[1]], np.int32))
            answer = client.infer("sequence", [tensor], sequence_id=7, sequence_start=step == 0,
                                  sequence_end=step == 5)
            totals.append(answer.as_numpy(answer.get_response().outputs[0].name).item())
        assert totals == [1, 2, 3, 4, 5, 6]


def test_texts_stream_as_from_one_process(fleet, alone):
    for model in ("words", "party"):
        text, usage = streamed(fleet[0], model)
        assert (text, usage) == streamed(alone, model) and text


def test_metadata_and_configurations_are_those_of_one_process(fleet, alone):
    with client_of(fleet[0]) as there, client_of(alone) as here:
        for spec in BUILTINS:
            name = spec.partition("=")[0]
            assert there.get_model_metadata(name) == here.get_model_metadata(name)
            assert there.get_model_config(name) == here.get_model_config(name)
        index = [(model.name, model.state) for model in there.get_model_repository_index().models]
        assert index == [(model.name, model.state)
                         for model in here.get_model_repository_index().models]


def test_all_doors_agree_on_what_is_ready(fleet):
    with client_of(fleet[0]) as client:
        assert client.is_server_ready() and not client.is_model_ready("nobody")
    with sdk_of(fleet[0]) as sdk:
        names = {model.id for model in sdk.models.list().data}
        assert {"words", "slow", "party"} <= names
    with grpc.insecure_channel(fleet[0].address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for name in ("", "simple"):
            status = stub.Check(health_pb2.HealthCheckRequest(service=name)).status
            assert status == health_pb2.HealthCheckResponse.SERVING


def test_nothing_is_ready_without_workers(tmp_path):
    discovery = f"file://{tmp_path}"
    with frontend(discovery, "--worker-wait-ms", "200") as front, client_of(front) as client:
        assert not client.is_server_ready()
        with worker(discovery) as only:
            eventually("the worker is there", lambda: is_ready(client, "simple"))
            add(client)
            only.stop()
        eventually("it is gone", lambda: not is_ready(client, "simple"))
        with pytest.raises(InferenceServerException) as error:
            add(client)
        assert "simple" in str(error.value)
        with worker(discovery):
            eventually("another one is there", lambda: is_ready(client, "simple"))
            add(client)


def test_a_worker_that_is_asked_to_end_fails_nobody(tmp_path):
    discovery = f"file://{tmp_path}"
    with frontend(discovery) as front, worker(discovery), \
            worker(discovery, *UNHURRIED) as second:
        with client_of(front) as client:
            eventually("both workers joined", lambda: joined(front) == 2)
            eventually("a model is ready", lambda: is_ready(client, "slow"))
        with Streams(front, 2, tokens=20, model="slow") as streams, Sums(front) as sums:
            loads = streams, sums
            eventually("both get on", lambda: all(load.done > 0 for load in loads))
            second.terminate()
            assert second.wait() == 0, "".join(second.log[-20:])
            before = [load.done for load in loads]
            eventually("they go on", lambda: all(
                load.done > done for load, done in zip(loads, before)))
        print(f"{streams}; {sums}; before the worker's end {before}")
        for load, done in zip(loads, before):
            load.check()
            assert load.done > done > 0
        assert any("shut down" in line for line in second.log)


def test_a_text_comes_to_its_end_on_a_worker_that_is_asked_to_end(tmp_path):
    discovery = f"file://{tmp_path}"
    with frontend(discovery) as front, worker(discovery, *UNHURRIED) as only, \
            client_of(front) as client:
        eventually("the model is ready", lambda: is_ready(client, "slow"))
        with sdk_of(front) as sdk:
            chunks = sdk.completions.create(model="slow", prompt="x", max_tokens=400, stream=True,
                                            stream_options={"include_usage": True})
            next(chunks)
            only.terminate()
            eventually("it left", lambda: joined(front, "worker left") == 1)
            assert [chunk.usage for chunk in chunks][-1].completion_tokens == 400
        assert only.wait() == 0, "".join(only.log[-20:])
        with grpc.insecure_channel(front.address) as channel:
            ask = health_pb2.HealthCheckRequest(service="slow")
            stub = health_pb2_grpc.HealthStub(channel)
            eventually("health says so", lambda: (
                stub.Check(ask).status == health_pb2.HealthCheckResponse.NOT_SERVING))


def test_a_worker_that_is_killed_fails_no_unary_request(tmp_path):
    discovery = f"file://{tmp_path}"
    with frontend(discovery, "--router-mode", "round-robin") as front, \
            worker(discovery), worker(discovery) as second, client_of(front) as client:
        eventually("both workers joined", lambda: joined(front) == 2)
        eventually("a model is ready", lambda: is_ready(client, "simple"))
        for value in range(200):
            if value == 50:
                second.stop()
            add(client, value)
        eventually("it left", lambda: joined(front, "worker left") == 1)
        add(client)
        assert streamed(front)[0]


def test_texts_go_on_elsewhere_when_their_worker_is_killed(tmp_path):
    discovery, models = f"file://{tmp_path}", ["--no-default-model", "--builtin",
                                               "paced=mock,pace_ms=10"]
    with frontend(discovery) as front, worker(discovery, models=models) as one, \
            worker(discovery, models=models) as two, client_of(front) as client:
        eventually("both workers joined", lambda: joined(front) == 2)
        eventually("the model is ready", lambda: is_ready(client, "paced"))
        undisturbed = streamed(front, "paced", tokens=150)
        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            texts = [pool.submit(streamed, front, "paced", tokens=150) for _ in range(6)]
            victim, *_ = eventually("they are computed", lambda: computing([one, two]))
            victim.stop()
            for text in texts:
                (words, usage), (expected, counted) = text.result(), undisturbed
                assert words == expected
                # What was found in a cache differs: the first text was the first to be computed.
                assert usage.prompt_tokens == counted.prompt_tokens
                assert usage.completion_tokens == counted.completion_tokens


def test_another_card_under_the_same_name_is_a_conflict(tmp_path):
    discovery = f"file://{tmp_path}"
    other = ["--no-default-model", "--builtin", "words=mock,context_length=64"]
    with frontend(discovery) as front, worker(discovery), worker(discovery, models=other):
        eventually("it is told", lambda: joined(front, "is not served") == 1)
        line = next(line for line in front.log if "is not served" in line)
        assert "context_length" in line and "words" in line, line
        with client_of(front) as client:
            eventually("the older one is served", lambda: is_ready(client, "words"))


def test_a_frontend_calls_only_its_namespaces(tmp_path):
    discovery = f"file://{tmp_path}"
    tensor = ["--no-default-model", "--builtin", "simple=add_sub"]
    with worker(discovery, "--namespace", "blue-1", models=tensor), \
            frontend(discovery, "--namespace", "green") as green, \
            frontend(discovery, "--namespace-prefix", "blue") as blue, \
            client_of(green) as nobody, client_of(blue) as client:
        eventually("it is served", lambda: is_ready(client, "simple"))
        add(client)
        assert not is_ready(nobody, "simple")


def test_workers_at_known_addresses_need_no_store(tmp_path):
    with worker(f"file://{tmp_path}") as one, worker(f"file://{tmp_path}") as two, \
            frontend(f"static://{one.address},{two.address}") as front, client_of(front) as client:
        eventually("both workers joined", lambda: joined(front) == 2)
        eventually("a model is ready", lambda: is_ready(client, "simple"))
        one.terminate()
        for value in range(100):
            add(client, value)


@pytest.mark.parametrize("role, arguments, fragment", [
    ("worker", ["--discovery", "nats://a"], "--discovery: expected file:///DIR"),
    ("worker", ["--discovery", "static://a:1"], "for frontends"),
    ("worker", ["--worker-address", "0.0.0.0:0"], "--advertise"),
    ("worker", ["--advertise", "here"], "--advertise: expected HOST:PORT"),
    ("worker", ["--namespace", "a/b"], "--namespace"),
    ("worker", ["--worker-tls-ca", "a", "--nats", "nats://a:1", "--request-plane", "nats"],
     "--request-plane: over nats the roles show no certificates"),
    ("worker", ["--nats", "tls://a:1", "--request-plane", "nats", "--nats-ca", "/nowhere"],
     "the authorities of NATS, `/nowhere`: "),
    ("frontend", ["--nats", "tls://a:1", "--event-plane", "nats", "--nats-ca", "/dev/null"],
     "the authorities of NATS, `/dev/null`: it has no certificate"),
    ("frontend", ["--namespace-prefix", "a/b"], "--namespace-prefix"),
])
def test_what_cannot_be_served_stops_the_start(role, arguments, fragment):
    with pytest.raises(RuntimeError, match="did not start") as error:
        with running(*arguments, role=role):
            pass
    assert fragment in str(error.value)


def test_a_real_model_says_the_same_through_a_frontend_without_files(tmp_path):
    discovery, model = f"file://{tmp_path}", f"smollm={real_model()}"
    with worker(discovery, models=[model]), frontend(discovery) as front, \
            client_of(front) as client, running(model) as alone:
        eventually("the model is ready", lambda: is_ready(client, "smollm"))
        assert streamed(front, "smollm") == streamed(alone, "smollm")


def test_adapters_are_models_of_their_workers(tmp_path):
    discovery, model = f"file://{tmp_path}/fleet", f"smollm={real_model()}"
    folder = write_adapter(tmp_path / "adapter", 1)
    models = [model, "--lora-modules", f"tuned={folder}"]
    with worker(discovery, models=models), frontend(discovery) as front, \
            client_of(front) as client, running(*models) as alone:
        eventually("the adapter is ready", lambda: is_ready(client, "tuned"))
        eventually("its base is ready", lambda: is_ready(client, "smollm"))
        tuned, plain = (streamed(front, name)[0] for name in ("tuned", "smollm"))
        assert tuned == streamed(alone, "tuned")[0] != plain
        with sdk_of(front) as sdk:
            parents = {model.id: getattr(model, "parent", None) for model in sdk.models.list()}
        assert parents == {"smollm": None, "tuned": "smollm"}


def test_an_encoder_makes_the_same_vectors(tmp_path):
    discovery, model = f"file://{tmp_path}", f"minilm={real_encoder()}"
    with worker(discovery, models=[model]), frontend(discovery) as front, \
            client_of(front) as client, running(model) as alone:
        eventually("the model is ready", lambda: is_ready(client, "minilm"))
        texts = ["one", "two words", "ein dritter Satz mit Umlauten: äöü"]
        with sdk_of(front) as there, sdk_of(alone) as here:
            ask = {"model": "minilm", "input": texts}
            answers = [sdk.embeddings.create(**ask).data for sdk in (there, here)]
        assert [one.embedding for one in answers[0]] == [one.embedding for one in answers[1]]


def test_a_worker_that_is_asked_by_a_call_finishes_and_ends(tmp_path):
    discovery = f"file://{tmp_path}"
    with frontend(discovery) as front, client_of(front) as client, sdk_of(front) as sdk, \
            worker(discovery, *UNHURRIED) as one, worker(discovery, *UNHURRIED) as two:
        eventually("both workers joined", lambda: joined(front) == 2)
        eventually("the model is ready", lambda: is_ready(client, "slow"))
        chunks = sdk.completions.create(model="slow", prompt="x", max_tokens=400, stream=True,
                                        stream_options={"include_usage": True})
        next(chunks)
        [asked] = eventually("it is computed", lambda: computing([one, two]))
        with grpc.insecure_channel(asked.address) as channel:
            assert channel.unary_unary("/stator.worker.v1.Worker/Drain")(b"", timeout=PATIENCE_SECONDS)
        eventually("it left", lambda: joined(front, "worker left") == 1)
        add(client)
        # The first signal is only one more wish for what happens already.
        asked.terminate()
        assert [chunk.usage for chunk in chunks][-1].completion_tokens == 400
        assert asked.wait() == 0, "".join(asked.log[-20:])
    assert not any("cut off" in line for line in asked.log)


def test_a_second_signal_ends_a_worker_at_once(tmp_path):
    discovery = f"file://{tmp_path}"
    # A text of half an hour, which the worker may bring to its end.
    models = ["--no-default-model", "--builtin", "crawl=mock,pace_ms=500"]
    with frontend(discovery, "--worker-wait-ms", "200") as front, client_of(front) as client, \
            worker(discovery, *UNHURRIED, models=models) as only:
        eventually("the model is ready", lambda: is_ready(client, "crawl"))
        with sdk_of(front) as sdk:
            chunks = sdk.completions.create(model="crawl", prompt="x", max_tokens=3600, stream=True)
            next(chunks)
            only.terminate()
            # Two signals at once are one.
            eventually("it has heard the first one", lambda: joined(only, "shutting down") == 1)
            time.sleep(1)
            assert only.is_running(), "the text is not at its end"
            only.terminate()
            only.wait()
            with pytest.raises(openai.APIError):
                list(chunks)


@pytest.fixture
def etcd(tmp_path):
    """A real etcd of its own."""
    binary = shutil.which("etcd")
    assert binary, "etcd is not installed: Debian's package is etcd-server"
    ports = [free_port(), free_port()]
    client, peer = (f"http://127.0.0.1:{port}" for port in ports)
    process = subprocess.Popen(
        [binary, "--data-dir", str(tmp_path / "etcd"), "--listen-client-urls", client,
         "--advertise-client-urls", client, "--listen-peer-urls", peer,
         "--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}",
         "--unsafe-no-fsync"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield f"etcd://127.0.0.1:{ports[0]}"
    finally:
        process.kill()
        process.wait()


def test_a_fleet_meets_in_etcd(etcd):
    with worker(etcd) as first, frontend(etcd) as front, worker(etcd), client_of(front) as client:
        eventually("both workers joined", lambda: joined(front) == 2)
        eventually("a model is ready", lambda: is_ready(client, "simple"))
        add(client)
        assert streamed(front)[0]
        first.terminate()
        for value in range(50):
            add(client, value)
        assert first.wait() == 0
        eventually("it left", lambda: joined(front, "worker left") == 1)
        add(client)
