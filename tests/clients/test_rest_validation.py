"""Each line of Triton's table of refusals over REST: the status, and the text people look for."""

import pytest

from conftest import running
from wire import call, json_tensor

LIMIT = 2 << 20
BUILTINS = ["identity", "batched=identity,dims=16,max_batch_size=8", "simple=add_sub", "sequence",
            "repeat_int32", "mock", "gone=identity"]
DATATYPES = ["BYTES", "BOOL", "INT8", "UINT8", "INT32", "INT64", "UINT64", "FP16", "BF16"]
BUILTINS += [f"{name.lower()}=identity,datatype={name}" for name in DATATYPES]
FLOAT = json_tensor("INPUT0", "FP32", [2], [1, 2])
ROW = list(range(16))
ONE_SOURCE = "Input must set only one of the following fields"


@pytest.fixture(scope="module")
def served():
    """A server of built-ins with a small limit, whose clients may load and register."""
    flags = [flag for builtin in BUILTINS for flag in ("--builtin", builtin)]
    with running("--model-control-mode", "explicit", "--allow-client-shm", "--http-max-input-bytes",
                 str(LIMIT), "--http-restricted-api", "logging:key=value", *flags) as server:
        assert call(server, "/v2/repository/models/gone/unload", {}).status == 200
        yield server


def refused(reply, status, *fragments):
    """Asserts that a reply is an error with a status and a text that holds the fragments."""
    assert reply.status == status, (reply.status, reply.body[:500])
    assert reply.headers["Content-Type"] == "application/json"
    assert list(reply.json()) == ["error"], reply.body[:500]
    for fragment in fragments:
        assert fragment in reply.json()["error"], reply.body[:500]
    return reply.json()["error"]


def serves(server):
    reply = call(server, "/v2/models/identity/infer", {"inputs": [FLOAT]})
    assert reply.status == 200 and reply.json()["outputs"][0]["data"] == [1, 2]


def pair(left, right, *data):
    return [json_tensor("INPUT0", "INT32", left, data[0]),
            json_tensor("INPUT1", "INT32", right, data[-1])]


def x(model, *inputs, **members):
    """Makes the route and the body of an inference."""
    return f"/v2/models/{model}/infer", {"inputs": list(inputs), **members}


def one(datatype, shape, data, **members):
    return x(datatype.lower(), json_tensor("INPUT0", datatype, shape, data), **members)


def step(shape=(1, 1), **parameters):
    return x("sequence", json_tensor("INPUT", "INT32", shape, [1] * shape[0]),
             parameters=parameters)


def asking(name="OUTPUT0", times=1, **parameters):
    return x("identity", FLOAT, outputs=[{"name": name, "parameters": parameters}] * times)


def region(name, **given):
    return f"/v2/systemsharedmemory/region/{name}/register", given


