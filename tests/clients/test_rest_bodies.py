"""Bodies that are not what they should be: broken JSON, binary tensors, encodings, sizes."""

import gzip
import json
import socket
import zlib

import numpy as np
import pytest

from patience import PATIENCE_SECONDS
from test_rest_validation import FLOAT, LIMIT, refused, served, serves, x
from wire import binary_body, call, floats, json_tensor, strings

INFER = "/v2/models/identity/infer"
UNPARSED = ("failed to parse the request JSON buffer", "Unable to parse ", "parameter 'p'")
WHOLE = json.dumps({"inputs": [FLOAT]})


def nested(key, value):
    """Makes a request whose input has a member of some depth."""
    members = {k: v for k, v in FLOAT.items() if k != key}
    return b'{"inputs": [{"%s": %s, %s]}' % (key.encode(), value, json.dumps(members)[1:].encode())


JSON = {
    "nothing": b"", "no JSON": b"{", "a tail": f"{WHOLE}x".encode(), "no UTF-8": b'{"id": "\xff"}',
    "an array": [], "a number": b"1", "null": b"null", "no inputs": {},
    "an array of the members": ["", {}, [FLOAT], []],
    "an input as an array": {"inputs": [["INPUT0", "FP32", [2], {}, [1, 2]]]},
    "inputs no array": {"inputs": {}}, "input no object": {"inputs": [1]},
    **{f"no {key}": {"inputs": [{k: v for k, v in FLOAT.items() if k != key}]}
       for key in ("name", "datatype", "shape")},
    **{f"{key} of {value}": {"inputs": [{**FLOAT, key: value}]}
       for key, value in [("name", 1), ("name", None), ("datatype", []), ("shape", 2),
                          ("shape", ["2"]), ("shape", [2.5]), ("shape", [[2]]),
                          ("parameters", [])]},
    "id of a wrong type": {"id": [1], "inputs": [FLOAT]},
    "parameters no object": {"parameters": 1, "inputs": [FLOAT]},
    "outputs no array": {"inputs": [FLOAT], "outputs": {}},
    "output no name": {"inputs": [FLOAT], "outputs": [{}]},
    "the same member twice": b'{"inputs": [], ' + WHOLE[1:].encode(),
    "brackets": b"[" * 1_000_000,
    "brackets as an object's": b'{"a":' * 300_000,
    "brackets as data": nested("data", b"[" * 1_000_000),
    "data 101 deep": nested("data", b"[" * 101 + b"1,2" + b"]" * 101),
    "a parameter 101 deep": nested("parameters", b'{"p":' + b"[" * 101 + b"]" * 101 + b"}"),
    "what is ignored 101 deep": nested("other", b"[" * 101 + b"]" * 101),
    "what is ignored 10^6 deep": nested("other", b"[" * 1_000_000 + b"]" * 1_000_000),
}


@pytest.mark.parametrize("case", JSON)
def test_json_that_is_wrong_is_the_clients_fault(served, case):
    text = refused(call(served, INFER, JSON[case]), 400)
    assert any(fragment in text for fragment in UNPARSED), text
    assert len(text) < 4096
    serves(served)


def test_data_nested_as_deep_as_its_shape_is_fine(served):
    data = json.loads("[" * 60 + "1,2" + "]" * 60)
    reply = call(served, *x("identity", {**FLOAT, "data": data}))
    assert reply.status == 200 and reply.json()["outputs"][0]["data"] == [1, 2]


def raw(size, shape=(2,), name="INPUT0", datatype="FP32"):
    return {"inputs": [json_tensor(name, datatype, list(shape), binary_data_size=size)]}


