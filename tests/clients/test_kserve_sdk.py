"""KServe's Python SDK, unmodified: its gRPC and REST clients, and the stub of its own messages."""

import json
import pathlib
import subprocess
import sys

import pytest

from conftest import DATATYPES, running
from patience import PATIENCE_SECONDS

SCRIPT = pathlib.Path(__file__).with_name("kserve_calls.py")
SAMPLES = {
    "BOOL": [True, False], "UINT8": [0, 255], "UINT16": [0, 65535], "UINT32": [0, 2**32 - 1],
    "UINT64": [0, 2**64 - 1], "INT8": [-128, 127], "INT16": [-2**15, 2**15 - 1],
    "INT32": [-2**31, 2**31 - 1], "INT64": [-2**63, 2**63 - 1], "FP32": [-0.5, 3.0],
    "FP64": [-0.5, 1e300], "BYTES": ["", "\u017c\u00f3\u0142w"],
}
TWO = {"OUTPUT0": ["INT32", [1, 16], [[2 * n for n in range(16)]]]}


@pytest.fixture(scope="module")
def results():
    """What the SDK's calls gave, by door and name."""
    flags = ["--builtin", "simple=add_sub", "--model-control-mode", "explicit"]
    for datatype in DATATYPES:
        flags += ["--builtin", f"identity_{datatype.lower()}=identity,datatype={datatype}"]
    with running(*flags) as server:
        done = subprocess.run([sys.executable, str(SCRIPT), server.address, server.http],
                              capture_output=True, text=True, timeout=PATIENCE_SECONDS)
        assert done.returncode == 0, done.stderr[-3000:]
        assert server.is_running()
        yield json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("door", ["grpc", "rest"])
def test_health_is_understood(results, door):
    names = ["live", "ready", "model ready", "unknown ready"]
    assert [results[f"{door}: {name}"] for name in names] == [True, True, True, False]


@pytest.mark.parametrize("door", ["grpc", "rest"])
@pytest.mark.parametrize("datatype", SAMPLES)
def test_lists_come_back_as_they_went(results, door, datatype):
    found = results[f"{door}: list {datatype}"]
    assert found["model"] == f"identity_{datatype.lower()}"
    assert found["outputs"] == {"OUTPUT0": [datatype, [2], SAMPLES[datatype]]}


@pytest.mark.parametrize("door", ["grpc", "rest"])
@pytest.mark.parametrize("datatype, expected", [
    ("BOOL", [True, False]), ("FP16", [1.0, 0.0]), ("FP32", [1.0, 0.0]), ("INT64", [1, 0]),
    ("BYTES", ["a", "\u017c"]),
])
def test_arrays_come_back_as_they_went(results, door, datatype, expected):
    assert results[f"{door}: array {datatype}"]["outputs"] == {"OUTPUT0": [datatype, [2], expected]}


@pytest.mark.parametrize("door", ["grpc", "rest"])
def test_ids_parameters_and_wanted_outputs_are_understood(results, door):
    assert results[f"{door}: two inputs"] == {"id": "r-1", "model": "simple", "outputs": TWO}


@pytest.mark.parametrize("door, code", [("grpc", "NOT_FOUND"), ("rest", 404)])
def test_an_error_has_its_code_and_text(results, door, code):
    kind, found, text = results[f"{door}: unknown infer"]
    assert (kind, found) == ("error", code)
    assert "Request for unknown model: 'nope' is not found" in text


@pytest.mark.parametrize("call, expected", [
    ("metadata", ["triton"]), ("model metadata", ["simple", "stator"]),
    ("unload in Triton's form", ["simple", True]), ("load in Triton's form", ["simple", True]),
    ("unload", ["simple", True]), ("ready once unloaded", [False]),
    ("load", ["simple", True]), ("ready once loaded", [True]),
])
def test_the_protocols_own_stub_reads_the_answers(results, call, expected):
    assert results[f"stub: {call}"] == expected


def test_a_load_that_fails_is_an_error_for_the_stub_too(results):
    kind, code, text = results["stub: load of nothing"]
    assert (kind, code) == ("error", "INTERNAL") and "failed to load 'nope'" in text