TABLE = {
    "unknown model": (x("nope", FLOAT), 404, "Request for unknown model: 'nope' is not found"),
    "unknown version": (x("identity/versions/9", FLOAT), 404,
                        "Request for unknown model: 'identity' version 9 is not found"),
    "version 0": (x("identity/versions/0", FLOAT), 404, "version 0 is not found"),
    "version -1": (x("identity/versions/-1", FLOAT), 400, "invalid model version specified"),
    "version 1abc": (x("identity/versions/1abc", FLOAT), 400, "invalid model version specified"),
    "an unloaded model": (x("gone", FLOAT), 404, "'gone' has no available versions"),
    "an unloaded version": (x("gone/versions/1", FLOAT), 503, "version 1 is not at ready state"),
    "missing input": (x("simple", pair([1, 16], [1, 16], ROW)[0]), 400,
                      "expected 2 inputs but got 1 inputs for model 'simple'. "
                      "Got input(s) ['INPUT0'], but missing required input(s) ['INPUT1']"),
    "no input": (x("identity"), 400, "expected 1 inputs but got 0 inputs"),
    "unexpected input": (x("identity", {**FLOAT, "name": "X"}), 400,
                         "unexpected inference input 'X' for model 'identity'"),
    "the count wins": (x("identity", FLOAT, {**FLOAT, "name": "X"}), 400,
                       "expected 1 inputs but got 2 inputs"),
    "unknown output": (asking("X"), 400, "unexpected inference output 'X' for model 'identity'"),
    "duplicate output": (asking(times=2), 400, "already exists in request"),
    "duplicate input": (x("simple", *[pair([1, 16], [1, 16], ROW)[0]] * 2), 400,
                        "already exists in request"),
    "wrong dtype": (x("identity", json_tensor("INPUT0", "INT32", [2], [1, 2])), 400,
                    "inference input 'INPUT0' data-type is 'INT32', "
                    "but model 'identity' expects 'FP32'"),
    "unknown dtype": (x("identity", json_tensor("INPUT0", "FP99", [2], [1, 2])), 400,
                      "inference input 'INPUT0' data-type is '<invalid>'"),
    "lower-case dtype": (x("identity", json_tensor("INPUT0", "fp32", [2], [1, 2])), 400,
                         "data-type is '<invalid>'"),
    "wrong dims": (x("simple", *pair([1, 8], [1, 8], ROW[:8])), 400, "unexpected shape for input "
                   "'INPUT0' for model 'simple'. Expected [-1,16], got [1,8]"),
    "wrong rank": (x("identity", json_tensor("INPUT0", "FP32", [1, 2], [1, 2])), 400,
                   "unexpected shape for input 'INPUT0' for model 'identity'. "
                   "Expected [-1], got [1,2]"),
    "negative dim": (x("identity", json_tensor("INPUT0", "FP32", [-1], [1, 2])), 400,
                     "All input dimensions should be specified"),
    "no batch dimension": (x("simple", *pair([], [], [1])), 400,
                           "has no shape but model requires batch dimension"),
    "batches differ": (x("simple", *pair([1, 16], [2, 16], ROW, ROW * 2)), 400,
                       "batch size does not match other inputs"),
    "batch too large": (x("simple", *pair([9, 16], [9, 16], ROW * 9)), 400,
                        "inference request batch-size must be <= 8 for 'simple'"),
    "too few elements": (x("identity", json_tensor("INPUT0", "FP32", [2], [1])), 400,
                         "Unable to parse 'data'", "hape does not match"),
    "too many elements": (x("identity", json_tensor("INPUT0", "FP32", [2], [[1], [2, 3]])), 400,
                          "Unable to parse 'data'", "hape does not match"),
    "no data": (x("identity", json_tensor("INPUT0", "FP32", [2])), 400, ONE_SOURCE),
    "data and binary": (x("identity", json_tensor("INPUT0", "FP32", [2], [1, 2],
                                                  binary_data_size=8)), 400, ONE_SOURCE),
    "data and region": (x("identity", json_tensor("INPUT0", "FP32", [2], [1, 2],
                                                  shared_memory_region="r",
                                                  shared_memory_byte_size=8)), 400, ONE_SOURCE),
    "binary and region": (x("identity", json_tensor("INPUT0", "FP32", [2], binary_data_size=8,
                                                    shared_memory_region="r")), 400, ONE_SOURCE),
    "shape over 2^63": (one("INT8", [2**63], [1]), 400, "Unable to parse"),
    "shape over 2^64": (one("INT8", [2**64], [1]), 400, "Unable to parse"),
    "product overflows": (one("INT8", [2**32, 2**32], [1]), 400, "INPUT0"),
    "bytes overflow": (one("INT64", [2**61], [1]), 400, "INPUT0"),
    "decoupled": (x("repeat_int32", json_tensor("IN", "INT32", [1], [1])), 501,
                  "doesn't support models with decoupled transaction policy"),
    "FP16 in JSON": (one("FP16", [1], [1]), 400, "INPUT0"),
    "BF16 in JSON": (one("BF16", [1], [1]), 400, "INPUT0"),
    "a float for an int": (one("INT32", [1], [1.5]), 400, "INPUT0"),
    "1.0 for an int": (one("INT32", [1], [1.0]), 400, "INPUT0"),
    "INT8 of 300": (one("INT8", [1], [300]), 400, "300"),
    "UINT8 of -1": (one("UINT8", [1], [-1]), 400, "INPUT0"),
    "UINT64 of 2^64": (one("UINT64", [1], [2**64]), 400, "INPUT0"),
    "INT64 of 2^63": (one("INT64", [1], [2**63]), 400, "INPUT0"),
    "BOOL of 1": (one("BOOL", [1], [1]), 400, "INPUT0"),
    "BYTES of a number": (one("BYTES", [1], [1]), 400, "INPUT0"),
    "FP32 of a text": (x("identity", json_tensor("INPUT0", "FP32", [1], ["1"])), 400, "INPUT0"),
    "null data": (x("identity", {**FLOAT, "data": [None, 1]}), 400, "INPUT0"),
    "an object as data": (x("identity", {**FLOAT, "data": {"a": 1}}), 400, "INPUT0"),
    "sequence, no id": (step(), 400, "must specify a non-zero or non-empty correlation ID"),
    "sequence, no start": (step(sequence_id=5), 400, "must specify the START flag"),
    "sequence, batch 2": (step((2, 1), sequence_id=5, sequence_start=True), 400, "batch-size"),
    "sequence, long id": (step(sequence_id="i" * 129, sequence_start=True), 501,
                          "cannot be longer than 128 characters"),
    "gRPC's parameter": (x("identity", FLOAT, parameters={"triton_enable_empty_final_response": True}), 400,
                         "reserved for Triton usage and should not be specified"),
    "reserved parameter": (x("identity", FLOAT, parameters={"triton_x": True}), 400,
                           "parameter keys starting with 'triton_' are reserved"),
    "mistyped parameter": (x("identity", FLOAT, parameters={"sequence_start": 1}), 400,
                           "invalid value type for 'sequence_start' parameter"),
    **{f"parameter {value}": (x("identity", FLOAT, parameters={"p": value}), 400, "parameter 'p'")
       for value in (None, [1], {"a": 1})},
    **{f"classification {value}": (asking(classification=value), 400, "classification")
       for value in (0, -1, "1", 1.5, True)},
    "binary_data of 1": (asking(binary_data=1), 400, "Unable to parse 'binary_data'"),
    "load of nothing": (("/v2/repository/models/nope/load", {}), 500, "failed to load 'nope'"),
    "load parameter": (("/v2/repository/models/gone/load", {"parameters": {"x": "y"}}), 400,
                       "load parameter 'x'"),
    "load of a path": (("/v2/repository/models/..%2Fgone/load", {}), 400, "must not contain path traversal characters"),
    "a region's input": (x("identity", json_tensor("INPUT0", "FP32", [2], shared_memory_region="r",
                                                   shared_memory_byte_size=8)), 404,
                         "Unable to find shared memory region: 'r'"),
    "a region's object": (region("r", key="/stator_none", offset=0, byte_size=8), 500,
                          "Unable to open shared memory region"),
    "a region's size": (region("r", key="/x", offset=0, byte_size=-1), 400, "Unable to parse"),
    "a region's status": (("/v2/systemsharedmemory/region/r/status", None), 404, "Unable to find"),
    "config": (("/v2/models/nope/config", None), 404, "Request for unknown model"),
    "metadata": (("/v2/models/nope", None), 404, "Request for unknown model"),
    "statistics": (("/v2/models/nope/stats", None), 400, "requested model 'nope' is not available"),
    "version's statistics": (("/v2/models/identity/versions/9/stats", None), 400, "not available"),
    "trace of nothing": (("/v2/models/nope/trace/setting", None), 400, "nope"),
    "trace file": (("/v2/trace/setting", {"trace_file": "x"}), 501, "trace file"),
    "trace rate": (("/v2/trace/setting", {"trace_rate": "x"}), 400, "trace_rate"),
    "restricted": (("/v2/logging", None), 403, "This API is restricted, expecting header 'key'"),
    "path-like name": (x("..%2F..%2Fetc%2Fpasswd", FLOAT), 404, "Request for unknown model"),
    "name of controls": (x("a%00%0d%0ab", FLOAT), 404, "Request for unknown model"),
    "name not UTF-8": (x("%ff", FLOAT), 400, "UTF-8"),
    "unknown route": (("/v2/dream", None), 404, "Not Found"),
    "unknown root": (("/nothing", None), 404, "Not Found"),
    "a model's route": (("/v2/models/identity/dream", None), 404, "Not Found"),
    "GET for POST": (("/v2/models/identity/infer", None), 405, "Method Not Allowed"),
    "POST for GET": (("/v2/health/live", {}), 405, "Method Not Allowed"),
}


@pytest.mark.parametrize("case", TABLE)
def test_a_bad_request_gets_tritons_status_and_words(served, case):
    (path, body), status, *fragments = TABLE[case]
    refused(call(served, path, body), status, *fragments)
    serves(served)


def test_a_model_that_is_not_there_is_not_ready(served):
    for model in ("nope", "gone", "identity/versions/9"):
        assert call(served, f"/v2/models/{model}/ready").status == 400
    assert call(served, "/v2/repository/models/nope/unload", {}).status == 200


def test_an_error_names_its_request(served):
    path, body = x("identity", id="r-7")
    refused(call(served, path, body), 400, "[request id: r-7] ")
    refused(call(served, *x("identity")), 400, "[request id: <id_unknown>] ")


def test_what_is_off_is_refused(server):
    refused(call(server, *region("r", key="/x", byte_size=8)), 501, "--allow-client-shm")
    refused(call(server, "/v2/repository/models/identity/load", {}), 503, "not allowed")