BINARY = {
    "wrong byte size": ("identity", raw(4), [floats(1)], "input byte size mismatch for input "
                        "'INPUT0' for model 'identity'. Expected 8, got 4"),
    "odd byte size": ("identity", raw(7), [b"1234567"], "Expected 8, got 7"),
    "beyond the body": ("identity", raw(8), [floats(1)], "INPUT0"),
    "far beyond": ("identity", raw(2**63), [floats(1, 2)], "INPUT0"),
    "leftovers": ("identity", raw(8), [floats(1, 2, 3)], "unexpected additional input data"),
    **{f"size {size}": ("identity", raw(size), [floats(1, 2)], "binary_data_size")
       for size in (-1, "8", 8.5, True, None)},
    "too many strings": ("bytes", raw(10, [1], datatype="BYTES"), [strings("a", "b")],
                         "unexpected number of string elements 2"),
    "too few strings": ("bytes", raw(5, [2], datatype="BYTES"), [strings("a")],
                        "expected 2 string elements"),
    "cut string length": ("bytes", raw(2, [1], datatype="BYTES"), [b"\1\0"],
                          "incomplete string length indicator"),
    "cut string data": ("bytes", raw(7, [1], datatype="BYTES"), [b"\x09\0\0\0abc"],
                        "incomplete string data"),
    "negative dim": ("identity", raw(8, [-1]), [floats(1, 2)], "INPUT0"),
    "overflowing shape": ("identity", raw(8, [2**62]), [floats(1, 2)], "INPUT0"),
    "zero batch": ("batched", raw(4, [0, 16]), [floats(1)], "INPUT0"),
}


@pytest.mark.parametrize("case", BINARY)
def test_binary_tensors_that_do_not_fit_are_refused(served, case):
    model, head, raws, fragment = BINARY[case]
    body, headers = binary_body(head, *raws)
    refused(call(served, f"/v2/models/{model}/infer", body, headers=headers), 400, fragment)
    serves(served)


@pytest.mark.parametrize("length", ["-1", "x", "", "1e3", "0x10", "999", str(2**64), "1,2", "5"])
def test_a_json_length_that_is_wrong_is_refused(served, length):
    headers = {"Inference-Header-Content-Length": length}
    refused(call(served, INFER, WHOLE, headers=headers), 400)
    serves(served)


def bomb(pack):
    return pack(bytes(256 * LIMIT))


@pytest.mark.parametrize("encoding, body, status, fragment", [
    ("br", b"x", 501, "Content-Encoding"), ("gzip, gzip", b"x", 501, "Content-Encoding"),
    ("gzip", WHOLE.encode(), 400, ""), ("deflate", WHOLE.encode(), 400, ""),
    ("gzip", gzip.compress(WHOLE.encode(), mtime=0)[:-9], 400, ""), ("gzip", b"", 400, ""),
    ("gzip", gzip.compress(bytes(LIMIT + 1), mtime=0), 400, "http-max-input-bytes"),
    ("gzip", "bomb", 400, "http-max-input-bytes"), ("deflate", "bomb", 400, "http-max-input-bytes"),
], ids=lambda value: str(value)[:20])
def test_an_encoding_that_is_unknown_broken_or_a_bomb_is_refused(served, encoding, body, status,
                                                                 fragment):
    if body == "bomb":
        body = bomb(lambda data: {"gzip": gzip.compress, "deflate": zlib.compress}[encoding](data, 1))
    headers = {"Content-Encoding": encoding}
    refused(call(served, INFER, body, headers=headers), status, fragment)
    serves(served)


def send(server, head, *parts):
    """Sends the beginning of a request, and returns what comes back."""
    host, port = server.http.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=PATIENCE_SECONDS) as connection:
        connection.sendall(f"POST /v2/models/identity/infer HTTP/1.1\r\nHost: h\r\n{head}\r\n\r\n"
                           .encode())
        for part in parts:
            connection.sendall(b"%x\r\n%s\r\n" % (len(part), part))
        return connection.recv(65536)


def test_a_body_over_the_limit_is_refused_before_it_is_whole(served):
    fits = np.zeros((LIMIT - 200) // 4, np.float32).tobytes()
    body, headers = binary_body(raw(len(fits), [len(fits) // 4]), fits)
    assert call(served, INFER, body, headers=headers).status == 200
    chunks = [bytes(65536)] * (LIMIT // 65536)
    for head, parts in [("Transfer-Encoding: chunked", [*chunks, b"x"]),
                        ("Transfer-Encoding: chunked", [bytes(LIMIT + 1)])]:
        answer = send(served, head, *parts)
        assert answer.startswith(b"HTTP/1.1 400") and b"http-max-input-bytes" in answer, head
        serves(served)
    refused(call(served, INFER, bytes(LIMIT + 1)), 400, "http-max-input-bytes")


def test_an_upload_of_small_chunks_within_the_limit_is_read(served):
    parts = [WHOLE[at:at + 1].encode() for at in range(len(WHOLE))]
    assert call(served, INFER, iter(parts), "POST").status == 200


