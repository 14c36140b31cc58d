"""Tensors over REST: every datatype in JSON and binary, compressed, raw, of no elements."""

import gzip
import json
import math
import zlib

import ml_dtypes
import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from conftest import DATATYPES
from test_infer import SAMPLES
from test_rest import infer, sent, web
from wire import binary_body, call, floats, json_tensor

LENGTH = "Inference-Header-Content-Length"


def identity(web, data, datatype, binary_in=True, binary_out=True, **options):
    """Sends an array through an identity and returns what comes back."""
    output = triton.InferRequestedOutput("OUTPUT0", binary_data=binary_out)
    inputs = [sent("INPUT0", data, datatype, binary_in)]
    return web.infer(f"identity_{datatype.lower()}", inputs, outputs=[output], **options)


def same(back, data):
    if data.dtype == object:
        plain = lambda e: e.encode() if isinstance(e, str) else e
        return [plain(e) for e in back.ravel()] == [plain(e) for e in data.ravel()]
    return back.dtype == data.dtype and back.shape == data.shape and np.array_equal(back, data)


@pytest.mark.parametrize("datatype", DATATYPES)
def test_every_datatype_comes_back_as_it_went_in_binary(web, datatype):
    data = SAMPLES[datatype]
    answer = identity(web, data, datatype, request_id="r")
    assert same(answer.as_numpy("OUTPUT0"), data)
    assert answer.get_response()["id"] == "r"
    assert answer.get_output("OUTPUT0")["datatype"] == datatype


@pytest.mark.parametrize("binary_in, binary_out", [(False, False), (False, True), (True, False)])
@pytest.mark.parametrize("datatype", [d for d in DATATYPES if d not in ("FP16", "BF16")])
def test_every_datatype_but_half_floats_goes_as_json(web, datatype, binary_in, binary_out):
    data = SAMPLES[datatype]
    if datatype == "BYTES":
        data = np.array(["", "\u017c\u00f3\u0142w \U0001f422", 'a"\\b\n\x00'], dtype=object)
    if datatype == "FP32":
        data = np.array([-0.5, 0.1, 3.4e38], np.float32)
    answer = identity(web, data, datatype, binary_in, binary_out)
    assert same(answer.as_numpy("OUTPUT0"), data)
    answer = identity(web, data.reshape(3), datatype, binary_in, binary_out)
    assert answer.get_output("OUTPUT0")["shape"] == [3]


@pytest.mark.parametrize("datatype, data", [
    ("FP16", np.ones(2, np.float16)), ("BF16", np.ones(2, ml_dtypes.bfloat16)),
    ("BYTES", np.array([b"\xff\xfe"], dtype=object)),
])
def test_what_json_cannot_hold_is_refused_as_json(web, datatype, data):
    with pytest.raises(InferenceServerException) as caught:
        identity(web, data, datatype, binary_out=False)
    assert caught.value.status() == "400" and "OUTPUT0" in caught.value.message()


@pytest.mark.parametrize("datatype, text", [
    ("UINT64", "[0,9007199254740993,18446744073709551615]"),
    ("INT64", "[-9223372036854775808,-9007199254740993,9223372036854775807]"),
])
def test_wide_integers_are_exact_in_json(server, datatype, text):
    reply = infer(server, f"identity_{datatype.lower()}",
                  json_tensor("INPUT0", datatype, [3], json.loads(text)))
    assert f'"data":{text}' in reply.body.decode()


@pytest.mark.parametrize("datatype", ["FP32", "FP64"])
def test_infinities_and_no_number_are_bare_words(server, datatype):
    kind = {"FP32": np.float32, "FP64": np.float64}[datatype]
    raw = np.array([np.nan, np.inf, -np.inf], kind).tobytes()
    head = {"inputs": [json_tensor("INPUT0", datatype, [3], binary_data_size=len(raw))]}
    body, headers = binary_body(head, raw)
    reply = call(server, f"/v2/models/identity_{datatype.lower()}/infer", body, headers=headers)
    assert b'"data":[NaN,Infinity,-Infinity]' in reply.body
    assert math.isnan(reply.json()["outputs"][0]["data"][0])


