"""Sequences: requests of one id share a state, in order, from their start to their end."""

import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest

from conftest import running
from patience import PATIENCE_SECONDS
from test_repository import declared
from test_stream import collect
from wire import (Client, array_input, denied, floats, ints, outputs_of, refused, request,
                  tensor, text_request, write_model)

INVALID = grpc.StatusCode.INVALID_ARGUMENT
UNIMPLEMENTED = grpc.StatusCode.UNIMPLEMENTED
NO_ID = "must specify a non-zero or non-empty correlation ID"
NO_START = "must specify the START flag"
BUILTINS = ["sequence", "sequence_slow=sequence,delay_ms=500", "brief=sequence,idle_ms=5000",
            "identity", "simple=add_sub", "mock", "echo=identity,echo_parameters=true"]


def controls(corrid, places=4):
    """Declares a model whose outputs tell what the controls of a request were."""
    control = lambda name, kind, datatype: (
        f'    {{ name: "{name}" control [ {{ kind: {kind} {datatype} }} ] }}')
    flag = "int32_false_true: [ 0, 1 ]"
    inputs = ",\n".join([control("START", "CONTROL_SEQUENCE_START", flag),
                         control("END", "CONTROL_SEQUENCE_END", flag),
                         control("CORRID", "CONTROL_SEQUENCE_CORRID", f"data_type: {corrid}")])
    return declared("told", "sequence", [("INPUT", "TYPE_INT32", "1")],
                    [("OUTPUT", "TYPE_INT32", "1"), ("START", "TYPE_INT32", "1"),
                     ("END", "TYPE_INT32", "1"), ("CORRID", corrid, "1")],
                    "max_batch_size: 1\nsequence_batching {\n"
                    "  max_sequence_idle_microseconds: 600000000\n"
                    f"  oldest {{ max_candidate_sequences: {places} }}\n"
                    f"  control_input [\n{inputs}\n  ]\n}}\n")


@pytest.fixture(scope="module")
def served():
    """A server of models of sequences, and of models without."""
    flags = [flag for builtin in BUILTINS for flag in ("--builtin", builtin)]
    with running(*flags) as server, Client(server) as client:
        yield client


def add(client, value, id, start=False, end=False, model="sequence", **options):
    """Adds a value to a sequence and returns the sum so far."""
    answer = client.infer(model, [array_input("INPUT", np.array([[value]], np.int32))],
                          sequence_id=id, sequence_start=start, sequence_end=end, **options)
    return answer.as_numpy("OUTPUT").tolist()[0][0]


def part(value, id=None, start=False, end=False, model="sequence", shape=(1, 1)):
    """Makes a request of a sequence, right or wrong."""
    parameters = {"sequence_id": id, "sequence_start": start, "sequence_end": end}
    parameters = {key: value for key, value in parameters.items() if value not in (None, False)}
    count = int(np.prod(shape))
    return request(model, [tensor("INPUT", "INT32", shape)], [ints(*[value] * count)],
                   parameters=parameters, id=f"{id}")


@pytest.mark.parametrize("id", [1, 2**63 - 1, "words", "1", "\u00e4" * 128])
def test_a_sequence_adds_up_from_its_start_to_its_end(served, id):
    assert [add(served, 1, id, start=True), add(served, 20, id), add(served, 300, id, end=True)] \
        == [1, 21, 321]
    denied(lambda: add(served, 1, id), INVALID, NO_START)


def test_a_number_and_its_text_are_two_sequences(served):
    assert add(served, 1, 77, start=True) == 1
    denied(lambda: add(served, 1, "77"), INVALID, NO_START)
    assert add(served, 10, "77", start=True) == 10
    assert [add(served, 1, 77, end=True), add(served, 1, "77", end=True)] == [2, 11]


def test_a_start_on_a_live_sequence_begins_it_anew(served):
    assert [add(served, 5, 3, start=True), add(served, 5, 3)] == [5, 10]
    assert [add(served, 7, 3, start=True), add(served, 1, 3, end=True)] == [7, 8]


def test_one_request_can_be_a_whole_sequence(served):
    assert [add(served, 9, 4, start=True, end=True) for _ in range(3)] == [9, 9, 9]
    denied(lambda: add(served, 1, 4), INVALID, NO_START)


