"""Classification: the highest values of an output in place of the output."""

import grpc
import ml_dtypes
import numpy as np
import pytest
import tritonclient.grpc as triton

from conftest import running
from test_repository import declared
from test_stream import collect
from wire import (Client, array_input, denied, floats, outputs_of, refused, request, set_parameter,
                  tensor, write_model)

INVALID = grpc.StatusCode.INVALID_ARGUMENT
TABLE = [("FLOAT", "FP32", "3"), ("WIDE", "INT64", "-1")]
SCORES = declared("scores", "identity", [(f"IN_{n}", f"TYPE_{t}", d) for n, t, d in TABLE],
                  [(f"OUT_{n}", f"TYPE_{t}", d) for n, t, d in TABLE]).replace(
                      'name: "OUT_FLOAT"', 'name: "OUT_FLOAT" label_filename: "labels.txt"')
BATCHES = declared("batches", "identity", [("INPUT0", "TYPE_INT32", "4")],
                   [("OUTPUT0", "TYPE_INT32", "4")],
                   "max_batch_size: 8\n").replace(
                       'name: "OUTPUT0"', 'name: "OUTPUT0" label_filename: "labels.txt"')


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A server of models with labels, and of an identity for some datatypes."""
    root = tmp_path_factory.mktemp("models")
    write_model(root, "scores", SCORES, labels_txt="cat\ndog\nbird\n")
    write_model(root, "batches", BATCHES, labels_txt="north\neast")
    flags = ["--builtin", "identity", "--builtin", "words=identity,datatype=BYTES"]
    for kind in ("bf16", "fp16", "fp64", "uint64", "int8", "bool"):
        flags += ["--builtin", f"{kind}=identity,datatype={kind.upper()}"]
    with running("--model-repository", str(root), *flags) as server, Client(server) as client:
        yield client


def classes(served, model, inputs, output, count, **options):
    wanted = triton.InferRequestedOutput(output, class_count=count)
    answer = served.infer(model, inputs, outputs=[wanted], **options)
    assert answer.get_output(output).datatype == "BYTES"
    return answer.as_numpy(output).tolist()


@pytest.mark.parametrize("count, expected", [
    (1, [b"2.500000:1:dog"]), (2, [b"2.500000:1:dog", b"0.500000:2:bird"]),
    (3, [b"2.500000:1:dog", b"0.500000:2:bird", b"-1.000000:0:cat"]),
    (99, [b"2.500000:1:dog", b"0.500000:2:bird", b"-1.000000:0:cat"]),
])
def test_the_highest_values_come_with_their_place_and_label(served, count, expected):
    inputs = [array_input("IN_FLOAT", np.array([-1, 2.5, 0.5], np.float32)),
              array_input("IN_WIDE", np.array([7], np.int64))]
    assert classes(served, "scores", inputs, "OUT_FLOAT", count) == expected
    assert classes(served, "scores", inputs, "OUT_WIDE", 2) == [b"7:0"], "no label, one element"


def test_each_row_of_a_batch_is_classified_and_few_labels_are_enough(served):
    rows = np.array([[1, 4, 3, 2], [9, 9, 8, 9], [-5, -6, -7, -8]], np.int32)
    found = classes(served, "batches", [array_input("INPUT0", rows)], "OUTPUT0", 2)
    assert found == [[b"4:1:east", b"3:2"], [b"9:0:north", b"9:1:east"],
                     [b"-5:0:north", b"-6:1:east"]]
    only = classes(served, "batches", [array_input("INPUT0", rows[:1])], "OUTPUT0", 1)
    assert only == [[b"4:1:east"]]


@pytest.mark.parametrize("model, values, expected", [
    ("bf16", np.array([1, 3, 2], ml_dtypes.bfloat16), b"3.000000:1"),
    ("fp16", np.array([1, 3, 2], np.float16), b"3.000000:1"),
    ("fp64", np.array([0.125, -3, 2]), b"2.000000:2"),
    ("uint64", np.array([1, 2**64 - 1, 2**63], np.uint64), b"18446744073709551615:1"),
    ("int8", np.array([-128, -1, -2], np.int8), b"-1:1"),
    ("identity", np.array([np.nan, 1, 2], np.float32), None),
])
def test_every_number_can_be_classified(served, model, values, expected):
    found = classes(served, model, [array_input("INPUT0", values)], "OUTPUT0", 1)
    assert len(found) == 1 and (expected is None or found == [expected])


def test_an_empty_output_has_no_classes(served):
    empty = array_input("INPUT0", np.zeros(0, np.float32))
    assert classes(served, "identity", [empty], "OUTPUT0", 3) == []


@pytest.mark.parametrize("value", [0, -1, 1.0, "1", True])
def test_a_class_count_is_a_positive_integer(served, value):
    sent = request("identity", [tensor("INPUT0", "FP32", [2])], [floats(1, 2)], ["OUTPUT0"])
    set_parameter(sent.outputs[0].parameters["classification"], value)
    refused(lambda: served.stub.ModelInfer(sent), INVALID, "classification")


def test_strings_are_not_classified(served):
    words = array_input("INPUT0", np.array([b"a", b"b"], dtype=object))
    denied(lambda: classes(served, "words", [words], "OUTPUT0", 1), INVALID, "'OUTPUT0'")


def test_classes_come_over_a_stream(served):
    sent = request("identity", [tensor("INPUT0", "FP32", [2])], [floats(1, 2)], ["OUTPUT0"])
    set_parameter(sent.outputs[0].parameters["classification"], 1)
    (message,) = collect(served.stub, sent)
    assert outputs_of(message.infer_response)["OUTPUT0"] == [b"2.000000:1"]
