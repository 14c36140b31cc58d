"""Builds requests by hand, right and wrong, and reads answers."""

import contextlib
import http.client
import json
import queue
import struct
import typing
import urllib.request

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from patience import PATIENCE_SECONDS, eventually


def tensor(name, datatype, shape, **contents):
    """Makes an input; `contents` are typed contents such as int_contents=[1]."""
    made = pb.ModelInferRequest.InferInputTensor(name=name, datatype=datatype, shape=shape)
    if contents:
        made.contents.CopyFrom(pb.InferTensorContents(**contents))
    return made


def request(model, inputs=(), raw=(), outputs=(), parameters=None, id="", version=""):
    """Makes a request; `raw` are raw_input_contents."""
    made = pb.ModelInferRequest(model_name=model, model_version=version, id=id,
                                inputs=list(inputs), raw_input_contents=list(raw))
    for name in outputs:
        made.outputs.add(name=name)
    for key, value in (parameters or {}).items():
        set_parameter(made.parameters[key], value)
    return made


def set_parameter(parameter, value):
    """Sets a parameter by the type of the Python value."""
    if isinstance(value, bool):
        parameter.bool_param = value
    elif isinstance(value, int) and value >= 2**63:
        parameter.uint64_param = value
    elif isinstance(value, int):
        parameter.int64_param = value
    elif isinstance(value, float):
        parameter.double_param = value
    elif value is not None:
        parameter.string_param = value


def floats(*values):
    """Encodes FP32."""
    return struct.pack(f"<{len(values)}f", *values)


def ints(*values):
    """Encodes INT32."""
    return struct.pack(f"<{len(values)}i", *values)


def strings(*values):
    """Encodes BYTES."""
    values = [v.encode() if isinstance(v, str) else v for v in values]
    return b"".join(struct.pack("<I", len(v)) + v for v in values)


def elements(raw):
    """Decodes BYTES."""
    found = []
    while raw:
        (size,) = struct.unpack_from("<I", raw)
        found.append(raw[4:4 + size])
        raw = raw[4 + size:]
    return found


def text_request(model, *prompts, id="", raw=(), extra=(), outputs=(), **settings):
    """Makes a text request with the settings as request parameters."""
    inputs = [tensor("text_input", "BYTES", [len(prompts)]), *extra]
    return request(model, inputs, [strings(*prompts), *raw], outputs, settings, id)


def outputs_of(response):
    """Returns a response's outputs by name, BYTES decoded to lists, others to arrays."""
    assert len(response.outputs) == len(response.raw_output_contents)
    found = {}
    for output, raw in zip(response.outputs, response.raw_output_contents):
        assert not output.HasField("contents"), "answers are always raw"
        if output.datatype == "BYTES":
            found[output.name] = elements(raw)
            count = len(found[output.name])
        else:
            kind = _NUMPY[output.datatype]
            found[output.name] = np.frombuffer(raw, dtype=kind)
            count = len(found[output.name])
        assert count == int(np.prod(output.shape)), (output.name, output.shape, count)
    return found


_NUMPY = {"BOOL": np.bool_, "UINT8": np.uint8, "UINT16": np.uint16, "UINT32": np.uint32,
          "UINT64": np.uint64, "INT8": np.int8, "INT16": np.int16, "INT32": np.int32,
          "INT64": np.int64, "FP16": np.float16, "FP32": np.float32, "FP64": np.float64}