@pytest.mark.parametrize("sent, code, fragment", [
    (part(1), INVALID, NO_ID),
    (part(1, start=True), INVALID, NO_ID),
    (part(1, 0, start=True), INVALID, NO_ID),
    (part(1, "", start=True), INVALID, NO_ID),
    (part(1, 999), INVALID, NO_START),
    (part(1, 999, end=True), INVALID, NO_START),
    (part(1, "never seen"), INVALID, NO_START),
    (part(1, "x" * 129, start=True), UNIMPLEMENTED, "cannot be longer than 128 characters"),
    (part(1, 998, start=True, shape=(2, 1)), INVALID, "batch-size"),
    (part(1, 1.5, start=True), INVALID, "invalid value type for 'sequence_id' parameter"),
    (part(1, True, start=True), INVALID, "invalid value type for 'sequence_id' parameter"),
    (part(1, 997, start="yes"), INVALID, "invalid value type for 'sequence_start' parameter"),
    (part(1, 997, start=True, end=1), INVALID, "invalid value type for 'sequence_end' parameter"),
], ids=["no id", "start without id", "id 0", "empty id", "no start", "end without start",
        "text without start", "129 characters", "batch of 2", "real id", "bool id", "text start",
        "number end"])
def test_a_wrong_part_gets_tritons_code_and_words(served, sent, code, fragment):
    refused(lambda: served.stub.ModelInfer(sent), code, fragment)
    (message,) = collect(served.stub, sent)
    assert fragment in message.error_message


def test_a_refused_part_leaves_its_sequence_as_it_was(served):
    assert add(served, 5, 50, start=True) == 5
    refused(lambda: served.stub.ModelInfer(part(1, 50, shape=(1, 2))), INVALID, "INPUT")
    refused(lambda: served.stub.ModelInfer(part(1, 50, start=True, shape=(1, 2))), INVALID, "INPUT")
    assert add(served, 1, 50, end=True) == 6


def test_an_idle_sequence_is_forgotten_and_a_busy_one_is_not(served):
    assert [add(served, 1, id, start=True, model="brief") for id in (5, 6)] == [1, 1]
    # Longer than an idle one is kept, which is a hundred times as long as a pause.
    so_far, end = 1, time.monotonic() + 6
    while time.monotonic() < end:
        so_far += 1
        assert add(served, 1, 6, model="brief") == so_far, "each request keeps it alive"
        time.sleep(0.05)
    denied(lambda: add(served, 1, 5, model="brief"), INVALID, NO_START)
    assert add(served, 8, 5, start=True, end=True, model="brief") == 8


