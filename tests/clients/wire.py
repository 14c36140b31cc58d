"""Builds requests by hand, right and wrong, and reads answers."""

import queue
import struct

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb


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
