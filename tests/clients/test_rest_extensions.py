"""Triton's extensions over REST: parameters, headers, regions, loading, traces, logs."""

import base64
import json
import os

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.utils.shared_memory as shm
from tritonclient.utils import InferenceServerException, serialize_byte_tensor

from conftest import running
from patience import eventually
from test_repository import declared
from test_rest import FIVE, FLAGS, infer, sent
from test_rest_validation import refused
from wire import call, write_model

SCORES = declared("scores", "identity", [("INPUT0", "TYPE_FP32", "3")],
                  [("OUTPUT0", "TYPE_FP32", "3")]).replace(
                      'name: "OUTPUT0"', 'name: "OUTPUT0" label_filename: "labels.txt"')


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A server whose clients may load, register regions and send headers on."""
    root = tmp_path_factory.mktemp("models")
    write_model(root, "scores", SCORES, labels_txt="cat\ndog\nbird\n")
    trace = ["--trace-file", str(root / "trace.json")]
    with running("--model-repository", str(root), "--model-control-mode", "explicit",
                 "--load-model", "scores", "--allow-client-shm", "--http-header-forward-pattern",
                 "X-.*|tenant", *trace, *FLAGS) as server:
        yield server
        assert server.is_running(), "the server died under the tests"


@pytest.fixture(scope="module")
def web(served):
    with triton.InferenceServerClient(served.http) as client:
        yield client


def denied(call, status, *fragments):
    """Asserts that a call of Triton's client fails with a status and a text."""
    with pytest.raises(InferenceServerException) as caught:
        call()
    assert caught.value.status() == str(status), caught.value
    for fragment in fragments:
        assert fragment in caught.value.message(), caught.value


def test_parameters_of_every_kind_go_and_come_back(served, web):
    mine = {"flag": False, "text": "\u017c", "half": 0.5, "low": -2**63, "high": 2**64 - 1, "none": ""}
    reply = infer(served, "echo", FIVE, parameters=mine, id="r").json()
    assert reply["parameters"] == mine and reply["id"] == "r"
    one = [sent("INPUT0", np.ones(1, np.float32), "FP32")]
    answer = web.infer("echo", one, parameters={"text": "t", "n": 5}, priority=3, timeout=5_000_000,
                       sequence_id=4, sequence_start=True, request_id="q")
    assert answer.get_response()["parameters"] == {"text": "t", "n": 5}
    assert answer.get_response()["id"] == "q"
    assert "parameters" not in infer(served, "identity", FIVE, parameters=mine).json()


def test_headers_that_match_become_parameters(served, web):
    headers = {"x-request": "r1", "X-Cased": "Kept", "tenant": "t", "tenant-id": "no", "other": "no"}
    one = [sent("INPUT0", np.ones(1, np.float32), "FP32")]
    answer = web.infer("echo", one, headers=headers, parameters={"tenant": "mine"})
    told = {key.lower(): value for key, value in answer.get_response()["parameters"].items()}
    assert told == {"x-request": "r1", "x-cased": "Kept", "tenant": "mine"}


def test_a_pattern_that_matches_all_cannot_steer_a_request():
    with running("--http-header-forward-pattern", ".*", *FLAGS) as server:
        headers = dict.fromkeys(["sequence_id", "priority", "timeout", "triton_x", "mine"], "1")
        reply = call(server, "/v2/models/echo/infer", {"inputs": [FIVE]}, headers=headers)
        assert reply.status == 200, reply.body
        assert set(reply.json()["parameters"]) & set(headers) == {"mine"}


@pytest.mark.parametrize("count, expected", [
    (1, [b"2.500000:1:dog"]), (2, [b"2.500000:1:dog", b"0.500000:2:bird"]),
    (99, [b"2.500000:1:dog", b"0.500000:2:bird", b"-1.000000:0:cat"]),
])
@pytest.mark.parametrize("binary", [True, False])
def test_the_highest_values_come_with_their_labels(web, count, expected, binary):
    data = sent("INPUT0", np.array([-1, 2.5, 0.5], np.float32), "FP32")
    output = triton.InferRequestedOutput("OUTPUT0", binary_data=binary, class_count=count)
    answer = web.infer("scores", [data], outputs=[output])
    plain = [e.encode() if isinstance(e, str) else e for e in answer.as_numpy("OUTPUT0").tolist()]
    assert plain == expected and answer.get_output("OUTPUT0")["datatype"] == "BYTES"


