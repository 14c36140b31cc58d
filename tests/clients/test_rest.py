"""Triton's own HTTP client: health, metadata, statistics, versions, names, and who may call."""

import http.client
import json
import re

import numpy as np
import pytest
import tritonclient.http as triton
from google.protobuf.json_format import MessageToDict
from tritonclient.utils import InferenceServerException

from conftest import running
from patience import PATIENCE_SECONDS, eventually
from test_metrics import requests_total
from test_repository import declared
from test_rest_validation import refused
from test_stream import collect, repeat
from wire import await_running, call, json_tensor, write_model

EXTENSIONS = {"classification", "sequence", "model_repository", "schedule_policy", "statistics",
              "model_repository(unload_dependents)", "model_configuration", "parameters", "trace",
              "system_shared_memory", "cuda_shared_memory", "binary_tensor_data", "logging"}
FLAGS = ["--builtin", "echo=identity,echo_parameters=true", "--builtin", "identity", "--builtin",
         "words=identity,datatype=BYTES", "--builtin", "simple=add_sub", "--builtin", "mock"]
FIVE = json_tensor("INPUT0", "FP32", [1], [5])
NAMED = "a.b+c%d@\u017c/m"


@pytest.fixture(scope="module")
def web(server):
    """An unmodified Triton client over HTTP."""
    with triton.InferenceServerClient(server.http, concurrency=8) as client:
        yield client


@pytest.fixture(scope="module")
def versions(tmp_path_factory):
    """A server of a model of two versions, and of one whose name needs encoding."""
    root = tmp_path_factory.mktemp("models")
    config = declared("both", "identity", [("INPUT0", "TYPE_FP32", "-1")],
                      [("OUTPUT0", "TYPE_FP32", "-1")], "version_policy: { all { } }\n")
    write_model(root, "both", config, versions=(1, 3))
    with running("--model-repository", str(root), "--builtin", f"{NAMED}=identity") as server:
        yield server


def sent(name, data, datatype, binary=True):
    made = triton.InferInput(name, list(data.shape), datatype)
    return made.set_data_from_numpy(data, binary_data=binary)


def infer(server, model, *inputs, **members):
    reply = call(server, f"/v2/models/{model}/infer", {"inputs": list(inputs), **members})
    assert reply.status == 200, reply.body
    return reply


def test_health_has_a_body_and_follows_the_models(web, server):
    assert web.is_server_live() and web.is_server_ready()
    assert web.is_model_ready("identity") and web.is_model_ready("identity", "1")
    assert not web.is_model_ready("nope") and not web.is_model_ready("identity", "7")
    assert call(server, "/v2/health/live").json() == {"live": True}
    assert call(server, "/v2/health/ready").json() == {"ready": True}
    assert call(server, "/v2/models/simple/ready").json() == {"name": "simple", "ready": True}


def test_the_servers_metadata_names_every_extension(web, server):
    found = web.get_server_metadata()
    assert found["name"] == "triton" and found["version"]
    assert EXTENSIONS <= set(found["extensions"])
    assert call(server, "/v2").json() == call(server, "/v2/").json() == found


@pytest.mark.parametrize("model", ["identity", "simple", "batched", "repeat_int32", "smollm"])
def test_metadata_and_config_are_those_of_grpc(web, client, model):
    over_grpc = client.get_model_metadata(model, as_json=True)
    found = web.get_model_metadata(model)
    for key in ("inputs", "outputs"):
        for tensor in found[key]:
            tensor["shape"] = [str(dim) for dim in tensor["shape"]]
    assert found == over_grpc
    config = MessageToDict(client.get_model_config(model).config, preserving_proto_field_name=True)
    found = web.get_model_config(model)
    assert found["name"] == model and found["max_batch_size"] == config.get("max_batch_size", 0)
    for key in ("input", "output"):
        told = [(t["name"], t["data_type"], [int(d) for d in t["dims"]]) for t in found[key]]
        assert told == [(t["name"], t["data_type"], [int(d) for d in t["dims"]])
                        for t in config[key]]
    decoupled = config.get("model_transaction_policy", {}).get("decoupled", False)
    assert found.get("model_transaction_policy", {}).get("decoupled", False) == decoupled
    assert all(isinstance(t["optional"], bool) for t in found["input"]), "perf_analyzer reads it"


def test_the_index_tells_of_each_model(web):
    found = {model["name"]: model for model in web.get_model_repository_index()}
    assert found["simple"] == {"name": "simple", "version": "1", "state": "READY"}
    assert {"smollm", "identity", "mock"} <= set(found)


def test_statistics_count_requests_and_have_the_caches_members(web):
    one = [sent("INPUT0", np.ones([3, 16], np.float32), "FP32")]
    count = lambda: web.get_inference_statistics("batched", "1")["model_stats"][0]
    before = count()
    web.infer("batched", one)
    with pytest.raises(InferenceServerException):
        web.infer("batched", [sent("INPUT0", np.ones([9, 16], np.float32), "FP32")])
    after = count()
    count_of = lambda stats, part: stats["inference_stats"][part]["count"]
    moved = lambda part: count_of(after, part) - count_of(before, part)
    assert (moved("success"), moved("fail")) == (1, 0)
    assert after["inference_count"] - before["inference_count"] == 3
    assert after["execution_count"] - before["execution_count"] == 1
    assert after["last_inference"] > 1.7e12
    for part in ("cache_hit", "cache_miss", "queue", "compute_input", "compute_infer",
                 "compute_output"):
        assert set(after["inference_stats"][part]) == {"count", "ns"}
    every = web.get_inference_statistics()["model_stats"]
    assert {"batched", "identity"} <= {model["name"] for model in every}


