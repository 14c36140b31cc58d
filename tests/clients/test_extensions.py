"""Triton's extensions of single requests: parameters, headers, restriction, load, counters."""

import json
import re

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb

from conftest import running
from patience import NEVER_MS, eventually
from test_repository import declared
from test_stream import collect, repeat
from wire import (Client, array_input, denied, floats, ints, refused, request, set_parameter,
                  tensor, text_request, write_model)

INVALID = grpc.StatusCode.INVALID_ARGUMENT
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
ROW = ints(*range(16))
BATCHES = declared("batches", "identity", [("INPUT0", "TYPE_INT32", "4")],
                   [("OUTPUT0", "TYPE_INT32", "4")],
                   "max_batch_size: 8\nversion_policy: { all { } }\n")
ONE = np.ones(1, np.float32)
FLAGS = ["--builtin", "simple=add_sub", "--builtin", "echo=identity,echo_parameters=true",
         "--builtin", "identity", "--builtin", "mock", "--builtin", "repeat_int32"]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A server of built-ins and a model of two versions, which forwards some headers."""
    root = tmp_path_factory.mktemp("models")
    write_model(root, "batches", BATCHES, versions=(1, 2))
    flags = [*FLAGS, "--grpc-header-forward-pattern", "X-.*|tenant",
             "--grpc-response-compression", "gzip"]
    with running("--model-repository", str(root), *flags) as server:
        with Client(server) as client:
            yield client


def sent_to(model, **parameters):
    return request(model, [tensor("INPUT0", "FP32", [1])], [floats(1)], parameters=parameters)


def given_back(response):
    return {key: getattr(value, value.WhichOneof("parameter_choice"))
            for key, value in response.parameters.items() if not key.startswith("triton_")}


def test_parameters_of_every_kind_come_back_as_the_responses(served):
    mine = {"a bool": False, "text": "zw\u00f6lf", "half": 0.5, "empty": "", "low": -(2**63)}
    sent = sent_to("echo", **mine)
    sent.parameters["high"].uint64_param = 2**64 - 1
    response = served.stub.ModelInfer(sent)
    assert given_back(response) == {**mine, "high": 2**64 - 1}
    assert response.parameters["high"].WhichOneof("parameter_choice") == "uint64_param"
    (message,) = collect(served.stub, sent)
    assert given_back(message.infer_response) == {**mine, "high": 2**64 - 1}
    assert given_back(served.stub.ModelInfer(sent_to("identity", **mine))) == {}


def test_the_clients_own_parameters_come_back(served):
    mine = {"text": "t", "number": 5, "real": 1.5, "flag": True}
    answer = served.infer("echo", [array_input("INPUT0", ONE)], parameters=mine,
                          priority=3, timeout=5_000_000)
    assert given_back(answer.get_response()) == mine, "the reserved ones are not the model's"


@pytest.mark.parametrize("model", ["identity", "simple", "mock"])
def test_priority_and_timeout_are_accepted_and_checked(served, model):
    pair = [tensor(f"INPUT{i}", "INT32", [1, 16]) for i in range(2)]
    make = {"identity": lambda: sent_to("identity"),
            "simple": lambda: request(model, pair, [ROW] * 2),
            "mock": lambda: text_request("mock", "hi", max_tokens=1)}[model]
    for key in ("priority", "timeout"):
        for value in (0, 1, 2**62):
            sent = make()
            sent.parameters[key].uint64_param = value
            assert served.stub.ModelInfer(sent).outputs
            sent.parameters[key].int64_param = value
            assert served.stub.ModelInfer(sent).outputs
        for value in (-1, "1", True, 0.5):
            sent = make()
            set_parameter(sent.parameters[key], value)
            refused(lambda: served.stub.ModelInfer(sent), INVALID,
                    f"invalid value for '{key}'" if value == -1 else f"invalid value type for '{key}' parameter")


def test_headers_that_match_become_parameters(served):
    headers = {"x-request": "r1", "x-cased": "Kept", "tenant": "t", "tenant-id": "no",
               "other": "no"}
    one = [array_input("INPUT0", ONE)]
    answer = served.infer("echo", one, headers=headers, parameters={"tenant": "mine"})
    assert given_back(answer.get_response()) == {"x-request": "r1", "x-cased": "Kept",
                                                 "tenant": "mine"}
    (message,) = collect(served.stub, sent_to("echo"), metadata=[("x-request", "r2")])
    assert given_back(message.infer_response) == {"x-request": "r2"}


def test_a_pattern_that_matches_all_cannot_steer_a_request():
    flags = ["--grpc-header-forward-pattern", ".*", *FLAGS]
    steering = ["sequence_id", "sequence_start", "priority", "timeout", "triton_x",
                "triton_enable_empty_final_response"]
    with running(*flags) as server, Client(server) as client:
        metadata = [(key, "1") for key in steering] + [("mine", "yes"), ("raw-bin", b"\xff")]
        found = given_back(client.stub.ModelInfer(sent_to("echo"), metadata=metadata))
        assert found["mine"] == "yes" and not set(found) & {*steering, "raw-bin"}


CALLS = {
    "health": lambda stub, **o: stub.ServerReady(pb.ServerReadyRequest(), **o),
    "metadata": lambda stub, **o: stub.ModelMetadata(pb.ModelMetadataRequest(name="identity"), **o),
    "inference": lambda stub, **o: stub.ModelInfer(sent_to("identity"), **o),
    "inference (stream)": lambda stub, **o: collect(stub, sent_to("identity"), **o),
    "shared-memory": lambda stub, **o: stub.SystemSharedMemoryStatus(
        pb.SystemSharedMemoryStatusRequest(), **o),
    "model-config": lambda stub, **o: stub.ModelConfig(pb.ModelConfigRequest(name="identity"), **o),
    "model-repository": lambda stub, **o: stub.RepositoryIndex(pb.RepositoryIndexRequest(), **o),
    "statistics": lambda stub, **o: stub.ModelStatistics(pb.ModelStatisticsRequest(), **o),
    "trace": lambda stub, **o: stub.TraceSetting(pb.TraceSettingRequest(), **o),
    "logging": lambda stub, **o: stub.LogSettings(pb.LogSettingsRequest(), **o),
}


def test_a_restricted_group_needs_its_header_and_others_none():
    open_groups = {"health", "metadata"}
    closed = ",".join({call.split()[0] for call in CALLS} - open_groups)
    rules = ["--grpc-restricted-protocol", f"{closed}:admin-key=s3cret"]
    with running(*FLAGS, *rules) as server, Client(server) as client:
        key = "triton-grpc-protocol-admin-key"
        for name, call in CALLS.items():
            if name in open_groups:
                assert call(client.stub)
                continue
            for metadata in ([], [(key, "S3cret")], [(key, "")], [("admin-key", "s3cret")]):
                refused(lambda: call(client.stub, metadata=metadata), UNAVAILABLE,
                        "This protocol is restricted, expecting header", key)
            assert call(client.stub, metadata=[(key, "s3cret")])
        assert not any("s3cret" in line for line in server.log)
        one = [array_input("INPUT0", ONE)]
        assert client.infer("identity", one, headers={key: "s3cret"})


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_a_gateway_that_asks_gets_the_load_with_the_answer(compression):
    flags = [*FLAGS, "--grpc-response-compression", compression]
    with running(*flags) as server, Client(server) as client:
        for form in ("text", "json", "JSON"):
            asked = [("endpoint-load-metrics-format", form)]
            _, call = client.stub.ModelInfer.with_call(sent_to("identity"), metadata=asked)
            load = dict(call.initial_metadata())["endpoint-load-metrics"]
            if form == "text":
                assert load.startswith("TEXT ")
                pairs = dict(re.findall(r"named_metrics\.(\w+)=([0-9.]+)", load))
            else:
                pairs = json.loads(load.removeprefix("JSON "))["named_metrics"]
            assert set(pairs) == {"kv_cache_utilization", "max_token_capacity"}
            assert 0 <= float(pairs["kv_cache_utilization"]) <= 1
            assert int(pairs["max_token_capacity"]) > 0


@pytest.mark.parametrize("metadata", [[], [("endpoint-load-metrics-format", "xml")]])
def test_a_client_that_does_not_ask_gets_no_load(served, metadata):
    _, call = served.stub.ModelInfer.with_call(sent_to("identity"), metadata=metadata)
    assert "endpoint-load-metrics" not in dict(call.initial_metadata())


def counted(client, name, version=""):
    found = client.get_inference_statistics(name, version).model_stats
    return {s.version: (s.inference_count, s.execution_count, s.inference_stats.success.count,
                        s.inference_stats.fail.count) for s in found}


def test_the_statistics_equal_a_counted_load_of_each_version(served):
    assert counted(served, "batches") == {"1": (0, 0, 0, 0), "2": (0, 0, 0, 0)}
    rows = lambda count: [array_input("INPUT0", np.zeros([count, 4], np.int32))]
    wrong = request("batches", [tensor("INPUT0", "INT32", [9, 4])], [bytes(9 * 16)])
    for version, batches in [("1", [1, 2, 8]), ("2", [3, 3]), ("", [5])]:
        for count in batches:
            served.infer("batches", rows(count), model_version=version)
    for _ in range(4):
        refused(lambda: served.stub.ModelInfer(wrong), INVALID, "batch-size must be <= 8")
    (message,) = collect(served.stub, wrong)
    assert "batch-size must be <= 8" in message.error_message
    assert counted(served, "batches") == {"1": (11, 3, 3, 0), "2": (11, 3, 3, 0)}, "a refused request is not a failed one"
    assert counted(served, "batches", "1") == {"1": (11, 3, 3, 0)}
    denied(lambda: served.get_inference_statistics("batches", "7"), INVALID, "is not available")


def test_a_decoupled_request_counts_once_and_an_ended_one_as_failed(served):
    assert len(collect(served.stub, repeat(1, 2, 3), repeat(), repeat(4))) == 4
    assert counted(served, "repeat_int32") == {"1": (3, 3, 3, 0)}
    # The server needs a moment to hear of it.
    refused(lambda: collect(served.stub, repeat(1, 2, delay_ms=NEVER_MS), timeout=2),
            grpc.StatusCode.DEADLINE_EXCEEDED)
    eventually("it is counted", lambda: counted(served, "repeat_int32") == {"1": (3, 3, 3, 1)})


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
@pytest.mark.parametrize("kind", ["zeros", "random"])
def test_compressed_payloads_arrive_whole_both_ways(served, algorithm, kind):
    count = 3_000_000
    array = np.zeros(count, np.float32)
    if kind == "random":
        array = np.random.default_rng(1).random(count, dtype=np.float32)
    answer = served.infer("identity", [array_input("INPUT0", array)],
                          compression_algorithm=algorithm)
    assert np.array_equal(answer.as_numpy("OUTPUT0"), array)


def test_responses_of_a_decoupled_model_count_by_their_index(served):
    def counts():
        # Other tests of the server ask the model too.
        told = served.get_inference_statistics("repeat_int32").model_stats[0].response_stats
        return np.array([(told[index].success.count, told[index].empty_response.count)
                         for index in ("0", "1", "2")])

    def grows(*requests):
        before = counts()
        collect(served.stub, *requests)
        return (counts() - before).tolist()

    assert grows(repeat(3, 1, 2), repeat(1)) == [[2, 0], [1, 0], [1, 0]]
    assert grows(repeat(1, triton_enable_empty_final_response=True)) == [[1, 0], [0, 1], [0, 0]]
    assert not served.get_inference_statistics("identity").model_stats[0].response_stats