@pytest.fixture
def region(web):
    """Makes POSIX objects and registers them over REST."""
    handles = {}

    def make(name, size, offset=0):
        key = f"stator_rest_{os.getpid()}_{name}"
        handles[name] = shm.create_shared_memory_region(name, key, size, create_only=True)
        web.register_system_shared_memory(name, key, size - offset, offset=offset)
        return handles[name]

    yield make
    web.unregister_system_shared_memory()
    for handle in handles.values():
        shm.destroy_shared_memory_region(handle)


def lent(name, shape, datatype, *where):
    made = triton.InferInput(name, shape, datatype)
    return made.set_shared_memory(*where)


def output(*where, name="OUTPUT0"):
    made = triton.InferRequestedOutput(name)
    made.set_shared_memory(*where)
    return made


def test_tensors_lie_in_regions_or_partly(web, region):
    left, right = np.arange(16, dtype=np.int32).reshape(1, 16), np.full([1, 16], 7, np.int32)
    given, answered = region("in", 256), region("out", 128)
    shm.set_shared_memory_region(given, [left, right], offset=64)
    inputs = [lent("INPUT0", [1, 16], "INT32", "in", 64, 64), sent("INPUT1", right, "INT32")]
    outputs = [output("out", 64, 64), triton.InferRequestedOutput("OUTPUT1")]
    answer = web.infer("simple", inputs, outputs=outputs)
    assert np.array_equal(shm.get_contents_as_numpy(answered, np.int32, [1, 16], 64), left + right)
    assert np.array_equal(answer.as_numpy("OUTPUT1"), left - right)
    # NVIDIA's C++ client takes any parameters for those of binary data, so there are none.
    assert set(answer.get_output("OUTPUT0")) == {"name", "datatype", "shape"}
    assert "data" not in answer.get_output("OUTPUT0")


def test_strings_lie_in_regions(web, region):
    words = np.array([b"", b"one", b"x" * 500], dtype=object)
    packed = serialize_byte_tensor(words)
    given, answered, size = region("in", 600), region("out", 600), len(packed.item())
    shm.set_shared_memory_region(given, [packed])
    one = lent("INPUT0", [3], "BYTES", "in", size)
    answer = web.infer("words", [one], outputs=[output("out", 600)])
    assert shm.get_contents_as_numpy(answered, np.object_, [3]).tolist() == words.tolist()
    assert set(answer.get_output("OUTPUT0")) == {"name", "datatype", "shape"}


def test_regions_are_told_and_their_wrong_use_refused(web, region):
    region("a", 64)
    key = f"stator_rest_{os.getpid()}_a"
    assert web.get_system_shared_memory_status() == [
        {"name": "a", "key": key, "offset": 0, "byte_size": 64}]
    assert web.get_system_shared_memory_status("a")[0]["name"] == "a"
    denied(lambda: web.register_system_shared_memory("a", key, 64), 400, "already in manager")
    denied(lambda: web.register_system_shared_memory("b", "/nope", 64), 500,
           "Unable to open shared memory region: '/nope'")
    use = lambda *where: web.infer("identity", [lent("INPUT0", [2], "FP32", *where)])
    denied(lambda: use("x", 8), 404, "Unable to find shared memory region: 'x'")
    denied(lambda: use("a", 8, 60), 400, "Invalid offset + byte size")
    denied(lambda: use("a", 4), 400, "input byte size mismatch")
    two = [sent("INPUT0", np.ones(2, np.float32), "FP32")]
    denied(lambda: web.infer("identity", two, outputs=[output("a", 4)]), 500, "OUTPUT0")
    web.unregister_system_shared_memory("a")
    web.unregister_system_shared_memory("a")
    assert web.get_system_shared_memory_status() == []


def test_a_gpus_memory_is_refused_without_one(web):
    handle = base64.b64encode(bytes(64))
    denied(lambda: web.register_cuda_shared_memory("gpu", handle, 0, 64), 400)
    assert web.get_cuda_shared_memory_status() == []
    web.unregister_cuda_shared_memory()