def test_routes_name_versions(versions):
    one = json_tensor("INPUT0", "FP32", [1], [5])
    for version, told in [("/versions/1", "1"), ("/versions/3", "3"), ("", "3")]:
        route = f"both{version}"
        assert infer(versions, route, one).json()["model_version"] == told
        assert call(versions, f"/v2/models/{route}/ready").status == 200
        assert call(versions, f"/v2/models/{route}").json()["versions"] == (
            [told] if version else ["1", "3"])
        assert call(versions, f"/v2/models/{route}/config").json()["name"] == "both"
        found = call(versions, f"/v2/models/{route}/stats").json()["model_stats"]
        assert [s["version"] for s in found] == (["1", "3"] if not version else [told])
        reply = call(versions, f"/v2/models/{route}/generate", {"INPUT0": 5})
        assert reply.json() == {"model_name": "both", "model_version": told, "OUTPUT0": 5.0}


def test_names_are_percent_encoded(versions):
    route = "a.b%2Bc%25d%40%C5%BC%2Fm"
    reply = infer(versions, route, json_tensor("INPUT0", "FP32", [1], [5]))
    assert reply.json()["model_name"] == NAMED
    assert call(versions, f"/v2/models/{route}").json()["name"] == NAMED
    assert call(versions, f"/v2/models/{route}/versions/1/ready").json()["name"] == NAMED


def test_many_requests_run_at_once(web):
    data = np.ones(1, np.float32)
    begun = [web.async_infer("slow", [sent("INPUT0", data, "FP32")]) for _ in range(8)]
    answers = [answer.get_result(timeout=PATIENCE_SECONDS) for answer in begun]
    assert len(answers) == 8


def test_a_client_that_leaves_cancels_its_request(server):
    cancelled = lambda: requests_total(server, "slow", "CANCELLED", "HttpInfer")
    before = cancelled()
    connection = http.client.HTTPConnection(server.http)
    one = {"inputs": [json_tensor("INPUT0", "FP32", [1], [5])]}
    connection.request("POST", "/v2/models/slow/infer", json.dumps(one))
    await_running(server, "slow", "HttpInfer")
    connection.close()
    eventually("it is cancelled", lambda: cancelled() == before + 1)


GROUPS = {
    "health": "health/ready", "metadata": "models/identity", "inference": "models/identity/infer",
    "inference ": "models/mock/generate", "inference  ": "models/mock/generate_stream",
    "shared-memory": "systemsharedmemory/status", "shared-memory ": "cudasharedmemory/status",
    "model-config": "models/identity/config", "model-repository": "repository/index",
    "statistics": "models/stats", "statistics ": "models/identity/versions/1/stats",
    "trace": "trace/setting", "trace ": "models/identity/trace/setting", "logging": "logging",
}
BODIES = {"models/identity/infer": {"inputs": [FIVE]}, "repository/index": {}}
BODIES |= dict.fromkeys(["models/mock/generate", "models/mock/generate_stream"],
                        {"text_input": "hi", "max_tokens": 1})


def test_a_restricted_group_needs_its_header_and_others_none():
    closed = {group.strip() for group in GROUPS} - {"health", "metadata"}
    rule = ["--http-restricted-api", f"{','.join(closed)}:Admin-Key=s3cret"]
    with running(*FLAGS, *rule) as server:
        for group, route in GROUPS.items():
            ask = lambda **headers: call(server, f"/v2/{route}", BODIES.get(route), headers=headers)
            assert ask(**{"admin-key": "s3cret"}).status == 200, group
            if group.strip() not in closed:
                assert ask().status == 200
                continue
            for headers in ({}, {"Admin-Key": "S3cret"}, {"Admin-Key": ""}):
                text = refused(ask(**headers), 403, "This API is restricted, expecting header").lower()
                assert "admin-key" in text and "s3cret" not in text
        for detour in ("/v2//models/identity/config", "/v2/models/%69dentity/config",
                       "/v2/models/identity/%63onfig", "/v2/models/identity/config/",
                       "/v2/./models/identity/config", "/V2/models/identity/config",
                       "/v2/models/x/../identity/config", "/v2/models/identity/config?a=/ready"):
            assert call(server, detour).status in (403, 404), detour


@pytest.fixture(scope="module")
def gateway():
    """A server behind a gateway that asks for the load."""
    with running(*FLAGS) as server:
        yield server


@pytest.mark.parametrize("route", ["identity/infer", "mock/generate", "mock/generate_stream"])
@pytest.mark.parametrize("form", ["text", "json"])
def test_a_gateway_that_asks_gets_the_load_with_the_answer(gateway, route, form):
    headers = {"endpoint-load-metrics-format": form}
    body = BODIES[f"models/{route}"]
    load = call(gateway, f"/v2/models/{route}", body, headers=headers).headers["endpoint-load-metrics"]
    if form == "text":
        found = dict(re.findall(r"named_metrics\.(\w+)=([0-9.]+)", load.removeprefix("TEXT ")))
    else:
        found = json.loads(load.removeprefix("JSON "))["named_metrics"]
    assert set(found) == {"kv_cache_utilization", "max_token_capacity"}
    assert call(gateway, f"/v2/models/{route}", body).headers["endpoint-load-metrics"] is None


def test_response_stats_are_told_over_rest(web, stub):
    collect(stub, repeat(1, 2))
    (told,) = web.get_inference_statistics("repeat_int32")["model_stats"]
    assert told["response_stats"]["1"]["success"]["count"] >= 1
    assert set(told["response_stats"]["0"]) == {"compute_infer", "compute_output", "success", "fail",
                                                "empty_response", "cancel"}
    assert web.get_inference_statistics("identity")["model_stats"][0]["response_stats"] == {}