def test_interleaved_sequences_on_one_stream_stay_in_order(served):
    ids = [11, "eleven", 12, "twelve"]
    sent = [part(value, id, start=value == 1, end=value == 25, model="sequence")
            for value in range(1, 26) for id in ids]
    messages = collect(served.stub, *sent)
    sums = {str(id): [] for id in ids}
    for message in messages:
        assert not message.error_message, message.error_message
        sums[message.infer_response.id].append(
            int(outputs_of(message.infer_response)["OUTPUT"][0]))
    assert sums == {str(id): [n * (n + 1) // 2 for n in range(1, 26)] for id in ids}
    assert [m.infer_response.id for m in messages] == [made.id for made in sent]


def test_parts_sent_without_waiting_run_one_after_the_other_and_sequences_at_once(served):
    sent = [part(value, id, start=value == 1, end=value == 5, model="sequence_slow")
            for id in range(1, 61) for value in range(1, 6)]
    started = time.monotonic()
    messages = collect(served.stub, *sent)
    spent = time.monotonic() - started
    sums = [int(outputs_of(m.infer_response)["OUTPUT"][0]) for m in messages]
    assert sums == [1, 3, 6, 10, 15] * 60
    # At once they take 2.5 s, one after the other 150 s.
    assert 5 * 0.5 <= spent < 300 * 0.5 / 2, "five turns of each, sixty sequences at once"


def test_many_callers_have_their_own_sequences(served):
    def call(id):
        sums = [add(served, value, id, start=value == 1, end=value == 30) for value in range(1, 31)]
        return sums == [n * (n + 1) // 2 for n in range(1, 31)]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(call, [*range(100, 116), *(f"caller {i}" for i in range(16))]))


def test_an_end_and_a_new_start_that_wait_take_their_turns(served):
    flags = [(1, True, False), (2, False, True), (4, True, False), (8, False, True)]
    messages = collect(served.stub, *(part(value, 60, start, end, "sequence_slow")
                                      for value, start, end in flags), part(1, 60))
    sums = [int(outputs_of(m.infer_response)["OUTPUT"][0]) for m in messages[:4]]
    assert sums == [1, 3, 4, 12] and NO_START in messages[4].error_message


def test_a_cancelled_part_does_not_block_its_sequence(served):
    assert add(served, 1, 70, start=True, model="sequence_slow") == 1
    for _ in range(3):
        refused(lambda: served.stub.ModelInfer(part(100, 70, model="sequence_slow"), timeout=0.01),
                grpc.StatusCode.DEADLINE_EXCEEDED)
    assert add(served, 2, 70, end=True, model="sequence_slow") == 3, "what was cancelled never ran"


@pytest.mark.parametrize("made", [
    request("identity", [tensor("INPUT0", "FP32", [1])], [floats(1)]),
    request("simple", [tensor(f"INPUT{i}", "INT32", [2, 16]) for i in range(2)],
            [ints(*range(32))] * 2),
    text_request("mock", "hello", max_tokens=1),
], ids=lambda made: made.model_name)
def test_models_without_sequences_accept_and_ignore_the_parameters(served, made):
    for id, start in [(1, False), ("text", True), (0, True), ("", False)]:
        for key, value in part(0, id, start, end=True).parameters.items():
            made.parameters[key].CopyFrom(value)
        assert served.stub.ModelInfer(made).outputs
        (message,) = collect(served.stub, made)
        assert not message.error_message


def test_reserved_parameters_are_not_the_models_own(served):
    answer = served.infer("echo", [array_input("INPUT0", np.ones(1, np.float32))], sequence_id=5,
                          sequence_start=True, parameters={"mine": 1})
    own = {key for key in answer.get_response().parameters if not key.startswith("triton_")}
    assert own == {"mine"}


@pytest.mark.parametrize("corrid, id, told", [
    ("TYPE_UINT64", 2**62, 2**62), ("TYPE_INT64", 5, 5), ("TYPE_STRING", "sixty", b"sixty"),
    ("TYPE_UINT32", 6, 6), ("TYPE_INT32", 7, 7),
])
def test_a_repositorys_model_tells_its_controls(tmp_path, corrid, id, told):
    write_model(tmp_path, "told", controls(corrid))
    with running("--model-repository", str(tmp_path)) as server, Client(server) as client:
        config = client.get_model_config("told").config
        assert config.sequence_batching.max_sequence_idle_microseconds == 600_000_000
        seen = []
        for start, end in [(True, False), (False, False), (False, True)]:
            answer = client.infer("told", [array_input("INPUT", np.array([[3]], np.int32))],
                                  sequence_id=id, sequence_start=start, sequence_end=end)
            seen.append([answer.as_numpy(name).item()
                         for name in ("OUTPUT", "START", "END", "CORRID")])
        assert seen == [[3, 1, 0, told], [6, 0, 0, told], [9, 0, 1, told]]


def test_more_sequences_than_places_wait_for_one_to_end(tmp_path):
    write_model(tmp_path, "told", controls("TYPE_UINT64", places=2))
    with running("--model-repository", str(tmp_path)) as server, Client(server) as client:
        for id in (1, 2):
            assert add(client, id, id, start=True, model="told") == id
        third = client.begin("told", [array_input("INPUT", np.array([[3]], np.int32))],
                             sequence_id=3, sequence_start=True)
        assert add(client, 1, 2, model="told") == 3 and third.empty()
        assert add(client, 1, 1, end=True, model="told") == 2
        result, error = third.get(timeout=PATIENCE_SECONDS)
        assert error is None and result.as_numpy("OUTPUT").item() == 3