def test_models_are_loaded_with_configurations_and_files(served, web):
    web.unload_model("scores")
    eventually("it is not ready", lambda: not web.is_model_ready("scores"))
    denied(lambda: web.infer("scores", [sent("INPUT0", np.ones(3, np.float32), "FP32")]), 404,
           "'scores' has no available versions")
    config = {"backend": "identity", "max_batch_size": 4, "version_policy": {"all": {}}, "input": [
        {"name": "INPUT0", "data_type": "TYPE_FP32", "dims": [2]}], "output": [
        {"name": "OUTPUT0", "data_type": "TYPE_FP32", "dims": [2], "label_filename": "l.txt"}]}
    web.load_model("scores", config=json.dumps(config),
                   files={"file:7/w.bin": b"\0\xff", "file:l.txt": b"cat\ndog"})
    rows = sent("INPUT0", np.array([[1, 2]], np.float32), "FP32")
    wanted = triton.InferRequestedOutput("OUTPUT0", class_count=1)
    answer = web.infer("scores", [rows], outputs=[wanted])
    assert answer.as_numpy("OUTPUT0").tolist() == [[b"2.000000:1:dog"]]
    assert answer.get_response()["model_version"] == "7"
    index = {model["name"]: model for model in web.get_model_repository_index()}
    assert index["scores"] == {"name": "scores", "version": "7", "state": "READY"}
    web.load_model("scores")
    assert web.get_model_config("scores")["max_batch_size"] == 0
    web.unload_model("words", unload_dependents=True)
    ready = call(served, "/v2/repository/index", {"ready": True}).json()
    assert "scores" in [m["name"] for m in ready] and "words" not in [m["name"] for m in ready]
    web.load_model("words")


def test_a_load_that_fails_is_told(served, web):
    denied(lambda: web.load_model("nope"), 500, "failed to load 'nope'")
    denied(lambda: web.load_model("scores", config="{"), 500, "failed to load 'scores'")
    body = {"parameters": {"config": '{"backend": "mock"}', "file:1/w": "no base64!"}}
    refused(call(served, "/v2/repository/models/scores/load", body), 400, "file:1/w")
    assert web.is_model_ready("scores")


def test_trace_settings_are_set_cleared_and_inherited(web):
    told = web.get_trace_settings()
    assert told["trace_level"] == ["OFF"] and told["trace_rate"] == "1000"
    assert web.update_trace_settings(settings={"trace_rate": "7"})["trace_rate"] == "7"
    assert web.get_trace_settings("echo")["trace_rate"] == "7"
    changed = web.update_trace_settings("echo", {"trace_rate": 3, "trace_level": ["TIMESTAMPS"]})
    assert (changed["trace_rate"], changed["trace_level"]) == ("3", ["TIMESTAMPS"])
    cleared = web.update_trace_settings("echo", {"trace_rate": None, "trace_level": None})
    assert (cleared["trace_rate"], cleared["trace_level"]) == ("7", ["OFF"])
    assert web.update_trace_settings(settings={"trace_rate": None}) == told
    denied(lambda: web.update_trace_settings(settings={"trace_file": "x"}), 501)
    denied(lambda: web.update_trace_settings("nope", {"trace_rate": "1"}), 400,
           "Request for unknown model : nope")


def test_log_settings_are_told_whole_and_checked(web):
    told = web.get_log_settings()
    assert told == {"log_file": "", "log_info": True, "log_warning": True, "log_error": True,
                    "log_verbose_level": 0, "log_format": "default"}
    assert web.update_log_settings({"log_verbose_level": 1}) == {**told, "log_verbose_level": 1}
    assert web.update_log_settings({"log_verbose_level": 0, "log_format": "default"}) == told
    denied(lambda: web.update_log_settings({"log_file": "x"}), 501)
    for settings in ({"log_info": 1}, {"log_verbose_level": -1}, {"log_format": "x"}, {"log_x": True}):
        denied(lambda: web.update_log_settings(settings), 400, list(settings)[0])
    assert web.get_log_settings() == told
