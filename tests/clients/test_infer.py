"""Unary inference over tensors: every datatype, raw and typed, batches, large messages."""

import ml_dtypes
import numpy as np
import pytest
import tritonclient.grpc as triton

from conftest import DATATYPES
from wire import elements, floats, outputs_of, request, strings, tensor

SAMPLES = {
    "BOOL": np.array([True, False, True]),
    "UINT8": np.array([0, 1, 255], np.uint8),
    "UINT16": np.array([0, 1, 65_535], np.uint16),
    "UINT32": np.array([0, 1, 2**32 - 1], np.uint32),
    "UINT64": np.array([0, 1, 2**64 - 1], np.uint64),
    "INT8": np.array([-128, 0, 127], np.int8),
    "INT16": np.array([-32_768, 0, 32_767], np.int16),
    "INT32": np.array([-2**31, 0, 2**31 - 1], np.int32),
    "INT64": np.array([-2**63, 0, 2**63 - 1], np.int64),
    "FP16": np.array([-0.5, 0, 65_504], np.float16),
    "BF16": np.array([-0.5, 0, 3.0e38], ml_dtypes.bfloat16),
    "FP32": np.array([-0.5, np.inf, 3.4e38], np.float32),
    "FP64": np.array([-0.5, 0, 1.7e308], np.float64),
    "BYTES": np.array([b"", b"\x00\xff", "żółw".encode()], dtype=object),
}
TYPED = {
    "BOOL": "bool_contents", "UINT8": "uint_contents", "UINT16": "uint_contents",
    "UINT32": "uint_contents", "UINT64": "uint64_contents", "INT8": "int_contents",
    "INT16": "int_contents", "INT32": "int_contents", "INT64": "int64_contents",
    "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
}


@pytest.mark.parametrize("datatype", DATATYPES)
def test_every_datatype_comes_back_as_it_went(client, datatype):
    data = SAMPLES[datatype]
    sent = triton.InferInput("INPUT0", [3], datatype)
    sent.set_data_from_numpy(data)
    answer = client.infer(f"identity_{datatype.lower()}", [sent], request_id="r")
    assert answer.get_response().id == "r"
    back = answer.as_numpy("OUTPUT0")
    assert back.dtype == data.dtype and back.tolist() == data.tolist()


@pytest.mark.parametrize("datatype", TYPED)
def test_typed_contents_are_answered_raw(stub, datatype):
    data = SAMPLES[datatype]
    sent = tensor("INPUT0", datatype, [3], **{TYPED[datatype]: data.tolist()})
    response = stub.ModelInfer(request(f"identity_{datatype.lower()}", [sent]))
    back = outputs_of(response)["OUTPUT0"]
    assert list(back) == data.tolist()
    assert response.model_version == "1"


def test_add_sub_computes_batches_and_gives_only_what_is_asked(client):
    left = np.arange(32, dtype=np.int32).reshape(2, 16)
    right = np.full([2, 16], 7, np.int32)
    inputs = []
    for name, data in [("INPUT0", left), ("INPUT1", right)]:
        inputs.append(triton.InferInput(name, [2, 16], "INT32"))
        inputs[-1].set_data_from_numpy(data)
    answer = client.infer("simple", inputs)
    assert (answer.as_numpy("OUTPUT0") == left + right).all()
    assert (answer.as_numpy("OUTPUT1") == left - right).all()
    one = client.infer("simple", inputs, outputs=[triton.InferRequestedOutput("OUTPUT1")])
    assert one.as_numpy("OUTPUT0") is None
    assert (one.as_numpy("OUTPUT1") == left - right).all()


def test_zero_elements_are_legal_without_a_batch(stub):
    response = stub.ModelInfer(request("identity", [tensor("INPUT0", "FP32", [0])], [b""]))
    assert list(response.outputs[0].shape) == [0]
    assert response.raw_output_contents == [b""]


def test_surplus_raw_contents_are_ignored(stub):
    sent = request("identity", [tensor("INPUT0", "FP32", [1])], [floats(1), floats(2)])
    assert stub.ModelInfer(sent).raw_output_contents == [floats(1)]


@pytest.mark.parametrize("mib", [1, 16, 64])
def test_large_messages_pass_both_ways(stub, mib):
    payload = np.arange(mib * 2**18, dtype=np.float32).tobytes()
    sent = request("identity", [tensor("INPUT0", "FP32", [mib * 2**18])], [payload])
    response = stub.ModelInfer(sent)
    assert response.raw_output_contents[0] == payload


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_requests_are_understood(client, algorithm):
    sent = triton.InferInput("INPUT0", [1000], "FP32")
    sent.set_data_from_numpy(np.ones(1000, np.float32))
    answer = client.infer("identity", [sent], compression_algorithm=algorithm)
    assert answer.as_numpy("OUTPUT0").sum() == 1000


def test_parameters_of_every_kind_are_accepted(client):
    sent = triton.InferInput("INPUT0", [1], "FP32")
    sent.set_data_from_numpy(np.ones(1, np.float32))
    parameters = {"bool": True, "int": -3, "float": 0.5, "string": "x"}
    answer = client.infer("identity", [sent], parameters=parameters, priority=2, timeout=1000,
                          sequence_id=42, sequence_start=True, sequence_end=True)
    assert answer.as_numpy("OUTPUT0")[0] == 1


def test_an_element_of_bytes_may_hold_anything(stub):
    data = strings(b"", b"\x00" * 5, bytes(range(256)))
    sent = request("identity_bytes", [tensor("INPUT0", "BYTES", [3])], [data])
    response = stub.ModelInfer(sent)
    assert elements(response.raw_output_contents[0]) == [b"", b"\x00" * 5, bytes(range(256))]