def refused(call, code, *fragments):
    """Asserts that a call fails with a code and a text that holds the fragments."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    assert caught.value.code() == code, caught.value.details()
    for fragment in fragments:
        assert fragment in caught.value.details(), caught.value.details()
    return caught.value.details()


def is_final(message):
    """Returns whether a stream's message says that it is its request's last."""
    return message.infer_response.parameters["triton_final_response"].bool_param


class Stream:
    """One ModelStreamInfer stream whose requests are sent one at a time."""

    def __init__(self, stub, **options):
        self.requests = queue.Queue()
        self.responses = stub.ModelStreamInfer(iter(self.requests.get, None), **options)

    def send(self, *requests):
        for made in requests:
            self.requests.put(made)

    def close(self):
        """Half-closes the stream: nothing more will be sent."""
        self.requests.put(None)

    def cancel(self):
        self.responses.cancel()
        self.close()

    def __iter__(self):
        return iter(self.responses)

    def next(self):
        return next(self.responses)

    def until_final(self):
        """Returns the messages up to the next final one."""
        messages = []
        for message in self.responses:
            messages.append(message)
            if message.error_message or is_final(message):
                return messages
        raise AssertionError(f"the stream ended without a final message: {messages}")


class Client(triton.InferenceServerClient):
    """Triton's client of a server, with its channel and stub for what it cannot send."""

    def __init__(self, server):
        super().__init__(server.address)
        self.server, self.channel, self.stub = server, self._channel, self._client_stub

    def begin(self, model, *arguments, **options):
        """Begins a request; returns the queue of its result and error, once its model has it."""
        answers = queue.Queue()
        self.async_infer(model, *arguments, **options,
                         callback=lambda result, error: answers.put((result, error)))
        await_running(self.server, model)
        return answers


def denied(call, code, *fragments):
    """Asserts that a call of Triton's client fails with a code and a text with the fragments."""
    with pytest.raises(InferenceServerException) as caught:
        call()
    assert caught.value.status() == str(code), caught.value
    for fragment in fragments:
        assert fragment in caught.value.message(), caught.value
    return caught.value.message()


def array_input(name, array, datatype=None):
    """Makes an input of Triton's client from an array."""
    made = triton.InferInput(name, list(array.shape), datatype or np_to_triton_dtype(array.dtype))
    made.set_data_from_numpy(array)
    return made


def write_model(root, name, config, versions=(1,), **files):
    """Writes a model folder of a repository: its config.pbtxt, version folders, other files."""
    folder = root / name
    for version in versions:
        (folder / str(version)).mkdir(parents=True, exist_ok=True)
    (folder / "config.pbtxt").write_text(config)
    for file, text in files.items():
        (folder / file.replace("_txt", ".txt")).write_text(text)
    return folder


def page(server):
    """Returns the page of a server's metrics."""
    with urllib.request.urlopen(f"http://{server.metrics}/metrics", timeout=PATIENCE_SECONDS) as answer:
        return answer.read().decode()


def scrape(server, series):
    """Returns the value of a series, 0 when there is none yet."""
    for line in page(server).splitlines():
        if line.startswith(series + " "):
            return float(line.rsplit(" ", 1)[1])
    return 0.0


def await_running(server, model, rpc="ModelInfer"):
    """Waits until a model has a request."""
    series = f'stator_requests_in_flight{{rpc="{rpc}",model="{model}"}}'
    eventually("it runs", lambda: scrape(server, series) > 0)


class Reply(typing.NamedTuple):
    """An answer over HTTP."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    def json(self):
        return json.loads(self.body)


def call(server, path, body=None, method=None, headers=None):
    """Makes a call over HTTP; a body of other than bytes or parts is sent as JSON."""
    if isinstance(body, (dict, list)):
        body = json.dumps(body)
    connection = http.client.HTTPConnection(server.http, timeout=PATIENCE_SECONDS)
    with contextlib.closing(connection):
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            # A server may answer and close before it has read all.
            connection.request(method or ("GET" if body is None else "POST"), path, body,
                               headers or {})
        answer = connection.getresponse()
        return Reply(answer.status, answer.headers, answer.read())


def json_tensor(name, datatype, shape, data=None, **parameters):
    """Makes a tensor of a REST request."""
    made = {"name": name, "datatype": datatype, "shape": shape}
    if data is not None:
        made["data"] = data
    return {**made, "parameters": parameters} if parameters else made


def binary_body(json_part, *raws):
    """Makes the body and header of a REST request with binary tensors."""
    text = json_part if isinstance(json_part, bytes) else json.dumps(json_part).encode()
    return b"".join([text, *raws]), {"Inference-Header-Content-Length": str(len(text))}
