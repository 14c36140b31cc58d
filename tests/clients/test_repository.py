"""Model repositories: what is declared is what is served, now and when it changes."""

import shutil

import grpc
import numpy as np
import pytest
from tritonclient.utils import triton_to_np_dtype

from chaos import total
from conftest import NUMERIC, running
from patience import eventually
from test_lifecycle import stator
from test_stream import collect, repeat
from wire import (Client, array_input, denied, outputs_of, refused, request, tensor, text_request,
                  write_model)

NOT_FOUND = grpc.StatusCode.NOT_FOUND
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
ONE = np.ones(1, np.float32)
PORTS = {f"STATOR_{door}_PORT": "0" for door in ("GRPC", "HTTP", "METRICS")}


def tensors(kind, *named):
    """Declares tensors as Triton's own examples do."""
    each = [f'  {{\n    name: "{name}"\n    data_type: {datatype}\n    dims: [ {dims} ]\n  }}'
            for name, datatype, dims in named]
    return f"{kind} [\n" + ",\n".join(each) + "\n]\n"


def declared(name, backend, inputs, outputs, more=""):
    return (f'name: "{name}"  # as the folder\nbackend: "{backend}"\n' + tensors("input", *inputs)
            + tensors("output", *outputs) + more)


def pair(datatype, more="max_batch_size: 8\n"):
    """Declares an add_sub."""
    both = lambda kind: [(f"{kind}{i}", datatype, "16") for i in range(2)]
    return declared("add_" + datatype[5:].lower(), "add_sub", both("INPUT"), both("OUTPUT"), more)


def identity(name, more="", dims="-1"):
    return declared(name, "identity", [("INPUT0", "TYPE_FP32", dims)],
                    [("OUTPUT0", "TYPE_FP32", dims)], more)


def slow(name):
    return identity(name, 'parameters: { key: "delay_ms" value: { string_value: "3000" } }\n')


DECOUPLED = "model_transaction_policy { decoupled: True }\n"
REPEAT = declared("repeat", "repeat",
                  [("IN", "TYPE_INT32", "-1"), ("DELAY", "TYPE_UINT32", "-1"),
                   ("WAIT", "TYPE_UINT32", "1")],
                  [("OUT", "TYPE_INT32", "1"), ("IDX", "TYPE_UINT32", "1")], DECOUPLED)
SQUARE = declared("square", "square", [("IN", "TYPE_INT32", "1")], [("OUT", "TYPE_INT32", "1")],
                  DECOUPLED + "instance_group [ { count: 2 kind: KIND_CPU } ]\n")
SEQUENCE = declared("sequence", "sequence", [("INPUT", "TYPE_INT32", "1")],
                    [("OUTPUT", "TYPE_INT32", "1")],
                    "max_batch_size: 1\nsequence_batching { direct { } }\n")
