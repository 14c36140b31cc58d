"""Explicit model control: clients load, load anew and unload, and running requests finish."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.grpc import service_pb2 as pb

from conftest import running
from patience import PATIENCE_SECONDS, eventually
from test_repository import ONE, identity, infer, slow, states
from wire import Client, array_input, denied, refused, write_model

INVALID = grpc.StatusCode.INVALID_ARGUMENT
INTERNAL = grpc.StatusCode.INTERNAL
NOT_FOUND = grpc.StatusCode.NOT_FOUND
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
def explicit(tmp_path):
    """A server whose clients load, over an empty repository; with a built-in of its own."""
    flags = ["--model-control-mode", "explicit", "--builtin", "given=identity,delay_ms=0"]
    with running("--model-repository", str(tmp_path), *flags) as server, Client(server) as client:
        client.root = tmp_path
        yield client


def test_the_index_follows_load_and_unload(explicit):
    write_model(explicit.root, "m", identity("m"))
    assert states(explicit) == {("given", "1"): ("READY", ""), ("m", ""): ("", "")}
    explicit.load_model("m")
    assert states(explicit)["m", "1"] == ("READY", "")
    explicit.unload_model("m")
    # It is taken apart behind the answer.
    eventually("it is unloaded", lambda: states(explicit)["m", "1"] == ("UNAVAILABLE", "unloaded"))
    ready = explicit.stub.RepositoryIndex(pb.RepositoryIndexRequest(ready=True))
    assert [model.name for model in ready.models] == ["given"]
    named = pb.RepositoryIndexRequest(repository_name="r")
    refused(lambda: explicit.stub.RepositoryIndex(named), grpc.StatusCode.UNIMPLEMENTED)


def test_an_unloaded_model_has_no_available_versions(explicit):
    explicit.unload_model("given")
    denied(lambda: infer(explicit, "given"), NOT_FOUND, "'given' has no available versions")
    denied(lambda: infer(explicit, "given", version="1"), UNAVAILABLE,
           "version 1 is not at ready state")
    denied(lambda: explicit.get_model_metadata("given"), NOT_FOUND, "Request for unknown model")
    denied(lambda: explicit.get_inference_statistics("given"), INVALID, "is not available")
    assert not explicit.is_model_ready("given")
    explicit.load_model("given")
    assert infer(explicit, "given") == "1", "a model of the command line comes back"


def test_a_config_override_lasts_until_the_next_load(explicit):
    write_model(explicit.root, "m", identity("m"), versions=(1, 2))
    field = {"data_type": "TYPE_FP32", "dims": [4]}
    config = {"backend": "identity", "max_batch_size": 4, "input": [{"name": "INPUT0", **field}],
              "output": [{"name": "OUTPUT0", **field}],
              "version_policy": {"specific": {"versions": [1]}}}
    for backend in ({"backend": "identity"}, {}):
        config.pop("backend", None)
        config.update(backend)
        explicit.load_model("m")
        assert infer(explicit, "m") == "2"
        explicit.load_model("m", config=json.dumps(config))
        assert infer(explicit, "m", np.ones([2, 4], np.float32)) == "1"
        eventually("it is unloaded", lambda: states(explicit)["m", "2"] == ("UNAVAILABLE", "unloaded"))
    config.pop("version_policy")
    explicit.load_model("given", config=json.dumps(config))
    assert infer(explicit, "given", np.ones([2, 4], np.float32)) == "1"


def test_files_of_a_load_stand_for_the_whole_folder(explicit):
    write_model(explicit.root, "m", identity("m"), versions=(3,))
    explicit.load_model("m")
    config = json.dumps({"backend": "identity", "input": [
        {"name": "INPUT0", "data_type": "TYPE_FP32", "dims": [-1]}], "output": [
        {"name": "OUTPUT0", "data_type": "TYPE_FP32", "dims": [-1], "label_filename": "l.txt"}]})
    explicit.load_model("m", config=config, files={"file:7/w.bin": b"w", "file:l.txt": b"cat"})
    output = triton.InferRequestedOutput("OUTPUT0", class_count=1)
    answer = explicit.infer("m", [array_input("INPUT0", ONE)], outputs=[output])
    assert answer.as_numpy("OUTPUT0").tolist() == [b"1.000000:0:cat"]
    assert answer.get_response().model_version == "7"
    explicit.load_model("m")
    assert infer(explicit, "m") == "3", "the folder itself was not touched"


def test_files_of_a_load_are_gone_with_the_server(tmp_path):
    config = json.dumps({"backend": "identity", "input": [
        {"name": "INPUT0", "data_type": "TYPE_FP32", "dims": [-1]}], "output": [
        {"name": "OUTPUT0", "data_type": "TYPE_FP32", "dims": [-1]}]})
    flags = ["--no-default-model", "--model-control-mode", "explicit"]
    with running(*flags, environment={"TMPDIR": str(tmp_path)}) as server:
        with triton.InferenceServerClient(server.address) as client:
            client.load_model("m", config=config, files={"file:1/w.bin": b"w"})
        assert [folder.name[:13] for folder in tmp_path.iterdir()] == ["stator-model-"]
        server.terminate()
        assert server.wait() == 0
    assert not list(tmp_path.iterdir())


def load(name, **parameters):
    sent = pb.RepositoryModelLoadRequest(model_name=name)
    for key, value in parameters.items():
        kind = {str: "string", bytes: "bytes", bool: "bool", int: "int64"}[type(value)]
        setattr(sent.parameters[key], f"{kind}_param", value)
    return sent


CONFIG = '{"backend": "mock"}'
REFUSALS = {
    "not there": (load("nope"), INTERNAL,
                  "failed to load 'nope', failed to poll from model repository"),
    "broken config": (load("m", config="{"), INTERNAL, "failed to load 'm'"),
    "unknown field": (load("m", config='{"max_batch": 1}'), INTERNAL, "failed to load 'm'"),
    "unknown backend": (load("m", config='{"backend": "x"}'), INTERNAL, "failed to load 'm'"),
    "files without config": (load("m", **{"file:1/w": b""}), INTERNAL, "failed to load 'm'"),
    "escape": (load("m", config=CONFIG, **{"file:../x": b""}), INTERNAL, "failed to load 'm'"),
    "absolute": (load("m", config=CONFIG, **{"file:/tmp/x": b""}), INTERNAL, "failed to load 'm'"),
    "over-long": (load("m", config=CONFIG, **{"file:" + "x/" * 5000 + "x": b""}), INTERNAL,
                  "failed to load 'm'"),
    "unknown parameter": (load("m", colour="red"), INVALID, "colour"),
    "mistyped config": (load("m", config=1), INVALID, "'config'"),
    "mistyped file": (load("m", config=CONFIG, **{"file:1/w": "text"}), INVALID, "'file:1/w'"),
    "no name": (load(""), INVALID, "Model name cannot be empty"),
    "blank name": (load(" \t"), INVALID, "Model name cannot be empty"),
    **{f"path {name}": (load(name), INVALID, "must not contain path traversal characters") for name in ("../m", "a/b", "..", ".")},
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_load_that_is_refused_leaves_the_old_version(explicit, case):
    write_model(explicit.root, "m", identity("m"))
    explicit.load_model("m")
    sent, code, fragment = REFUSALS[case]
    refused(lambda: explicit.stub.RepositoryModelLoad(sent), code, fragment)
    assert infer(explicit, "m") == "1" and states(explicit)["m", "1"] == ("READY", "")
    assert not (explicit.root / "x").exists()


def test_failed_loads_of_unknown_names_leave_nothing_behind(explicit):
    before = explicit.get_model_repository_index()
    for number in range(20):
        refused(lambda: explicit.stub.RepositoryModelLoad(load(f"nope{number}")), INTERNAL, "failed to poll")
        broken = load(f"odd{number}", config='{"backend": "x"}', **{"file:1/w": b""})
        refused(lambda: explicit.stub.RepositoryModelLoad(broken), INTERNAL, f"failed to load 'odd{number}'")
    assert explicit.get_model_repository_index() == before
    unknown = "Request for unknown model: 'nope1' is not found"
    refused(lambda: explicit.stub.ModelMetadata(pb.ModelMetadataRequest(name="nope1")), NOT_FOUND, unknown)


def test_unloading_the_unknown_is_fine_and_its_parameters_are_checked(explicit):
    explicit.unload_model("nope")
    explicit.unload_model("given", unload_dependents=True)
    assert not explicit.is_model_ready("given")
    unload = lambda name, **parameters: explicit.stub.RepositoryModelUnload(
        pb.RepositoryModelUnloadRequest(model_name=name, parameters=parameters))
    wrong = pb.ModelRepositoryParameter(string_param="yes")
    refused(lambda: unload("given", unload_dependents=wrong), INVALID,
            "invalid value type for 'unload_dependents' parameter")
    refused(lambda: unload(""), INVALID, "Model name cannot be empty")
    for name in ("../m", "a/b"):
        refused(lambda: unload(name), INVALID, "must not contain path traversal characters")


def test_a_model_that_never_loaded_is_unavailable_and_says_why(explicit):
    write_model(explicit.root, "m", 'backend: "nonsense"\n')
    denied(lambda: explicit.load_model("m"), INTERNAL, "failed to load 'm'", "nonsense")
    state, reason = states(explicit)["m", "1"]
    assert state == "UNAVAILABLE" and "nonsense" in reason
    denied(lambda: infer(explicit, "m"), NOT_FOUND, "'m' has no available versions")
    assert explicit.is_server_ready()
    write_model(explicit.root, "m", identity("m"))
    explicit.load_model("m")
    assert infer(explicit, "m") == "1"


@pytest.mark.parametrize("flags, loaded", [
    ([], set()), (["--load-model", "a"], {"a"}), (["--load-model", "*"], {"a", "b"}),
])
def test_explicit_mode_starts_with_what_load_model_names(tmp_path, flags, loaded):
    for name in ("a", "b"):
        write_model(tmp_path, name, identity(name))
    flags = ["--model-control-mode", "explicit", *flags]
    with running("--model-repository", str(tmp_path), *flags) as server, Client(server) as client:
        assert {name for name in ("a", "b") if client.is_model_ready(name)} == loaded


@pytest.mark.parametrize("how", ["unload", "reload"])
def test_a_running_request_finishes_on_the_model_it_began_on(explicit, how):
    write_model(explicit.root, "m", slow("m"))
    explicit.load_model("m")
    answers = explicit.begin("m", [array_input("INPUT0", ONE)])
    if how == "unload":
        explicit.unload_model("m")
        assert states(explicit)["m", "1"] == ("UNLOADING", "")
        denied(lambda: infer(explicit, "m"), NOT_FOUND, "'m' has no available versions")
    else:
        write_model(explicit.root, "m", identity("m"), versions=(2,))
        explicit.load_model("m")
        assert infer(explicit, "m") == "2"
    assert answers.empty(), "the request was over before the model was taken away"
    result, error = answers.get(timeout=PATIENCE_SECONDS)
    assert error is None and result.as_numpy("OUTPUT0").tolist() == [1]
    assert result.get_response().model_version == "1"
    eventually("it is unloaded", lambda: states(explicit)["m", "1"] == ("UNAVAILABLE", "unloaded"))


def test_no_request_is_lost_while_a_model_is_loaded_again_and_again(explicit):
    write_model(explicit.root, "m", identity("m"))
    explicit.load_model("m")
    stop, counts = threading.Event(), []

    def call():
        with Client(explicit.server) as client:
            count = 0
            while not stop.is_set():
                infer(client, "m")
                count += 1
            counts.append(count)

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    for _ in range(30):
        explicit.load_model("m")
    stop.set()
    for caller in callers:
        caller.join()
    assert len(counts) == 4 and min(counts) > 0, "a caller ended with an error"


def test_concurrent_loads_and_unloads_end_in_a_callable_state(explicit):
    write_model(explicit.root, "m", identity("m"))
    calls = [explicit.load_model, explicit.unload_model] * 16
    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(call, "m") for call in calls]:
            done.result()
    explicit.load_model("m")
    assert infer(explicit, "m") == "1"


@pytest.mark.parametrize("method", ["RepositoryModelLoad", "RepositoryModelUnload"])
def test_the_answer_tells_a_kserve_client_what_was_done(explicit, method):
    call = explicit.channel.unary_unary(f"/inference.GRPCInferenceService/{method}",
                                        request_serializer=lambda raw: raw,
                                        response_deserializer=lambda raw: raw)
    # The request's field 2 is model_name; the answer's 1 is that, and 2 isLoaded or isUnloaded.
    assert call(b"\x12\x05given") == b"\x0a\x05given\x10\x01"


def test_health_follows_load_and_unload(explicit):
    stub = health_pb2_grpc.HealthStub(explicit.channel)
    status = lambda name: stub.Check(health_pb2.HealthCheckRequest(service=name)).status
    explicit.unload_model("given")
    eventually("health says so", lambda: status("given") == NOT_SERVING)
    assert status("") == SERVING
    explicit.load_model("given")
    eventually("health says so", lambda: status("given") == SERVING)


def test_a_health_watch_tells_each_change_once(explicit):
    watch = health_pb2_grpc.HealthStub(explicit.channel).Watch(
        health_pb2.HealthCheckRequest(service="given"), timeout=PATIENCE_SECONDS)
    seen = [next(watch).status]
    explicit.unload_model("given")
    with pytest.raises(grpc.RpcError):
        while True:
            seen.append(next(watch).status)
    assert seen == [SERVING, NOT_SERVING]