def test_data_may_be_flat_or_nested(server):
    row = list(range(16))
    for left, right in [(row * 2, [row, row]), ([row, row], [[[n] for n in row], row])]:
        reply = infer(server, "simple", json_tensor("INPUT0", "INT32", [2, 16], left),
                      json_tensor("INPUT1", "INT32", [2, 16], right))
        assert reply.headers["Content-Type"] == "application/json"
        outputs = {output["name"]: output for output in reply.json()["outputs"]}
        assert outputs["OUTPUT0"]["data"] == [2 * n for n in row * 2]
        assert outputs["OUTPUT0"]["shape"] == [2, 16]


def test_one_request_mixes_json_and_binary_and_gets_what_it_asks(web):
    left, right = np.arange(32, dtype=np.int32).reshape(2, 16), np.full([2, 16], 7, np.int32)
    wanted = [triton.InferRequestedOutput("OUTPUT1", binary_data=False),
              triton.InferRequestedOutput("OUTPUT0", binary_data=True)]
    for forms in [(True, True), (True, False), (False, True), (False, False)]:
        inputs = [sent("INPUT0", left, "INT32", forms[0]), sent("INPUT1", right, "INT32", forms[1])]
        answer = web.infer("simple", inputs, outputs=wanted)
        assert same(answer.as_numpy("OUTPUT0"), left + right)
        assert same(answer.as_numpy("OUTPUT1"), left - right)
        assert "data" in answer.get_output("OUTPUT1") and "data" not in answer.get_output("OUTPUT0")
        one = web.infer("simple", inputs, outputs=wanted[:1])
        assert one.as_numpy("OUTPUT0") is None


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("datatype", ["FP32", "BYTES"])
def test_zero_elements_are_legal(web, datatype, binary):
    empty = np.zeros([0], {"FP32": np.float32, "BYTES": object}[datatype])
    answer = identity(web, empty, datatype, binary, binary)
    assert answer.get_output("OUTPUT0")["shape"] == [0]


@pytest.mark.parametrize("there", [None, "gzip", "deflate"])
@pytest.mark.parametrize("back", [None, "gzip", "deflate"])
def test_bodies_are_compressed_both_ways(web, server, there, back):
    data = np.zeros(100_000, np.float32)
    answer = identity(web, data, "FP32", request_compression_algorithm=there,
                      response_compression_algorithm=back)
    assert same(answer.as_numpy("OUTPUT0"), data)
    body = json.dumps({"inputs": [json_tensor("INPUT0", "FP32", [1000], [1] * 1000)]}).encode()
    pack = {"gzip": gzip.compress, "deflate": zlib.compress, None: bytes}
    unpack = {"gzip": gzip.decompress, "deflate": zlib.decompress, None: bytes}
    headers = {"Content-Encoding": there, "Accept-Encoding": back}
    reply = call(server, "/v2/models/identity/infer", pack[there](body),
                 headers={key: value for key, value in headers.items() if value})
    assert reply.headers["Content-Encoding"] == back
    assert json.loads(unpack[back](reply.body))["outputs"][0]["data"] == [1.0] * 1000


@pytest.mark.parametrize("model, body, output", [
    ("identity", floats(1, 2, 3), floats(1, 2, 3)), ("one_text", b"hi", b"\2\0\0\0hi"),
    ("identity", b"", b""), ("batched", floats(*range(16)), floats(*range(16))),
])
def test_a_raw_body_is_the_one_input(server, model, body, output):
    reply = call(server, f"/v2/models/{model}/infer", body, "POST", {LENGTH: "0"})
    assert reply.status == 200, reply.body
    length = int(reply.headers[LENGTH])
    assert reply.headers["Content-Type"] == "application/octet-stream"
    assert reply.body[length:] == output
    assert json.loads(reply.body[:length])["model_name"] == model


@pytest.mark.parametrize("model, body", [("simple", bytes(128)), ("identity", bytes(7)),
                                         ("batched", bytes(4)), ("smollm", b"text"),
                                         ("identity_bytes", b"hi"), ("texts", b"hi")])
def test_a_raw_body_that_does_not_fit_is_refused(server, model, body):
    reply = call(server, f"/v2/models/{model}/infer", body, "POST", {LENGTH: "0"})
    assert reply.status == 400, reply.body
    if model in ("identity_bytes", "texts"):
        told = b"For BYTE datatype raw input 'INPUT0', the model must have input shape [1]"
        assert told in reply.body, reply.body


def test_a_large_body_passes_both_ways(web):
    data = np.arange(12 * 2**18, dtype=np.float32)
    assert same(identity(web, data, "FP32").as_numpy("OUTPUT0"), data)