POLICIES = {"latest": ("", [3]), "latest_two": ("latest { num_versions: 2 }", [2, 3]),
            "all": ("all { }", [1, 2, 3]), "specific": ("specific { versions: [ 1, 3 ] }", [1, 3])}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A server of everything that can be declared; nobody may change what it serves."""
    root = tmp_path_factory.mktemp("models")
    for datatype in ["STRING", *NUMERIC[1:]]:
        write_model(root, "add_" + datatype.lower(), pair("TYPE_" + datatype))
    for name, config in [("repeat", REPEAT), ("square", SQUARE), ("sequence", SEQUENCE),
                         ("identity", identity("identity")), ("mock", 'backend: "mock"\n')]:
        write_model(root, name, config)
    for name, (policy, _) in POLICIES.items():
        more = f"version_policy: {{ {policy} }}\n" if policy else ""
        write_model(root, name, identity(name, more), versions=(1, 2, 3, "notes"))
    with running("--model-repository", str(root)) as server, Client(server) as client:
        yield client


def infer(client, model, array=ONE, version=""):
    answer = client.infer(model, [array_input("INPUT0", array)], model_version=version)
    assert answer.as_numpy("OUTPUT0").tolist() == array.tolist()
    return answer.get_response().model_version


def states(client):
    return {(m.name, m.version): (m.state, m.reason)
            for m in client.get_model_repository_index().models}


@pytest.mark.parametrize("datatype", NUMERIC[1:])
def test_a_declared_add_sub_adds_every_numeric_type(served, datatype):
    kind = triton_to_np_dtype(datatype)
    left, right = np.arange(16, 48).reshape(2, 16).astype(kind), np.full([2, 16], 3).astype(kind)
    answer = served.infer("add_" + datatype.lower(),
                          [array_input("INPUT0", left), array_input("INPUT1", right)])
    assert np.array_equal(answer.as_numpy("OUTPUT0"), left + right)
    assert np.array_equal(answer.as_numpy("OUTPUT1"), left - right)


def test_a_declared_add_sub_adds_decimal_strings(served):
    left = np.array([[str(i).encode() for i in range(16)]], dtype=object)
    answer = served.infer("add_string", [array_input("INPUT0", left), array_input("INPUT1", left)])
    assert answer.as_numpy("OUTPUT0").tolist() == [[str(2 * i).encode() for i in range(16)]]
    assert set(answer.as_numpy("OUTPUT1").flatten()) == {b"0"}


def test_declared_decoupled_models_stream_and_a_mock_answers(served):
    stub = served.stub
    sent = repeat(4, 5)
    sent.model_name = "repeat"
    assert [outputs_of(m.infer_response)["OUT"].tolist() for m in collect(stub, sent)] == [[4], [5]]
    sent = request("square", [tensor("IN", "INT32", [1], int_contents=[3])])
    assert [outputs_of(m.infer_response)["OUT"].tolist() for m in collect(stub, sent)] == [[3]] * 3
    refused(lambda: stub.ModelInfer(sent), grpc.StatusCode.UNIMPLEMENTED, "decoupled transaction")
    assert stub.ModelInfer(text_request("mock", "hello", max_tokens=2)).outputs


def test_the_metadata_and_the_config_say_what_is_declared(served):
    metadata = served.get_model_metadata("add_int8")
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.inputs] == [
        ("INPUT0", "INT8", [-1, 16]), ("INPUT1", "INT8", [-1, 16])]
    config = served.get_model_config("sequence").config
    assert config.name == "sequence" and config.sequence_batching.HasField("direct")
    assert served.get_model_config("square").config.instance_group[0].count == 2
    assert served.get_model_config("repeat").config.model_transaction_policy.decoupled


@pytest.mark.parametrize("name", POLICIES)
def test_the_version_policy_chooses_and_calls_name_a_version(served, name):
    chosen = POLICIES[name][1]
    assert served.get_model_metadata(name).versions == [str(v) for v in chosen]
    assert infer(served, name) == str(chosen[-1]), "no version means the latest"
    for version in (1, 2, 3):
        assert served.is_model_ready(name, str(version)) is (version in chosen)
        if version in chosen:
            assert infer(served, name, version=str(version)) == str(version)
        else:
            denied(lambda: infer(served, name, version=str(version)), NOT_FOUND,
                   f"Request for unknown model: '{name}' version {version} is not found")


def test_no_client_loads_without_explicit_mode(served):
    for call in (served.load_model, served.unload_model):
        denied(lambda: call("identity"), UNAVAILABLE, "explicit model load / unload is not allowed")
    assert served.is_model_ready("identity")


@pytest.mark.parametrize("config, fragments", [
    (identity("m", "max_batch: 8\n"), ["config.pbtxt:17", "max_batch"]),
    (identity("other"), ["config.pbtxt", "other"]),
    (identity("m", "version_policy { specific { versions: [ 7 ] } }"), ["7"]),
    ('backend: "nonsense"\n', ["nonsense"]),
], ids=["unknown field", "another name", "missing version", "unknown backend"])
def test_a_declaration_that_cannot_be_served_leaves_the_others_and_stops_a_strict_start(tmp_path, config, fragments):
    write_model(tmp_path, "m", config)
    write_model(tmp_path, "n", identity("n"))
    ended = stator("serve", "--model-repository", str(tmp_path), "--exit-on-error", **PORTS)
    assert ended.returncode != 0
    for fragment in fragments:
        assert fragment in ended.stderr, ended.stderr
    with running("--model-repository", str(tmp_path)) as server, Client(server) as client:
        (state, reason), fine = states(client)["m", "1"], states(client)["n", "1"]
        assert state == "UNAVAILABLE" and fine == ("READY", ""), (state, fine)
        for fragment in fragments:
            assert fragment in reason, reason
        assert any('"ERROR"' in line and "model `m`" in line for line in server.log), server.log
        assert client.is_server_ready() and not client.is_model_ready("m") and client.is_model_ready("n")
        denied(lambda: infer(client, "m"), NOT_FOUND, "'m' has no available versions")
        assert infer(client, "n") == "1"


def test_a_model_to_load_that_no_repository_has_is_unavailable(tmp_path):
    write_model(tmp_path, "n", identity("n"), versions=(3,))
    flags = ["--model-control-mode", "explicit", "--load-model", "m", "--load-model", "n"]
    with running("--model-repository", str(tmp_path), *flags) as server, Client(server) as client:
        found = states(client)
        assert found.pop(("m", "1"))[0] == "UNAVAILABLE" and found == {("n", "3"): ("READY", "")}, found
        write_model(tmp_path, "m", identity("m"))
        client.load_model("m")
        assert infer(client, "m") == "1"


ONE_WAITS = "dynamic_batching { default_queue_policy { max_queue_size: 1 } }\n"


def test_a_declared_max_queue_size_is_kept(tmp_path):
    write_model(tmp_path, "tensors", identity("tensors", 'parameters: { key: "delay_ms" value: { string_value: "8000" } }\n' + ONE_WAITS))
    write_model(tmp_path, "texts", 'backend: "mock"\n' + ONE_WAITS
                + 'parameters: { key: "pace_ms" value: { string_value: "20" } }\n')
    levels = "dynamic_batching { priority_levels: 2 priority_queue_policy { key: 1 value { max_queue_size: 1 } } }\n"
    write_model(tmp_path, "levels", identity("levels", levels))
    with running("--model-repository", str(tmp_path), "--max-running-sequences", "1") as server, Client(server) as client:
        state, reason = states(client)["levels", "1"]
        assert state == "UNAVAILABLE" and "`priority_queue_policy`" in reason, reason
        # All five come within milliseconds, and the first one takes 8 s.
        asked = request("tensors", [tensor("INPUT0", "FP32", [1])], [bytes(4)])
        found = [client.stub.ModelInfer.future(asked) for _ in range(5)]
        codes = [one.code() for one in found]
        assert sorted(codes, key=str) == [grpc.StatusCode.OK] * 2 + [UNAVAILABLE] * 3, codes
        assert all("Exceeds maximum queue size" in one.details() for one in found if one.code() == UNAVAILABLE)
        first, second, third = [text_request("texts", "hello", max_tokens=most) for most in (8000, 1, 1)]
        runs = client.stub.ModelInfer.future(first)
        eventually("one runs", lambda: total(server, "stator_running_sequences") == 1)
        waits = client.stub.ModelInfer.future(second)
        eventually("one waits", lambda: total(server, "stator_queue_depth_requests") == 1)
        refused(lambda: client.stub.ModelInfer(third), UNAVAILABLE, "Exceeds maximum queue size")
        runs.cancel()
        assert waits.result().outputs


def test_what_is_in_two_places_stops_the_start(tmp_path):
    for root in ("a", "b"):
        write_model(tmp_path / root, "m", identity("m"))
    roots = ["--model-repository", str(tmp_path / "a"), "--model-repository", str(tmp_path / "b")]
    for arguments in (roots, [*roots[:2], "--builtin", "m=identity"]):
        ended = stator("serve", *arguments, **PORTS)
        assert ended.returncode != 0 and "`m`" in ended.stderr, ended.stderr


def test_polling_follows_what_is_added_changed_and_removed(tmp_path):
    write_model(tmp_path, "stays", identity("stays"))
    write_model(tmp_path, "goes", identity("goes"))
    write_model(tmp_path, "grows", identity("grows"))
    flags = ["--model-control-mode", "poll", "--repository-poll-secs", "1"]
    with running("--model-repository", str(tmp_path), *flags) as server, Client(server) as client:
        for _ in range(3):
            infer(client, "stays")
        write_model(tmp_path, "comes", identity("comes"))
        write_model(tmp_path, "grows", identity("grows"), versions=(2,))
        shutil.rmtree(tmp_path / "goes")
        eventually("the models are those of the folder", lambda: client.is_model_ready("comes") and client.is_model_ready("grows", "2")
                   and not client.is_model_ready("goes"))
        assert infer(client, "comes") == "1" and infer(client, "grows") == "2"
        denied(lambda: infer(client, "goes"), NOT_FOUND, "'goes' has no available versions")
        denied(lambda: client.load_model("comes"), UNAVAILABLE, "not allowed")
        write_model(tmp_path, "comes", "max_batch: 8\n")
        eventually("it is told", lambda: any("a model could not be loaded" in line for line in server.log))
        assert infer(client, "comes") == "1", "a change that is wrong leaves what was"
        write_model(tmp_path, "comes", identity("comes", dims="2"))
        eventually("it is loaded anew", lambda: client.get_model_metadata("comes").inputs[0].shape == [2])
        (stays,) = client.get_inference_statistics("stays").model_stats
        assert stays.inference_count == 3, "what did not change is not loaded anew"
